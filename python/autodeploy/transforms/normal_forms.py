"""One spelling for each operation: what later transforms and lowering have to know."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ..ir import ConstantInfo, ModelIR
from . import nodes as n
from .base import Transform, refuse
from .nodes import aten
from .placeholders import add_placeholder, fresh_name
from .pointwise import POINTWISE
from .rewrite import Rewriter, erase_dead, replace
from .token_axis import permutation, reduced_dims

Form = Callable[[Rewriter, Node, dict[str, Any]], "Node | None"]
_FORMS: dict[str, Form] = {}


def _form(*names: str) -> Callable[[Form], Form]:
    def add(form: Form) -> Form:
        _FORMS.update(dict.fromkeys(names, form))
        return form

    return add


class NormalForms(Transform):
    """Rewrites the many spellings of an operation into one.

    1. Conversions (`_to_copy`, `type_as`, the overloads of `to`) are `to.dtype`.
    2. view, flatten, view_as, unflatten are `reshape`, whose one size with T in it is written -1; transpose, t and
       their like are `permute`; squeeze names its dims; expand_as is `expand`; repeat and repeat_interleave are expand
       and reshape.
    3. split, chunk and unbind followed by getitem are `slice` and `select` with bounds inside the tensor.
    4. stack is unsqueeze and `cat`; a constant pad is a `cat` with constants, or a slice.
    5. Writing into slices of a tensor (slice_scatter, select_scatter) is a `cat` of what is left and what was written;
       writing all of it is what was written.
    6. Indexing with one list of numbers in one dim is a slice or an `index_select`; a gather of whole rows by one index
       per token is an `index_select`.
    7. zeros, ones, full and their like are `full`; scatter of a number is scatter of a full tensor.
    8. softmax with a dtype converts first; max and min of two tensors are maximum and minimum; max and min over a dim
       are amax and argmax; var, std, norm and logsumexp are written out; argsort is the second result of a sort.
    9. A product whose inner dim is 1 (frequencies times positions) is a broadcast `mul`.
    10. A call that writes into its operand is refused: capture makes none.
    """

    name = "normal_forms"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or not hasattr(node.target, "_schema"):
                continue
            if node.target._schema.is_mutable:
                raise refuse(self.name, node, "it writes into its operand", "use the form that returns a new tensor")
            form = _FORMS.get(n.op_name(node))
            new = form(rewriter, node, n.bound(node)) if form is not None and node.users else None
            if new is not None:
                replace(node, new)
                changed = True
        return bool(erase_dead(ir.graph)) or changed


def sizes(shape: Any) -> list[int]:
    """A shape as arguments of reshape or expand: numbers, and -1 in the place of the size with T in it."""
    out = [-1 if n.is_symbolic(s) else int(s) for s in shape]
    if out.count(-1) > 1:
        raise ValueError(f"[normal_forms] expected one dim with tokens, found {list(shape)}")
    return out


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(map(_equal, x, y))
    if isinstance(x, Node) or isinstance(y, Node):
        return x is y
    return type(x) is type(y) and bool(x == y)


def _as(r: Rewriter, node: Node, target: Any, *args: Any) -> Node | None:
    """`target(*args)` in the place of `node`; None when it is that already."""
    args = tuple(list(x) if isinstance(x, (list, tuple)) else x for x in args)
    if node.target is target and not node.kwargs and _equal(node.args, args):
        return None
    return r.call(target, *args, like=node, before=node)


# --- 1 conversions

@_form("aten.to", "aten._to_copy", "aten.type_as")
def _to(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = node.args[0]
    if n.dtype_of(x) == n.dtype_of(node):
        return x
    return _as(r, node, aten.to.dtype, x, n.dtype_of(node))


# --- 2 views

@_form("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.view_as", "aten.unflatten",
       "aten.reshape_as")
def _reshape(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    if sum(n.is_symbolic(s) for s in n.shape_of(node)) > 1:
        return None
    return _as(r, node, aten.reshape.default, node.args[0], sizes(n.shape_of(node)))


@_form("aten.transpose", "aten.t", "aten.numpy_T", "aten.mT", "aten.permute")
def _permute(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    order = permutation(node)
    return None if order is None else _as(r, node, aten.permute.default, node.args[0], order)


@_form("aten.squeeze")
def _squeeze(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], a.get("dim")
    shape = n.shape_of(x)
    among = range(len(shape)) if dim is None else sorted(n.normal_dim(d, len(shape)) for d in n.as_list(dim))
    dims = [d for d in among if n.same_size(shape[d], 1)]
    return _as(r, node, aten.squeeze.dims, x, dims) if dims else x


@_form("aten.unsqueeze")
def _unsqueeze(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    return _as(r, node, aten.unsqueeze.default, a["self"], n.normal_dim(a["dim"], n.rank(node)))


def _expand_sizes(x: Node, shape: Any) -> list[int] | None:
    """Sizes for expand: -1 keeps; None when an expansion makes a dim of tokens out of a constant one."""
    lead = len(shape) - n.rank(x)
    out = []
    for i, size in enumerate(shape):
        keeps = i >= lead and n.same_size(n.shape_of(x)[i - lead], size)
        if n.is_symbolic(size) and not keeps:
            return None
        out.append(-1 if keeps else int(size))
    return out


@_form("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = node.args[0]
    plain = _expand_sizes(x, n.shape_of(node))
    if plain is not None:
        return _as(r, node, aten.expand.default, x, plain)
    for user in list(node.users):  # expanded over tokens: arithmetic does that by itself
        others = [y for y in user.all_input_nodes if y is not node and n.is_tensor(y)]
        if n.op_name(user) in POINTWISE and any(n.same_shape(y, node) for y in others):
            user.replace_input_with(node, x)
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


@_form("aten.repeat")
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


@_form("aten.repeat_interleave")
def _repeat_interleave(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, repeats, dim = a["self"], a.get("repeats"), a.get("dim")
    if not isinstance(repeats, int) or dim is None:
        return None
    inner = [1] * n.rank(x)
    inner[n.normal_dim(dim, n.rank(x))] = repeats
    return _interleave(r, node, x, [1] * n.rank(x), inner)


# --- 3 parts

@_form("aten.slice")
def _slice(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size) or any(isinstance(a[k], Node) for k in ("start", "end")):
        return None  # all of it, or refused by the token axis proof
    start, stop, stride = slice(a["start"], a["end"], a["step"]).indices(size)
    if (start, stop, stride) == (0, size, 1):
        return x
    return _as(r, node, aten.slice.Tensor, x, dim, start, max(start, stop), stride)


@_form("aten.narrow")
def _narrow(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, start = a["self"], a["start"]
    if not isinstance(start, int) or not isinstance(a["length"], int):
        return None
    dim = n.normal_dim(a["dim"], n.rank(x))
    start = start % int(n.shape_of(x)[dim])
    return r.call(aten.slice.Tensor, x, dim, start, start + a["length"], 1, like=node, before=node)


@_form("aten.select")
def _select(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = a["self"]
    dim = n.normal_dim(a["dim"], n.rank(x))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size) or not isinstance(a["index"], int):
        return None
    return _as(r, node, aten.select.int, x, dim, a["index"] % int(size))


@_form("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind", "aten.unsafe_split",
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


# --- 4 joining

@_form("aten.cat", "aten.concat", "aten.concatenate")
def _cat(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    parts = [p for p in node.args[0] if not (n.rank(p) == 1 and n.rank(node) > 1)]  # torch skips empty legacy tensors
    dim = n.normal_dim(a.get("dim", 0), n.rank(node))
    parts = [p for p in parts if not n.same_size(n.shape_of(p)[dim], 0)] or parts[:1]
    if len(parts) == 1 and n.dtype_of(parts[0]) == n.dtype_of(node):
        return parts[0]
    return _as(r, node, aten.cat.default, parts, dim)


@_form("aten.stack")
def _stack(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    dim = n.normal_dim(a["dim"], n.rank(node))
    parts = [r.call(aten.unsqueeze.default, x, dim, like=node, before=node) for x in a["tensors"]]
    return r.call(aten.cat.default, parts, dim, like=node, before=node)


@_form("aten.constant_pad_nd", "aten.pad")
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


# --- 5 writing into slices

@_form("aten.slice_scatter")
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


@_form("aten.select_scatter")
def _select_scatter(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    size = n.shape_of(x)[dim]
    if n.is_symbolic(size):
        return None
    index = a["index"] % int(size)
    part = r.call(aten.unsqueeze.default, a["src"], dim, like=node, before=node)
    return _overwrite(r, node, x, part, dim, index, index + 1)


@_form("aten.copy")
def _copy(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    part = a["src"]
    if n.dtype_of(part) != n.dtype_of(node):
        part = r.call(aten.to.dtype, part, n.dtype_of(node), like=node, before=node)
    sizes_ = _expand_sizes(part, n.shape_of(node))
    if sizes_ is None:
        return None
    return part if all(s == -1 for s in sizes_) else r.call(aten.expand.default, part, sizes_, like=node, before=node)


def _overwrite(r: Rewriter, node: Node, x: Node, part: Node, dim: int, start: int, stop: int) -> Node:
    if n.dtype_of(part) != n.dtype_of(x):
        part = r.call(aten.to.dtype, part, n.dtype_of(x), like=node, before=node)
    shape = list(n.shape_of(x))
    shape[dim] = stop - start
    expanded = _expand_sizes(part, shape)
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

@_form("aten.index")
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


@_form("aten.gather")
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


# --- 7 constants

def full(r: Rewriter, node: Node, shape: Any, value: Any, dtype: torch.dtype) -> Node:
    """A tensor of one value, made before `node`; sizes with T in them are products of `sym_size(token_ids, 0)`."""
    args = [tokens(r, node, n.tokens_in(s)) if n.is_symbolic(s) else int(s) for s in shape]
    return r.call(aten.full.default, args, value, like=node, before=node, dtype=dtype)


def tokens(r: Rewriter, node: Node, factor: int) -> Node:
    """factor * T as a node before `node`."""
    ids = r.ir.input("token_ids")
    existing = next((u for u in ids.users if n.is_op(u, "aten.sym_size") and u.args[1] == 0), None)
    if existing is None:
        first = next(x for x in r.graph.nodes if x.op != "placeholder")
        existing = r.call(aten.sym_size.int, ids, 0, like=ids, before=first)
    return existing if factor == 1 else r.call(operator.mul, existing, factor, like=node, before=node)


@_form("aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty",
       "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.new_empty_strided",
       "aten.empty_strided", "aten.scalar_tensor")
def _full(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    value = a.get("fill_value", a.get("s", 1 if "ones" in n.op_name(node) else 0))
    if n.number(value) is None or sum(n.is_symbolic(s) for s in n.shape_of(node)) > 1:
        return None
    return full(r, node, n.shape_of(node), value, n.dtype_of(node))


@_form("aten.scatter")
def _scatter(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    if "value" not in a or n.number(a["value"]) is None or a.get("reduce"):
        return None
    source = full(r, node, n.shape_of(a["index"]), a["value"], n.dtype_of(node))
    return r.call(aten.scatter.src, a["self"], a["dim"], a["index"], source, like=node, before=node)


# --- 8 reductions

@_form("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def _softmax(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    target = aten.log_softmax.int if "log" in n.op_name(node) else aten.softmax.int
    if n.dtype_of(x) != n.dtype_of(node):
        x = r.call(aten.to.dtype, x, n.dtype_of(node), like=node, before=node)
    return _as(r, node, target, x, dim)


@_form("aten.max", "aten.min")
def _extreme(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    largest = n.op_name(node) == "aten.max"
    if "other" in a:
        return r.call(aten.maximum.default if largest else aten.minimum.default, a["self"], a["other"], like=node,
                      before=node)
    if "dim" not in a:
        return r.call(aten.amax.default if largest else aten.amin.default, a["self"], list(range(n.rank(a["self"]))),
                      like=node, before=node)
    dim, keep = n.normal_dim(a["dim"], n.rank(a["self"])), a["keepdim"]
    for user in list(node.users):
        if user.args[1] == 0:
            target = aten.amax.default if largest else aten.amin.default
            new = r.call(target, a["self"], [dim], keep, like=user, before=user)
        else:
            target = aten.argmax.default if largest else aten.argmin.default
            new = r.call(target, a["self"], dim, keep, like=user, before=user)
        replace(user, new)
    return None


@_form("aten.sum", "aten.mean", "aten.amax", "aten.amin")
def _reduce(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = a["self"]
    if a.get("dtype") is not None and n.dtype_of(x) != n.dtype_of(node):
        x = r.call(aten.to.dtype, x, n.dtype_of(node), like=node, before=node)
    targets = {"aten.sum": aten.sum.dim_IntList, "aten.mean": aten.mean.dim, "aten.amax": aten.amax.default,
               "aten.amin": aten.amin.default}
    return _as(r, node, targets[n.op_name(node)], x, reduced_dims(node, a), a.get("keepdim", False))


@_form("aten.var", "aten.std")
def _variance(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dims = a["self"], reduced_dims(node, a)
    correction = a.get("correction", int(a.get("unbiased", True)))
    correction = 1 if correction is None else correction
    if any(n.is_symbolic(n.shape_of(x)[d]) for d in dims):
        return None
    count = math.prod(int(n.shape_of(x)[d]) for d in dims)
    mean = r.call(aten.mean.dim, x, dims, True, like=node, before=node)
    centred = r.call(aten.sub.Tensor, x, mean, like=node, before=node)
    square = r.call(aten.mul.Tensor, centred, centred, like=node, before=node)
    out = r.call(aten.mean.dim, square, dims, a.get("keepdim", False), like=node, before=node)
    if correction:
        out = r.call(aten.mul.Tensor, out, count / (count - correction), like=node, before=node)
    return r.call(aten.sqrt.default, out, like=node, before=node) if n.op_name(node) == "aten.std" else out


@_form("aten.linalg_vector_norm", "aten.norm")
def _norm(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, order = a.get("self", node.args[0]), a.get("ord", a.get("p", 2))
    dims, keep = reduced_dims(node, a), a.get("keepdim", False)
    if n.dtype_of(x) != n.dtype_of(node):
        x = r.call(aten.to.dtype, x, n.dtype_of(node), like=node, before=node)
    if order in (2, 2.0, None):
        square = r.call(aten.mul.Tensor, x, x, like=node, before=node)
        total = r.call(aten.sum.dim_IntList, square, dims, keep, like=node, before=node)
        return r.call(aten.sqrt.default, total, like=node, before=node)
    size = r.call(aten.abs.default, x, like=node, before=node)
    if order == 1:
        return r.call(aten.sum.dim_IntList, size, dims, keep, like=node, before=node)
    return r.call(aten.amax.default, size, dims, keep, like=node, before=node) if order == math.inf else None


@_form("aten.logsumexp")
def _logsumexp(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dims = a["self"], reduced_dims(node, a)
    top = r.call(aten.amax.default, x, dims, True, like=node, before=node)
    shifted = r.call(aten.exp.default, r.call(aten.sub.Tensor, x, top, like=node, before=node), like=node, before=node)
    total = r.call(aten.sum.dim_IntList, shifted, dims, True, like=node, before=node)
    out = r.call(aten.add.Tensor, r.call(aten.log.default, total, like=node, before=node), top, like=node, before=node)
    return out if a["keepdim"] else r.call(aten.squeeze.dims, out, dims, like=node, before=node)


@_form("aten.argsort")
def _argsort(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    dim = n.normal_dim(a["dim"], n.rank(node))
    pair = r.call(aten.sort.default, a["self"], dim, a["descending"], like=node, before=node)
    return r.call(operator.getitem, pair, 1, like=node, before=node)


# --- 9 products

@_form("aten.matmul", "aten.bmm", "aten.mm")
def _matmul(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, y = node.args[:2]
    if n.rank(x) < 2 or n.rank(y) < 2 or not n.same_size(n.shape_of(x)[-1], 1):
        return None
    return r.call(aten.mul.Tensor, x, y, like=node, before=node)  # [.., M, 1] x [.., 1, N]
