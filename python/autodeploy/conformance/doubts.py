"""Whether a row that differs from the reference is wrong, or the reference itself leaves room for it.

Two things do: a tie within the model's own selections (see `selections`), behind which everything may differ, and a
model that is so sensitive that two orders of additions differ by more than the tolerance. How sensitive it is, the
reference tells: its pass in float32 is that far from its pass in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from autodeploy.testing.compare import relative_error
from autodeploy.verify.reference import Expected
from autodeploy.verify.report import Check
from autodeploy.verify.stable_topk import StableTopk

from .judged import Judged, leave_room
from .selections import first_tie

# Two float32 passes, each with an error of its own, against one error that was measured.
_ROUNDINGS = 3.0
# A pass in float64 that is further away than this went another way: it says nothing about rounding.
_MOST = 1e-3


@dataclass
class Doubts:
    """What is asked of the reference where something differs; each question once per request."""

    model: torch.nn.Module
    expected: Sequence[Expected]
    _ties: dict[int, int | None] = field(default_factory=dict)
    _roundings: dict[int, float] = field(default_factory=dict)

    def first_tie(self, request: int) -> int | None:
        """The first token with a tie in a selection, or None."""
        if request not in self._ties:
            self._ties[request] = first_tie(self.model, self.expected[request].feed.tokens)
        return self._ties[request]

    def rounding(self, request: int) -> float:
        """How far the reference's logits may be off by rounding (see `rounding`)."""
        if request not in self._roundings:
            self._roundings[request] = rounding(self.model, self.expected[request])
        return self._roundings[request]

    def judge(self, check: Check, tokens_only: bool) -> Judged:
        """Takes out of `check` what is not wrong for certain (see `leave_room`)."""
        return leave_room(check, tokens_only, self.first_tie, self.rounding)


def rounding(model: torch.nn.Module, expected: Expected) -> float:
    """How far another order of additions may be from the reference's logits, as a part of the largest of a row.

    Three times the largest error of its float32 pass against its own pass in float64; 0 where that says nothing.
    """
    try:
        wide = _logits_in_float64(model, expected.feed.tokens)
    except RuntimeError:  # code that insists on float32
        return 0.0
    error = max(relative_error(a, b) for a, b in zip(expected.logits, wide.numpy(), strict=True))
    return _ROUNDINGS * error if error <= _MOST else 0.0


@torch.no_grad()
def _logits_in_float64(model: torch.nn.Module, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [n, V] of a pass in float64."""
    wide = copy.deepcopy(model).double()
    if hasattr(wide, "set_experts_implementation"):
        wide.set_experts_implementation("eager")  # others know no float64
    with StableTopk():
        return wide(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
