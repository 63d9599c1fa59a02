"""What a model adds to attention scores: masks in numbers, a slope over keys, a bias looked up by distance."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from . import nodes as n
from .attention_masks import MaskKind, added_kind, hidden_kind, is_hidden, mask_kind, unshaped
from .forms import sizes
from .nodes import aten
from .rewrite import Rewriter
from .token_forms import Slope, constant_number, places, slope


@dataclass
class Terms:
    """What stands beside q.k in the scores: kinds of masks that all apply, and summands with their factors."""

    kinds: list[MaskKind] = field(default_factory=list)
    slopes: list[tuple[Slope, float]] = field(default_factory=list)
    tables: list[tuple[Node, float]] = field(default_factory=list)

    def merged(self) -> MaskKind | None:
        """The one kind that all masks together are; None where there is none."""
        total: MaskKind | None = MaskKind()
        for kind in self.kinds:
            total = None if total is None else total.both(kind)
        return total


def read_added(r: Rewriter, x: Node, terms: Terms, scale: float, before: Node) -> bool:
    """Takes apart what is added to scores, times `scale`; False when a part of it is not understood.

    1. A mask in numbers, or a value with very negative numbers in the place of hidden keys.
    2. slope[h] * j + anything that is the same for all keys (which softmax takes away again).
    3. A table [.., T, R] read at the distance i - j, 0 outside of [0, R); converted, or times what knows no key.
    4. A sum of such.
    """
    x = unshaped(x)
    ir = r.ir
    kind = added_kind(ir, x)
    if kind is not None:
        terms.kinds.append(kind)
        return True
    if n.is_op(x, "aten.where") and is_hidden(constant_number(ir, x.args[2])) and isinstance(x.args[1], Node):
        kind, value = mask_kind(ir, x.args[0]), x.args[1]
    elif n.is_op(x, "aten.masked_fill") and is_hidden(constant_number(ir, x.args[2])):
        kind, value = hidden_kind(ir, x.args[1]), x.args[0]
    else:
        return _read_bias(r, x, terms, scale, before)
    if kind is None:
        return False
    terms.kinds.append(kind)
    return read_added(r, value, terms, scale, before)


def _read_bias(r: Rewriter, x: Node, terms: Terms, scale: float, before: Node) -> bool:
    grows = slope(r, x, n.rank(x) - 1, before) if n.rank(x) else None
    if grows is not None and _heads_alone(x):
        terms.slopes.append((grows, scale))
        return True
    table = distance_table(r, x, before)
    if table is not None:
        terms.tables.append((table, scale))
        return True
    if n.is_op(x, "aten.add") and not x.kwargs and all(isinstance(y, Node) for y in x.args[:2]):
        return all(read_added(r, y, terms, scale, before) for y in x.args[:2])
    if n.is_op(x, "aten.mul", "aten.div") and isinstance(x.args[0], Node):
        number = constant_number(r.ir, x.args[1])
        if number:
            factor = number if n.is_op(x, "aten.mul") else 1 / number
            return read_added(r, x.args[0], terms, scale * factor, before)
    return False


def _heads_alone(x: Node) -> bool:
    """Whether no more than one dim besides those of tokens is larger than 1."""
    return sum(not n.is_symbolic(s) and not n.same_size(s, 1) for s in n.shape_of(x)) <= 1


def distance_table(r: Rewriter, x: Node, before: Node) -> Node | None:
    """The table [.., T, R] (R: distances 0 .. R - 1) whose row of each query a bias [.., T, T] reads at i - j."""
    x = unshaped(x)
    if n.is_op(x, "aten.mul") and all(isinstance(y, Node) for y in x.args[:2]):
        for value, factor in (x.args[:2], x.args[1::-1]):
            if n.same_size(n.shape_of(factor)[-1], 1):
                table = distance_table(r, value, before)
                return None if table is None else r.call(aten.mul.Tensor, table, factor, like=x, before=before)
        return None
    looked = _zero_outside(r, x)
    if looked is None:
        return None
    value, reach = looked
    value = n.without_casts(value)
    if not n.is_op(value, "aten.gather"):
        return None
    a = n.bound(value)
    table, index = a["self"], a["index"]
    rank = n.rank(value)
    if n.normal_dim(a["dim"], rank) != rank - 1 or n.shape_of(table)[-1] != reach or not _same_rows(table, value):
        return None
    while n.is_op(index, "aten.expand", "aten.to", "aten.clamp") or n.is_op(index, "aten.unsqueeze", "aten.reshape"):
        if n.is_op(index, "aten.clamp"):
            bounds = n.bound(index)
            if bounds["min"] not in (0, None) or bounds["max"] not in (reach - 1, None):
                return None
        index = index.args[0]
    return table if _is_distance(r, index) else None


def _same_rows(table: Node, value: Node) -> bool:
    return all(n.same_size(s, t) for s, t in zip(n.shape_of(table)[:-1], n.shape_of(value)[:-1], strict=True))


def _is_distance(r: Rewriter, x: Node) -> bool:
    """Whether x [.., T, T] is i - j."""
    form = places(r.ir, x)
    rank = n.rank(x)
    return form is not None and form.by == {rank - 2: 1.0, rank - 1: -1.0} and form.constant == 0


def _zero_outside(r: Rewriter, x: Node) -> tuple[Node, int] | None:
    """(value, R) of a value that is 0 where not 0 <= i - j < R."""
    if not n.is_op(x, "aten.masked_fill") or constant_number(r.ir, x.args[2]) != 0:
        return None
    value, outside, _ = x.args
    outside = unshaped(outside)
    if not n.is_op(outside, "aten.bitwise_or", "aten.logical_or", "aten.__or__"):
        return None
    kinds = [hidden_kind(r.ir, part) for part in outside.args[:2]]
    if kinds[0] is None or kinds[1] is None:
        return None
    both = kinds[0].both(kinds[1])
    return (value, both.window) if both is not None and both.causal and both.window else None


def slopes_of(r: Rewriter, terms: Terms, heads: int, before: Node) -> Node | None:
    """The sum of all slopes as [heads]; None where there is none, or one for another number of heads."""
    total: Node | None = None
    numbers = sum(float(x) * scale for x, scale in terms.slopes if not isinstance(x, Node))
    for value, scale in terms.slopes:
        if not isinstance(value, Node):
            continue
        if n.dtype_of(value) != torch.float32:
            value = r.call(aten.to.dtype, value, torch.float32, like=value, before=before)
        if n.shape_of(value)[0] not in (1, heads):
            return None
        if scale != 1.0:
            value = r.call(aten.mul.Tensor, value, scale, like=value, before=before)
        total = value if total is None else r.call(aten.add.Tensor, total, value, like=value, before=before)
    if total is None and numbers:
        total = r.call(aten.full.default, [heads], numbers, like=before, before=before, dtype=torch.float32)
    elif total is not None:
        if numbers:
            total = r.call(aten.add.Tensor, total, numbers, like=total, before=before)
        if n.shape_of(total)[0] != heads:
            total = r.call(aten.expand.default, total, [heads], like=total, before=before)
    return total


def table_of(r: Rewriter, terms: Terms, heads: int, before: Node) -> Node | None:
    """The one table by distance as [T, heads, R]."""
    if len(terms.tables) != 1:
        return None
    table, scale = terms.tables[0]
    shape = n.shape_of(table)
    lead = [s for s in shape[:-2] if not n.same_size(s, 1)]
    if len(shape) < 3 or lead != ([heads] if heads > 1 else []) or not n.is_symbolic(shape[-2]):
        return None
    table = r.call(aten.reshape.default, table, sizes([heads, *shape[-2:]]), like=table, before=before)
    table = r.call(aten.permute.default, table, [1, 0, 2], like=table, before=before)
    return table if scale == 1.0 else r.call(aten.mul.Tensor, table, scale, like=table, before=before)
