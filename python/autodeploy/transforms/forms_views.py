"""Normal forms of conversions, views, parts and joins."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node

from . import nodes as n
from .forms import expand_sizes, form, full, sizes, spelled
from .nodes import aten
from .pointwise import POINTWISE
from .rewrite import Rewriter, replace

# --- 1 conversions

@form("aten.to", "aten._to_copy", "aten.type_as")
def _to(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = node.args[0]
    if n.dtype_of(x) == n.dtype_of(node):
        return x
    return spelled(r, node, aten.to.dtype, x, n.dtype_of(node))


# --- 2 views

@form("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.view_as", "aten.unflatten",
       "aten.reshape_as")
def _reshape(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    if sum(n.is_symbolic(s) for s in n.shape_of(node)) > 1:
        return None
    return spelled(r, node, aten.reshape.default, node.args[0], sizes(n.shape_of(node)))


@form("aten.transpose", "aten.t", "aten.numpy_T", "aten.mT", "aten.permute")
def _permute(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    order = n.permutation(node)
    return None if order is None else spelled(r, node, aten.permute.default, node.args[0], order)


@form("aten.squeeze")
def _squeeze(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], a.get("dim")
    shape = n.shape_of(x)
    among = range(len(shape)) if dim is None else sorted(n.normal_dim(d, len(shape)) for d in n.as_list(dim))
    dims = [d for d in among if n.same_size(shape[d], 1)]
    return spelled(r, node, aten.squeeze.dims, x, dims) if dims else x


@form("aten.unsqueeze")
def _unsqueeze(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    return spelled(r, node, aten.unsqueeze.default, a["self"], n.normal_dim(a["dim"], n.rank(node)))


@form("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = node.args[0]
    plain = expand_sizes(x, n.shape_of(node))
    if plain is not None:
        return spelled(r, node, aten.expand.default, x, plain)
    for user in list(node.users):  # expanded over tokens: arithmetic does that by itself
        others = [y for y in user.all_input_nodes if y is not node and n.is_tensor(y)]
        if n.op_name(user) in POINTWISE and any(n.same_shape(y, node) for y in others):
            user.replace_input_with(node, x)
    return None


@form("aten.broadcast_tensors")
def _broadcast(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    for user in list(node.users):
        if user.target is not operator.getitem:
            continue
        x, value = a["tensors"][user.args[1]], user.meta["val"]
        wanted = expand_sizes(x, value.shape)
        if wanted is not None:
            kept = all(s == -1 for s in wanted)
            replace(user, x if kept else r.call(aten.expand.default, x, wanted, like=user, before=user))
    return None


def _interleave(r: Rewriter, node: Node, x: Node, outer: list[int], inner: list[int]) -> Node:
    """Each dim d of x becomes outer[d] * size * inner[d]."""
    shape = list(n.shape_of(x))
    factors = [o * i for o, i in zip(outer, inner, strict=True)]
    if all(f == 1 or n.same_size(s, 1) for f, s in zip(factors, shape, strict=True)):
        grown = [-1 if f == 1 else f for f in factors]
        return r.call(aten.expand.default, x, grown, like=node, before=node)
    wide: list[Any] = []
    grown = []
    for o, size, i in zip(outer, shape, inner, strict=True):
        for factor, keep in ((o, False), (size, True), (i, False)):
            if keep or factor != 1:
                wide.append(size if keep else 1)
                grown.append(-1 if keep else factor)
    y = r.call(aten.reshape.default, x, sizes(wide), like=node, before=node) if len(wide) > len(shape) else x
    y = r.call(aten.expand.default, y, grown, like=node, before=node)
    return r.call(aten.reshape.default, y, sizes(n.shape_of(node)), like=node, before=node)


@form("aten.repeat")
def _repeat(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, repeats = a["self"], list(a["repeats"])
    if any(not isinstance(k, int) for k in repeats):
        return None
    lead = len(repeats) - n.rank(x)
    if lead:
        x = r.call(aten.reshape.default, x, sizes([1] * lead + list(n.shape_of(x))), like=node, before=node)
    if all(k == 1 for k in repeats):
        return x
    return _interleave(r, node, x, repeats, [1] * len(repeats))


@form("aten.repeat_interleave")
def _repeat_interleave(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, repeats, dim = a["self"], a.get("repeats"), a.get("dim")
    if not isinstance(repeats, int) or dim is None:
        return None
    if sum(map(n.is_symbolic, n.shape_of(node))) > 1:
        return None
    inner = [1] * n.rank(x)
    inner[n.normal_dim(dim, n.rank(x))] = repeats
    return _interleave(r, node, x, [1] * n.rank(x), inner)


# --- 3 parts

@form("aten.slice")
def _slice(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size) or any(isinstance(a[k], Node) for k in ("start", "end")):
        return None  # all of it, or refused by the token axis proof
    start, stop, stride = slice(a["start"], a["end"], a["step"]).indices(size)
    if (start, stop, stride) == (0, size, 1):
        return x
    return spelled(r, node, aten.slice.Tensor, x, dim, start, max(start, stop), stride)


@form("aten.narrow")
def _narrow(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, start = a["self"], a["start"]
    if not isinstance(start, int) or not isinstance(a["length"], int):
        return None
    dim = n.normal_dim(a["dim"], n.rank(x))
    start = start % int(n.shape_of(x)[dim])
    return r.call(aten.slice.Tensor, x, dim, start, start + a["length"], 1, like=node, before=node)


@form("aten.select")
def _select(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = a["self"]
    dim = n.normal_dim(a["dim"], n.rank(x))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size) or not isinstance(a["index"], int):
        return None
    return spelled(r, node, aten.select.int, x, dim, a["index"] % int(size))


@form("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind", "aten.unsafe_split",
       "aten.unsafe_chunk")
def _split(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = node.args[0]
    dim = n.normal_dim(a.get("dim", 0), n.rank(x))
    if n.is_symbolic(n.shape_of(x)[dim]):
        return None  # refused by the token axis proof
    unbind = n.op_name(node) == "aten.unbind"
    starts, total = [], 0
    for part in node.meta["val"]:
        starts.append(total)
        total += 1 if unbind else int(part.shape[dim])
    for user in list(node.users):
        if user.target is not operator.getitem:
            continue
        i = int(user.args[1])
        if unbind:
            new = r.call(aten.select.int, x, dim, i % len(starts), like=user, before=user)
        else:
            start, width = starts[i], int(node.meta["val"][i].shape[dim])
            new = x if width == n.shape_of(x)[dim] else r.call(
                aten.slice.Tensor, x, dim, start, start + width, 1, like=user, before=user)
        replace(user, new)
    return None


@form("aten.flip")
def _flip(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = a["self"]
    dims = [n.normal_dim(d, n.rank(x)) for d in n.as_list(a["dims"])]
    if any(n.is_symbolic(n.shape_of(x)[d]) for d in dims):
        return None  # refused by the token axis proof
    for dim in dims:
        last = int(n.shape_of(x)[dim]) - 1
        order = r.call(aten.arange.start_step, last, -1, -1, like=node, before=node)
        x = r.call(aten.index_select.default, x, dim, order, like=node, before=node)
    return x


# --- 4 joining

@form("aten.cat", "aten.concat", "aten.concatenate")
def _cat(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    parts = [p for p in node.args[0] if not (n.rank(p) == 1 and n.rank(node) > 1)]  # torch skips empty legacy tensors
    dim = n.normal_dim(a.get("dim", 0), n.rank(node))
    parts = [p for p in parts if not n.same_size(n.shape_of(p)[dim], 0)] or parts[:1]
    if len(parts) == 1 and n.dtype_of(parts[0]) == n.dtype_of(node):
        return parts[0]
    return spelled(r, node, aten.cat.default, parts, dim)


@form("aten.stack")
def _stack(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    dim = n.normal_dim(a["dim"], n.rank(node))
    parts = [r.call(aten.unsqueeze.default, x, dim, like=node, before=node) for x in a["tensors"]]
    return r.call(aten.cat.default, parts, dim, like=node, before=node)


@form("aten.constant_pad_nd", "aten.pad")
def _pad(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    if a.get("mode", "constant") != "constant":
        return None
    x, widths, value = a["self"], list(a["pad"]), a.get("value") or 0
    if any(not isinstance(w, int) for w in widths):
        return None
    for i in range(len(widths) // 2):
        dim, (low, high) = n.rank(x) - 1 - i, widths[2 * i : 2 * i + 2]
        size = n.shape_of(x)[dim]
        if (low, high) == (0, 0):
            continue
        if n.is_symbolic(size):
            return None
        if low < 0 or high < 0:
            x = r.call(aten.slice.Tensor, x, dim, max(0, -low), int(size) + min(0, high), 1, like=node, before=node)
        parts = [x]
        for width, at in ((low, 0), (high, len(parts))):
            if width > 0:
                shape = list(n.shape_of(x))
                shape[dim] = width
                parts.insert(at if at == 0 else len(parts), full(r, node, shape, value, n.dtype_of(x)))
        x = r.call(aten.cat.default, parts, dim, like=node, before=node) if len(parts) > 1 else x
    return x
