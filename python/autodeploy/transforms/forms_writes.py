"""Normal forms of writes into parts of tensors, and of indexing."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..ir import ConstantInfo
from . import nodes as n
from .forms import expand_sizes, form, sizes
from .nodes import aten
from .placeholders import add_placeholder, fresh_name
from .rewrite import Rewriter

# --- 5 writing into slices

@form("aten.slice_scatter")
def _slice_scatter(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size):
        return a["src"] if a["step"] == 1 and n.same_shape(x, a["src"]) else None
    start, stop, stride = slice(a["start"], a["end"], a["step"]).indices(size)
    if stride != 1:
        return _overwrite_every(r, node, a, dim, (start, stop, stride))
    return _overwrite(r, node, x, a["src"], dim, start, max(start, stop))


def _overwrite_every(
    r: Rewriter, node: Node, a: dict[str, Any], dim: int, where: tuple[int, int, int]
) -> Node | None:
    """x[..., start:stop:stride] = part: a write into a column of x with `dim` split into [size / stride, stride] where
    that is what it is, else a selection from x and part joined."""
    x, part, (start, stop, stride) = a["self"], a["src"], where
    size = int(n.shape_of(x)[dim])
    if size % stride or start >= stride or len(range(start, stop, stride)) != size // stride:
        order = list(range(size))
        order[start:stop:stride] = range(size, size + len(range(start, stop, stride)))
        both = r.call(aten.cat.default, [x, part], dim, like=node, before=node)
        return r.call(aten.index_select.default, both, dim, _indices(r, node, order), like=node, before=node)
    shape = list(n.shape_of(x))
    split = sizes([*shape[:dim], size // stride, stride, *shape[dim + 1 :]])
    if n.is_op(x, "aten.reshape") and sizes(n.shape_of(x.args[0])) == split:
        columns = x.args[0]
    else:
        columns = r.call(aten.reshape.default, x, split, like=node, before=node)
    column = r.call(aten.unsqueeze.default, part, dim + 1, like=node, before=node)
    joined = _overwrite(r, node, columns, column, dim + 1, start, start + 1)
    return r.call(aten.reshape.default, joined, sizes(shape), like=node, before=node)


@form("aten.select_scatter")
def _select_scatter(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size):
        return None
    index = a["index"] % int(size)
    part = r.call(aten.unsqueeze.default, a["src"], dim, like=node, before=node)
    return _overwrite(r, node, x, part, dim, index, index + 1)


@form("aten.copy")
def _copy(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    part = a["src"]
    if n.dtype_of(part) != n.dtype_of(node):
        part = r.call(aten.to.dtype, part, n.dtype_of(node), like=node, before=node)
    sizes_ = expand_sizes(part, n.shape_of(node))
    if sizes_ is None:
        return None
    return part if all(s == -1 for s in sizes_) else r.call(aten.expand.default, part, sizes_, like=node, before=node)


def _overwrite(r: Rewriter, node: Node, x: Node, part: Node, dim: int, start: int, stop: int) -> Node:
    if n.dtype_of(part) != n.dtype_of(x):
        part = r.call(aten.to.dtype, part, n.dtype_of(x), like=node, before=node)
    shape = list(n.shape_of(x))
    shape[dim] = stop - start
    expanded = expand_sizes(part, shape)
    if expanded is not None and any(s != -1 for s in expanded):
        part = r.call(aten.expand.default, part, expanded, like=node, before=node)
    pieces: list[Node] = []
    for low, high, inside in ((0, start, False), (start, stop, True), (stop, int(n.shape_of(x)[dim]), False)):
        if low < high:
            pieces.extend([part] if inside else _pieces(r, node, x, dim, low, high))
    return pieces[0] if len(pieces) == 1 else r.call(aten.cat.default, pieces, dim, like=node, before=node)


def _pieces(r: Rewriter, node: Node, x: Node, dim: int, low: int, high: int) -> list[Node]:
    """x[low:high] along `dim`, taken from the parts of a cat where x is one."""
    if not n.is_op(x, "aten.cat") or n.normal_dim(n.bound(x)["dim"], n.rank(x)) != dim:
        return [r.call(aten.slice.Tensor, x, dim, low, high, 1, like=node, before=node)]
    out: list[Node] = []
    at = 0
    for part in x.args[0]:
        size = int(n.shape_of(part)[dim])
        first, last = max(low - at, 0), min(high - at, size)
        if first < last:
            whole = (first, last) == (0, size)
            out.append(part if whole else r.call(aten.slice.Tensor, part, dim, first, last, 1, like=node, before=node))
        at += size
    return out


def _indices(r: Rewriter, node: Node, values: list[int]) -> Node:
    key, name = fresh_name(r.ir, f"{node.name}.index")
    value = torch.tensor(values)
    r.ir.constants[key] = ConstantInfo(name, "i64", value)
    with r.ir.fake_mode:
        fake = torch.empty(len(values), dtype=torch.int64)
    return add_placeholder(r.ir, key, fake, n.source(node))


# --- 6 indexing

@form("aten.index")
def _index(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, used = a["self"], [(d, i) for d, i in enumerate(a["indices"]) if i is not None]
    if len(used) != 1 or n.is_symbolic(n.shape_of(x)[used[0][0]]):
        return None
    dim, index = used[0]
    constant = r.ir.constants.get(str(index.target)) if index.op == "placeholder" else None
    if constant is None or constant.dtype != "i64" or constant.value.dim() != 1 or not constant.value.numel():
        return None
    size = int(n.shape_of(x)[dim])
    rows = [int(i) % size for i in constant.value]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return r.call(aten.slice.Tensor, x, dim, rows[0], rows[-1] + 1, 1, like=node, before=node)
    return r.call(aten.index_select.default, x, dim, _indices(r, node, rows), like=node, before=node)


@form("aten.gather")
def _gather(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, index = a["self"], a["index"]
    dim = n.normal_dim(a["dim"], n.rank(node))
    if n.has_tokens(x) or not n.is_op(index, "aten.expand") or n.rank(index.args[0]) != n.rank(x):
        return None
    ids = index.args[0]
    if any(d != dim and (s != 1 or n.shape_of(index)[d] != n.shape_of(x)[d]) for d, s in enumerate(n.shape_of(ids))):
        return None
    flat = r.call(aten.reshape.default, ids, [-1], like=node, before=node)
    return r.call(aten.index_select.default, x, dim, flat, like=node, before=node)
