"""Which layouts an op reads: what decides where lowering copies.

Canonical ops read operands whose last dim is contiguous, with any stride in the others (docs/program.md, Ops); regions
and generic ops read any strides.
"""

from __future__ import annotations

from autodeploy.artifact.op_table import In
from autodeploy.ops import OPS as CANONICAL_OPS

from .dims import ONE
from .views import View


def row_rank(rule: In, view: View) -> int:
    """How many leading dims of an operand are rows, the `M*` of its shape pattern."""
    names = rule.shape.split("|")[0].split()
    return view.ndim - (len(names) - 1) if names[0] == "M*" else 0


def fits(op: str, view: View) -> bool:
    """Whether an operand of `op` may be this view, or has to be copied first."""
    return op not in CANONICAL_OPS or view.ndim == 0 or view.shape[-1] == ONE or view.strides[-1] == ONE
