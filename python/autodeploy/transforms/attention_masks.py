"""Which keys a mask lets queries see, read from how a model makes the mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import Node

from ..ir import ModelIR
from ..ops import OPS, op_of
from . import nodes as n
from .token_forms import constant_number, is_whole, places

HIDDEN = -1e4  # what is added to scores to hide a key is at most this
RESHAPES = ("aten.reshape", "aten.view", "aten.unsqueeze", "aten.squeeze", "aten.expand")


@dataclass(frozen=True)
class MaskKind:
    """Key j is seen by query i if j <= i (causal), i - j < window (unless 0), i // chunk == j // chunk (unless 0)."""

    causal: bool = False
    window: int = 0
    chunk: int = 0

    def both(self, other: MaskKind) -> MaskKind | None:
        """What both let see; None where no one kind says it."""
        if self.chunk and other.chunk and self.chunk != other.chunk:
            return None
        window = min(self.window or other.window, other.window or self.window)
        return MaskKind(self.causal or other.causal, window, self.chunk or other.chunk)


def unshaped(x: Node) -> Node:
    """The value before conversions and reshapes that leave the last two dims alone."""
    while True:
        x = n.without_casts(x)
        if n.op_name(x) not in RESHAPES or not same_square(x, x.args[0]):
            return x
        x = x.args[0]


def same_square(x: Node, before: Node) -> bool:
    """Whether the last two dims are the same."""
    return [str(s) for s in n.shape_of(x)[-2:]] == [str(s) for s in n.shape_of(before)[-2:]]


def is_hidden(number: float | None) -> bool:
    return number is not None and number <= HIDDEN


def mask_kind(ir: ModelIR, x: Node) -> MaskKind | None:
    """The kind of a mask [.., T, T] that is true, or 1, where a key is seen; None when it is no such mask."""
    x = unshaped(x)
    if n.is_cast(x):
        return mask_kind(ir, x.args[0])
    op = op_of(getattr(x, "target", None))
    if op is OPS["mask"]:
        a = op.bind(x.args, x.kwargs)
        padding = a.get("padding")
        if padding is not None and not constant_number(ir, padding):
            return None
        return MaskKind(bool(a["causal"]), int(a["window"]), int(a["chunk"]))
    if n.is_op(x, "aten.bitwise_not", "aten.logical_not"):
        return hidden_kind(ir, x.args[0])
    if n.is_op(x, "aten.bitwise_and", "aten.logical_and", "aten.__and__"):
        first, second = mask_kind(ir, x.args[0]), mask_kind(ir, x.args[1])
        return None if first is None or second is None else first.both(second)
    if n.is_op(x, "aten.tril") and constant_number(ir, x.args[0]):
        return _band(low=-math.inf, high=float(n.bound(x)["diagonal"]))
    return _compared(ir, x, negated=False) or _constant_kind(ir, x, hidden=False)


def hidden_kind(ir: ModelIR, x: Node) -> MaskKind | None:
    """The kind of a mask that is true, or 1, where a key is not seen."""
    x = unshaped(x)
    if n.is_cast(x):  # numbers to add are not 0, so true, where a key is hidden
        return hidden_kind(ir, x.args[0]) or (added_kind(ir, x.args[0]) if n.dtype_of(x) == torch.bool else None)
    if n.is_op(x, "aten.bitwise_not", "aten.logical_not"):
        return mask_kind(ir, x.args[0])
    if n.is_op(x, "aten.bitwise_or", "aten.logical_or", "aten.__or__"):
        first, second = hidden_kind(ir, x.args[0]), hidden_kind(ir, x.args[1])
        return None if first is None or second is None else first.both(second)
    if n.is_op(x, "aten.rsub") and n.number(x.args[1]) == 1:
        return mask_kind(ir, x.args[0])
    if n.is_op(x, "aten.sub") and constant_number(ir, x.args[0]) == 1 and isinstance(x.args[1], Node):
        return mask_kind(ir, x.args[1])
    if n.is_op(x, "aten.lt", "aten.le") and is_negative(n.number(x.args[1])) and isinstance(x.args[0], Node):
        return added_kind(ir, x.args[0])  # numbers to add: 0 where seen
    if n.is_op(x, "aten.eq") and n.number(x.args[1]) == 0:
        return mask_kind(ir, x.args[0])
    if n.is_op(x, "aten.triu") and constant_number(ir, x.args[0]) == 1:
        return _band(low=-math.inf, high=float(n.bound(x)["diagonal"]) - 1)
    return _compared(ir, x, negated=True) or _constant_kind(ir, x, hidden=True)


def is_negative(number: float | None) -> bool:
    return number is not None and number < 0


def added_kind(ir: ModelIR, x: Node) -> MaskKind | None:
    """The kind of a mask in numbers to add: 0 where a key is seen, very negative where not."""
    x = unshaped(x)
    if n.is_op(x, "aten.where") and len(x.args) == 3:
        seen, zero, value = x.args
        if constant_number(ir, zero) == 0 and is_hidden(constant_number(ir, value)):
            return mask_kind(ir, seen)
        if constant_number(ir, value) == 0 and is_hidden(constant_number(ir, zero)):
            return hidden_kind(ir, seen)
    if n.is_op(x, "aten.masked_fill") and is_hidden(constant_number(ir, x.args[2])):
        return hidden_kind(ir, x.args[1]) if constant_number(ir, x.args[0]) == 0 else None
    if n.is_op(x, "aten.mul"):
        for value, factor in (x.args[:2], x.args[1::-1]):
            if is_hidden(constant_number(ir, factor)) and isinstance(value, Node):
                return hidden_kind(ir, value)
    if n.is_op(x, "aten.triu") and is_hidden(constant_number(ir, x.args[0])):
        return _band(low=-math.inf, high=float(n.bound(x)["diagonal"]) - 1)
    return _constant_kind(ir, x, added=True)


def _band(low: float, high: float) -> MaskKind | None:
    """The mask low <= j - i <= high. A key in front of the query is seen only by masks that are not causal."""
    if high not in (0.0, math.inf) or low > 0:
        return None
    return MaskKind(high == 0, 0 if low == -math.inf else 1 - int(low))


_COMPARISONS = {"aten.lt": (-1, 1), "aten.le": (-1, 0), "aten.gt": (1, 1), "aten.ge": (1, 0)}


def _compared(ir: ModelIR, x: Node, negated: bool) -> MaskKind | None:
    """A comparison of token places: j <= i and i - j < window, in any spelling; `negated`: where it does not hold."""
    if n.op_name(x) not in _COMPARISONS:
        return None
    sign, strict = _COMPARISONS[n.op_name(x)]
    left, right = (places(ir, y) for y in x.args[:2])
    if left is None or right is None:
        return None
    rank, forms = n.rank(x), []
    for form, operand in ((left, x.args[0]), (right, x.args[1])):
        shift = rank - n.rank(operand) if isinstance(operand, Node) else 0
        forms.append(type(form)({d + shift: c for d, c in form.by.items()}, form.constant))
    # Holds where difference >= strict, with difference = sign * (left - right).
    difference = forms[0].plus(forms[1].scaled(-1.0)).scaled(sign)
    if negated:  # not (d >= strict) is -d >= 1 - strict, among whole numbers
        difference, strict = difference.scaled(-1.0), 1 - strict
    by_query, by_key = difference.by.get(rank - 2, 0.0), difference.by.get(rank - 1, 0.0)
    if set(difference.by) != {rank - 2, rank - 1} or by_query != -by_key or abs(by_key) != 1:
        return None
    if not is_whole(difference.constant):
        return None
    bound = strict - difference.constant  # by_key * (j - i) >= bound
    return _band(low=bound, high=math.inf) if by_key > 0 else _band(low=-math.inf, high=-bound)


def _constant_kind(ir: ModelIR, x: Node, hidden: bool = False, added: bool = False) -> MaskKind | None:
    """The kind of a constant [.., N, N] cut to [.., T, T] from its first row and column."""
    cut = 0
    while n.is_op(x, "aten.slice") or n.op_name(x) in RESHAPES or n.is_cast(x):
        if n.is_op(x, "aten.slice"):
            a = n.bound(x)
            dim = n.normal_dim(a["dim"], n.rank(x))
            if dim >= n.rank(x) - 2 and not n.same_shape(x, a["self"]):
                if a["start"] not in (None, 0) or a["step"] != 1:
                    return None
                cut += 1
        x = x.args[0]
    constant = ir.constants.get(str(x.target)) if x.op == "placeholder" else None
    if constant is None or cut != 2 or constant.value.dim() < 2 or constant.value[..., 0, 0].numel() != 1:
        return None
    table = constant.value.reshape(constant.value.shape[-2:])
    if table.shape[0] != table.shape[1]:
        return None
    if added:
        shown = table == 0
        legal = shown | (table <= HIDDEN)
    else:
        shown = table != 0
        legal = (table == 0) | (table == 1)
    if not bool(legal.all()):
        return None
    return _table_kind(~shown if hidden else shown)


def _table_kind(shown: torch.Tensor) -> MaskKind | None:
    rows = torch.arange(shown.shape[0])
    distance = rows[:, None] - torch.arange(shown.shape[1])[None, :]
    window = int(shown[-1].sum())
    for kind in (0, window):
        seen = (distance >= 0) & (distance < kind) if kind else distance >= 0
        if torch.equal(shown, seen):
            return MaskKind(True, kind)
    return None
