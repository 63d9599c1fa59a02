"""Which dimensions an op needs contiguous: what decides where lowering copies.

Canonical ops read rows, each with its own stride, and need everything within a row contiguous; regions and generic ops
read any strides. The row dims of an operand are those in front that its shape pattern in the op table names `M*`, `T`,
`R`, `S` or `Sx`.
"""

from __future__ import annotations

from autodeploy.artifact.op_table import OPS, In
from autodeploy.ops import OPS as CANONICAL_OPS

from .views import View

_ROW_DIMS = ("M*", "T", "R", "S", "Sx")


def row_rank(rule: In, view: View) -> int:
    """How many leading dims of an operand are rows."""
    names = rule.shape.split("|")[0].split()
    if names[0] == "M*":
        return view.ndim - (len(names) - 1)
    return 1 if names[0] in _ROW_DIMS else 0


def fits(op: str, position: int, view: View) -> bool:
    """Whether operand `position` of `op` may be this view, or has to be copied first."""
    if op not in CANONICAL_OPS:
        return True
    rule = OPS[op].inputs[position]
    first = 0 if view.dtype == "i64" else row_rank(rule, view)
    return view.is_contiguous(first)
