"""The static proof that only token mixers mix tokens.

At run time the token dimension T is the concatenation of all scheduled tokens of all sequences. A graph was captured
for one sequence; it means the same on a ragged batch exactly when every op outside the canonical mixers treats tokens
one by one. `token_axes` follows which dimension is T through every op and refuses, by the model's line, an op that

1. reduces, scans, sorts, convolves, pads, flips or concatenates along T,
2. indexes or slices T,
3. pairs tokens (two dims that both grow with T, such as T x T scores),
4. moves tokens against each other (a reshape that regroups T with what stands before it),
5. makes numbers from token places (`arange` over T) or from the number of tokens,
6. is not known to this proof.

An `Axis(outer, inner)` is a dim of size outer * T * inner that runs over `outer`, then tokens, then `inner`: reshapes
may merge constant factors into T and split them off again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir import ModelIR
from ..ops import OPS, op_of
from . import nodes as n
from .base import Transform, TransformError, refuse
from .pointwise import POINTWISE


@dataclass(frozen=True)
class Axis:
    """How a dim of size outer * T * inner runs: slowest over `outer`, fastest over `inner`."""

    outer: int = 1
    inner: int = 1


TOKENS = Axis()
Axes = tuple[Axis | None, ...]  # per dim; None: independent of T


class Refusal(Exception):
    """Raised by a rule: why an op mixes tokens, and what to do."""

    def __init__(self, reason: str, remedy: str = "express it through an op that knows where sequences start"):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class _Analysis:
    """Axes of the values seen so far; rules read operands through it."""

    def __init__(self) -> None:
        self.axes: dict[Node, Axes | tuple[Axes, ...]] = {}

    def of(self, x: Any) -> Axes:
        """Axes of an operand; () for anything that is no tensor."""
        found = self.axes.get(x, ()) if isinstance(x, Node) else ()
        return found  # type: ignore[return-value]

    def tokens(self, x: Any) -> bool:
        return any(self.of(x))


Rule = Callable[[_Analysis, Node, dict[str, Any]], Any]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


def _place(axes: Axes, what: str) -> Axes:
    if sum(a is not None for a in axes) > 1:
        raise Refusal(f"{what} pairs tokens with tokens (two dims grow with the number of tokens)")
    return axes


def _meet(a: Axis | None, b: Axis | None) -> Axis | None:
    if a is None or b is None or a == b:
        return a or b
    raise Refusal(f"it combines tokens in different orders ({a} and {b})")


def _broadcast(an: _Analysis, operands: list[Any], result: torch.Tensor) -> Axes:
    """Axes of an elementwise result: tokens must stand in the same dim of every operand that has them."""
    out: list[Axis | None] = [None] * result.dim()
    for x in operands:
        for i, axis in enumerate(reversed(an.of(x)), start=1):
            out[-i] = _meet(out[-i], axis)
    return _place(tuple(out), "it")


def _no_size_as_number(node: Node) -> None:
    if n.size_inputs(node):
        raise Refusal("it computes with the number of tokens, which is another number in every step",
                      "make it depend on position_ids instead")


@_rule(*POINTWISE, "aten.type_as", "aten.fill", "aten.nan_to_num")
def _pointwise(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    _no_size_as_number(node)
    return _broadcast(an, list(n.tensor_inputs(node)), node.meta["val"])


@_rule("aten.alias", "aten.detach", "aten.contiguous", "aten.clone", "aten.lift_fresh_copy", "aten.lift_fresh",
       "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.dropout",
       "aten.native_dropout")
def _same(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return an.of(node.args[0])


# --- views

def regroup(axes: Axes, old: torch.Size, new: torch.Size) -> Axes:
    """Axes after a row-major reshape from `old` to `new`.

    Raises:
        Refusal: tokens would change places with the factors around them.
    """
    outer, inner, seen = 1, 1, False
    for axis, size in zip(axes, old, strict=True):
        if axis is not None:
            outer, inner, seen = outer * axis.outer, axis.inner, True
        elif seen:
            inner *= int(size)
        else:
            outer *= int(size)
    if not seen:
        return (None,) * len(new)
    out: list[Axis | None] = []
    before = 1
    for i, size in enumerate(new):
        if not n.is_symbolic(size):
            out.append(None)
            before *= int(size)
            continue
        after = 1
        for later in new[i + 1 :]:
            if n.is_symbolic(later):
                raise Refusal("its result has the number of tokens in two dims")
            after *= int(later)
        axis = Axis(outer // before, inner // after) if outer % before == 0 and inner % after == 0 else None
        if axis is None or axis.outer * axis.inner != n.tokens_in(size):
            raise Refusal(f"reshaping {list(old)} to {list(new)} mixes tokens with the dims around them")
        out.append(axis)
        before = outer
    return tuple(out)


@_rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as",
       "aten.reshape_as")
def _reshape(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x = node.args[0]
    return regroup(an.of(x), n.shape_of(x), n.shape_of(node))


@_rule("aten.unsqueeze")
def _unsqueeze(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = list(an.of(a["self"]))
    axes.insert(n.normal_dim(a["dim"], len(axes) + 1), None)
    return tuple(axes)


@_rule("aten.squeeze")
def _squeeze(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x = a["self"]
    shape = n.shape_of(x)
    dims = range(len(shape)) if a.get("dim") is None else [n.normal_dim(d, len(shape)) for d in n.as_list(a["dim"])]
    return tuple(axis for i, axis in enumerate(an.of(x)) if not (i in dims and n.same_size(shape[i], 1)))


def permutation(node: Node) -> list[int] | None:
    """The order of dims of a permute, transpose or t call: result dim i is dim order[i] of the operand."""
    x = node.args[0]
    ndim, name = n.rank(x), n.op_name(node)
    order = list(range(ndim))
    if name == "aten.permute":
        return [n.normal_dim(d, ndim) for d in node.args[1]]
    if name == "aten.transpose":
        i, j = n.normal_dim(node.args[1], ndim), n.normal_dim(node.args[2], ndim)
    elif name in ("aten.t", "aten.numpy_T", "aten.mT") and ndim <= 2:
        i, j = 0, ndim - 1
    elif name == "aten.mT":
        i, j = ndim - 2, ndim - 1
    elif name == "aten.numpy_T":
        return order[::-1]
    else:
        return None
    if ndim:
        order[i], order[j] = order[j], order[i]
    return order


@_rule("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.mT")
def _permute(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(node.args[0])
    return tuple(axes[d] for d in permutation(node) or [])


@_rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    out = list(_broadcast(an, [node.args[0]], node.meta["val"]))
    for i, size in enumerate(n.shape_of(node)):
        if n.is_symbolic(size) and out[i] is None:
            out[i] = Axis(1, n.tokens_in(size))  # one value for all tokens
    return _place(tuple(out), "it")


@_rule("aten.repeat")
def _repeat(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes, repeats = an.of(a["self"]), list(a["repeats"])
    axes = (None,) * (len(repeats) - len(axes)) + axes
    if any(not isinstance(r, int) for r in repeats):
        raise Refusal("it repeats as often as there are tokens")
    return tuple(Axis(x.outer * r, x.inner) if x else None for x, r in zip(axes, repeats, strict=True))


@_rule("aten.repeat_interleave")
def _repeat_interleave(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes, repeats = list(an.of(a["self"])), a.get("repeats")
    if not isinstance(repeats, int) or a.get("dim") is None:
        raise Refusal("it repeats a varying number of times")
    dim = n.normal_dim(a["dim"], len(axes))
    if axes[dim]:
        axes[dim] = Axis(axes[dim].outer, axes[dim].inner * repeats)
    return tuple(axes)


def is_whole_slice(node: Node) -> bool:
    """Whether a slice keeps all of its dim (whatever the number of tokens)."""
    a = n.bound(node)
    size = n.shape_of(a["self"])[a["dim"]]
    if a["step"] != 1 or a["start"] not in (None, 0):
        return False
    end = a["end"]
    if end is None or (isinstance(end, int) and end >= 2**62):
        return True
    return n.same_size(end.meta["val"] if isinstance(end, Node) else end, size)


@_rule("aten.slice")
def _slice(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    if axes[n.normal_dim(a["dim"], len(axes))] and not is_whole_slice(node):
        raise Refusal("it singles out tokens by their place in the batch")
    return axes


@_rule("aten.select")
def _select(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    dim = n.normal_dim(a["dim"], len(axes))
    if axes[dim]:
        raise Refusal("it singles out a token by its place in the batch")
    return axes[:dim] + axes[dim + 1 :]


@_rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unsafe_split",
       "aten.unsafe_chunk")
def _split(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(node.args[0])
    if axes[n.normal_dim(a.get("dim", 0), len(axes))]:
        raise Refusal("it cuts the tokens into parts")
    return tuple(axes for _ in node.meta["val"])


@_rule("aten.unbind")
def _unbind(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(node.args[0])
    dim = n.normal_dim(a.get("dim", 0), len(axes))
    if axes[dim]:
        raise Refusal("it takes the tokens apart")
    return tuple(axes[:dim] + axes[dim + 1 :] for _ in node.meta["val"])


@_rule("operator.getitem")
def _getitem(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    return an.axes.get(node.args[0], ())[node.args[1]]


@_rule("aten.cat", "aten.concat", "aten.concatenate", "aten.stack")
def _cat(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    parts = node.args[0]
    if n.op_name(node) == "aten.stack":
        dim = n.normal_dim(a.get("dim", 0), n.rank(parts[0]) + 1)
        kept = _broadcast(an, list(parts), parts[0].meta["val"])
        return kept[:dim] + (None,) + kept[dim:]
    out = _broadcast(an, list(parts), parts[0].meta["val"])
    if out[n.normal_dim(a.get("dim", 0), len(out))]:
        raise Refusal("it puts tokens behind tokens")
    return out


@_rule("aten.slice_scatter", "aten.select_scatter")
def _slice_scatter(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = list(an.of(a["self"]))
    dim = n.normal_dim(a["dim"], len(axes))
    part = list(an.of(a["src"]))
    if n.op_name(node) == "aten.select_scatter":
        part.insert(dim, None)
    if axes[dim] or part[dim]:
        raise Refusal("it writes to tokens by their place in the batch")
    return _place(tuple(_meet(x, y) for x, y in zip(axes, part, strict=True)), "it")


@_rule("aten.constant_pad_nd", "aten.pad")
def _pad(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    widths = list(a["pad"])
    for i in range(len(widths) // 2):
        if any(w != 0 for w in widths[2 * i : 2 * i + 2]) and axes[-1 - i]:
            raise Refusal("it pads or shifts the tokens")
    return axes


@_rule("aten.unfold")
def _unfold(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    if axes[n.normal_dim(a["dimension"], len(axes))]:
        raise Refusal("it makes windows over tokens")
    return (*axes, None)


@_rule("aten.view_as_complex")
def _view_as_complex(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return an.of(node.args[0])[:-1]


@_rule("aten.view_as_real")
def _view_as_real(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return (*an.of(node.args[0]), None)


# --- reductions, scans, orders

_REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "any", "all", "prod", "argmax", "argmin", "logsumexp", "std", "var",
    "var_mean", "std_mean", "linalg_vector_norm", "norm", "count_nonzero", "aminmax",
)  # fmt: skip


def reduced_dims(node: Node, a: dict[str, Any]) -> list[int]:
    """Dims that a reduction runs over."""
    ndim = n.rank(node.args[0])
    dim = a.get("dim", a.get("dims"))
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(ndim))
    return [n.normal_dim(d, ndim) for d in n.as_list(dim)]


@_rule(*(f"aten.{r}" for r in _REDUCTIONS))
def _reduce(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    if "other" in a:  # max.other, min.other
        return _pointwise(an, node, a)
    axes = an.of(node.args[0])
    dims = reduced_dims(node, a)
    if any(axes[d] for d in dims):
        raise Refusal("it reduces over tokens: every sequence of a batch would get into the result")
    keep = a.get("keepdim", False)
    out = tuple(axis for i, axis in enumerate(axes) if keep or i not in dims)
    value = node.meta["val"]
    return tuple(out for _ in value) if isinstance(value, (tuple, list)) else out


_ALONG = {
    "aten.softmax": "it normalises over tokens", "aten._softmax": "it normalises over tokens",
    "aten.log_softmax": "it normalises over tokens", "aten._log_softmax": "it normalises over tokens",
    "aten.topk": "it selects among tokens", "aten.sort": "it sorts tokens", "aten.argsort": "it sorts tokens",
    "aten.kthvalue": "it selects among tokens", "aten.cumsum": "it scans over tokens",
    "aten.cumprod": "it scans over tokens", "aten.logcumsumexp": "it scans over tokens",
    "aten.cummax": "it scans over tokens", "aten.cummin": "it scans over tokens", "aten.glu": "it halves the tokens",
    "aten.diff": "it compares neighbouring tokens",
}


@_rule(*_ALONG)
def _along(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(node.args[0])
    if axes and axes[n.normal_dim(a.get("dim", -1), len(axes))]:
        raise Refusal(_ALONG[n.op_name(node)] + ": every sequence of a batch would get into the result")
    value = node.meta["val"]
    return tuple(axes for _ in value) if isinstance(value, (tuple, list)) else axes


@_rule("aten.flip", "aten.roll")
def _flip(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    dims = a["dims"] or range(len(axes))
    if any(axes[n.normal_dim(d, len(axes))] for d in dims):
        raise Refusal("it moves tokens to other places")
    return axes


@_rule("aten.tril", "aten.triu")
def _triangle(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    if any(axes[-2:]):
        raise Refusal("it masks tokens by their place in the batch")
    return axes


# --- indexing

@_rule("aten.gather", "aten.scatter", "aten.scatter_add", "aten.scatter_reduce", "aten.take_along_dim")
def _gather(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    operands = [x for x in (a["self"], a.get("index", a.get("indices")), a.get("src"), a.get("value"))
                if isinstance(x, Node)]
    dim = n.normal_dim(a["dim"], n.rank(node))
    reads = n.is_op(node, "aten.gather", "aten.take_along_dim")  # of a table without tokens: one row for each token
    for x in operands[:1] if reads else operands:
        if an.of(x) and an.of(x)[dim]:
            raise Refusal("it picks tokens by index")
    out: Axes = (None,) * n.rank(node)
    for x in operands:
        if n.rank(x) == len(out):
            out = tuple(_meet(p, q) for p, q in zip(out, an.of(x), strict=True))
    return _place(out, "it")


@_rule("aten.index_select", "aten.embedding")
def _index_select(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    table, index = (a["weight"], a["indices"]) if "weight" in a else (a["self"], a["index"])
    dim = n.normal_dim(a.get("dim", 0), n.rank(table))
    axes = an.of(table)
    if axes[dim]:
        raise Refusal("it picks tokens by index")
    return _place(axes[:dim] + an.of(index) + axes[dim + 1 :], "it")


@_rule("aten.index")
def _index(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes, indices = an.of(a["self"]), list(a["indices"])
    used = [i for i, x in enumerate(indices) if x is not None]
    if any(axes[i] for i in used) or any(n.dtype_of(indices[i]) == torch.bool for i in used):
        raise Refusal("it picks tokens by index")
    if not used or used != list(range(used[0], used[-1] + 1)):
        raise Refusal("its indices are not next to each other", "write it with gather or index_select")
    shape = torch.broadcast_shapes(*(n.shape_of(indices[i]) for i in used))
    middle: list[Axis | None] = [None] * len(shape)
    for i in used:
        for j, axis in enumerate(reversed(an.of(indices[i])), start=1):
            middle[-j] = _meet(middle[-j], axis)
    return _place(axes[: used[0]] + tuple(middle) + axes[used[-1] + 1 :], "it")


@_rule("aten.one_hot")
def _one_hot(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return (*an.of(node.args[0]), None)


# --- products

@_rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def _matmul(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x, y = (an.of(v) for v in node.args[:2])
    if x[-1] or y[-2 if len(y) > 1 else -1]:
        raise Refusal("it sums over tokens: every sequence of a batch would get into the result")
    batch: list[Axis | None] = [None] * max(len(x) - 2, len(y) - 2, 0)
    for axes in (x[:-2], y[:-2]):
        for i, axis in enumerate(reversed(axes), start=1):
            batch[-i] = _meet(batch[-i], axis)
    rows = (x[-2],) if len(x) > 1 else ()
    columns = (y[-1],) if len(y) > 1 else ()
    return _place((*batch, *rows, *columns), "it")


@_rule("aten.addmm", "aten.baddbmm", "aten.addbmm")
def _addmm(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x, y = (an.of(v) for v in node.args[1:3])
    if x[-1] or y[-2]:
        raise Refusal("it sums over tokens: every sequence of a batch would get into the result")
    batch = tuple(_meet(p, q) for p, q in zip(x[:-2], y[:-2], strict=True))
    out = _place((*batch, x[-2], y[-1]), "it")
    for i, axis in enumerate(reversed(an.of(node.args[0])), start=1):
        out = (*out[: len(out) - i], _meet(out[-i], axis), *out[len(out) - i + 1 :])
    return _place(out, "it")


@_rule("aten.linear")
def _linear(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["input"])
    if axes[-1] or an.tokens(a["weight"]) or an.tokens(a["bias"]):
        raise Refusal("it sums over tokens: every sequence of a batch would get into the result")
    return (*axes[:-1], None)


@_rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def _norm(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(a["input"])
    if any(axes[len(axes) - len(a["normalized_shape"]) :]):
        raise Refusal("it normalises over tokens")
    if isinstance(node.meta["val"], (tuple, list)):
        return (axes, *(tuple(axes) for _ in node.meta["val"][1:]))
    return axes


# --- creation

@_rule("aten.full", "aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
       "aten.new_empty")
def _create(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    value = a.get("fill_value")
    if isinstance(value, Node) and not isinstance(value.meta["val"], torch.Tensor):
        _no_size_as_number(node)
    axes = tuple(Axis(1, n.tokens_in(s)) if n.is_symbolic(s) else None for s in n.shape_of(node))
    return _place(axes, "it")


@_rule("aten.arange", "aten.linspace")
def _arange(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    if n.size_inputs(node) or n.has_tokens(node):
        raise Refusal("it numbers the tokens of the whole batch, where each sequence counts from its own start",
                      "use the position_ids that the model is called with")
    return (None,)


@_rule("aten.scalar_tensor", "aten.rand", "aten.randn")
def _scalar(an: _Analysis, node: Node, a: dict[str, Any]) -> Axes:
    _no_size_as_number(node)
    return (None,) * n.rank(node)


# --- canonical ops

def _canonical(an: _Analysis, node: Node, a: dict[str, Any]) -> Any:
    op = op_of(node.target)
    assert op is not None
    if not op.in_program:
        raise Refusal("it stands for a mask or an attention that no canonical op expresses",
                      "such a model cannot be compiled yet")
    rows: Axis | None = None
    for name in op.operands:
        axes = an.of(a[name])
        if op.name == "expert_linear" and name == "x" and axes[0]:
            axes = (Axis(axes[0].outer, axes[0].inner * a["x_repeat"]), *axes[1:])
        if any(axes[1:]):
            if not op.mixes_tokens and op.name in _LAST_DIM_OPS and not axes[-1]:
                continue
            raise Refusal(f"its operand {name} has tokens in another dim than the first")
        if op.mixes_tokens and axes and axes[0] and axes[0] != TOKENS:
            raise Refusal(f"its operand {name} has more rows than tokens")
        rows = _meet(rows, axes[0] if axes else None)
    value = node.meta["val"]
    outs = []
    for v in value if isinstance(value, (tuple, list)) else (value,):
        if op.name in _LAST_DIM_OPS:
            lead = an.of(a[op.operands[0]])
            outs.append((lead if op.name == "embedding" else lead[:-1]) + (None,))
        else:
            outs.append((rows, *(None,) * (v.dim() - 1)))
    return tuple(outs) if isinstance(value, (tuple, list)) else outs[0]


_LAST_DIM_OPS = ("linear", "rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "embedding")


def step(an: _Analysis, node: Node) -> Any:
    """Axes of one more node, whose operands are known.

    Raises:
        TransformError: the node mixes tokens, naming it and the model's line.
    """
    value = node.meta.get("val")
    if node.op == "placeholder":
        result: Any = tuple(TOKENS if n.is_symbolic(s) else None for s in value.shape)
    elif node.op == "output" or not isinstance(value, (torch.Tensor, tuple, list)):
        result = ()
    else:
        name = n.op_name(node)
        a = n.bound(node) if hasattr(node.target, "_schema") else {}
        try:
            if op_of(node.target) is not None:
                result = _canonical(an, node, a)
            elif name in _RULES:
                result = _RULES[name](an, node, a)
            elif n.has_tokens(node) or any(n.has_tokens(x) for x in node.all_input_nodes):
                if name.startswith("autodeploy."):
                    result = _fused(an, node)
                else:
                    raise Refusal("it is not known whether this op treats tokens one by one",
                                  "add a rule for it to the proof, and a kernel")
            else:
                result = _constant(value)
        except Refusal as refusal:
            raise refuse("token axis", node, refusal.reason, refusal.remedy) from None
        except ValueError as error:
            if isinstance(error, TransformError):
                raise
            remedy = "reshape by constant factors of the number of tokens"
            raise refuse("token axis", node, str(error), remedy) from None
    an.axes[node] = result
    return result


def _constant(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_constant(v) for v in value)
    return (None,) * value.dim()


def _fused(an: _Analysis, node: Node) -> Any:
    """A fused region: its inputs broadcast to one shape."""
    value = node.meta["val"]
    values = value if isinstance(value, (tuple, list)) else (value,)
    axes = _broadcast(an, list(n.tensor_inputs(node)), values[0])
    return tuple(axes for _ in values) if isinstance(value, (tuple, list)) else axes


def token_axes(graph: Graph) -> dict[Node, Any]:
    """Axes of every value of a graph: a tuple per tensor (None or an Axis per dim), a tuple of those per tuple.

    Raises:
        TransformError: an op outside the canonical mixers mixes tokens.
    """
    an = _Analysis()
    for node in graph.nodes:
        step(an, node)
    return an.axes


class ProveTokenAxis(Transform):
    """Proves that only canonical mixers mix tokens; changes nothing.

    1. Every value has tokens in at most one dim, and every op outside the mixers keeps them apart (`token_axes`).
    2. Every output has its tokens in the first dim.
    """

    name = "prove_token_axis"

    def run(self, ir: ModelIR) -> bool:
        axes = token_axes(ir.graph)
        for name, node in zip(ir.outputs, ir.output_nodes(), strict=True):
            if not axes[node] or axes[node][0] != TOKENS:
                raise TransformError(f"[token axis] expected the output {name} as [T, ...], found {n.shape_of(node)}")
        mixers = sum(1 for x in ir.graph.nodes if (op := op_of(x.target)) is not None and op.mixes_tokens)
        ir.metadata["token_axis"] = {"nodes": len(axes), "mixers": mixers}
        return False


assert all(name in OPS for name in _LAST_DIM_OPS)
