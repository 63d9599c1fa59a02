"""How far a result may be from its reference: one table for all tests and for `verify`.

Errors are measured against the largest magnitude of the reference tensor, so that a bound means the same for values of
any size and is not spoilt by elements near zero.
"""

from __future__ import annotations

# Largest error of one op, by the type it computes in: a few roundings of a sum over some thousand terms.
OP_TOLERANCE = {"f32": 2e-5, "act": 2e-5, "i64": 0.0, "bool": 0.0}

# Largest error of the logits of a whole model computed in float32 in another order of operations.
LOGITS_TOLERANCE = 1e-4

# Two largest logits closer than this part of the largest are a tie: either token is right.
TIE_TOLERANCE = 1e-4

# Largest error of one op that rounds its activations to 8 bits in blocks of 32, and of logits made that way: on a model
# of 135 million parameters with outlying activations, single logits of any such runtime are off by 8 % of the largest.
INT8_OP_TOLERANCE = 2e-2
INT8_LOGITS_TOLERANCE = 0.15
