"""Rules of the token axis for reductions, scans, indexing and products."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from . import nodes as n
from .axes import Analysis, Axes, Axis, Refusal, meet, place, rule
from .axis_rules_views import pointwise

# --- reductions, scans, orders

_REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "any", "all", "prod", "argmax", "argmin", "logsumexp", "std", "var",
    "var_mean", "std_mean", "linalg_vector_norm", "norm", "count_nonzero", "aminmax",
)  # fmt: skip


@rule(*(f"aten.{r}" for r in _REDUCTIONS))
def _reduce(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    if "other" in a:  # max.other, min.other
        return pointwise(an, node, a)
    axes = an.of(node.args[0])
    dims = n.reduced_dims(node, a)
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


@rule(*_ALONG)
def _along(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(node.args[0])
    if axes and axes[n.normal_dim(a.get("dim", -1), len(axes))]:
        raise Refusal(_ALONG[n.op_name(node)] + ": every sequence of a batch would get into the result")
    value = node.meta["val"]
    return tuple(axes for _ in value) if isinstance(value, (tuple, list)) else axes


@rule("aten.flip", "aten.roll")
def _flip(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    dims = a["dims"] or range(len(axes))
    if any(axes[n.normal_dim(d, len(axes))] for d in dims):
        raise Refusal("it moves tokens to other places")
    return axes


@rule("aten.tril", "aten.triu")
def _triangle(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    if any(axes[-2:]):
        raise Refusal("it masks tokens by their place in the batch")
    return axes


# --- indexing

@rule("aten.gather", "aten.scatter", "aten.scatter_add", "aten.scatter_reduce", "aten.take_along_dim")
def _gather(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
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
            out = tuple(meet(p, q) for p, q in zip(out, an.of(x), strict=True))
    return place(out)


@rule("aten.index_select", "aten.embedding")
def _index_select(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    table, index = (a["weight"], a["indices"]) if "weight" in a else (a["self"], a["index"])
    dim = n.normal_dim(a.get("dim", 0), n.rank(table))
    axes = an.of(table)
    if axes[dim]:
        raise Refusal("it picks tokens by index")
    return place(axes[:dim] + an.of(index) + axes[dim + 1 :])


@rule("aten.index")
def _index(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
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
            middle[-j] = meet(middle[-j], axis)
    return place(axes[: used[0]] + tuple(middle) + axes[used[-1] + 1 :])


@rule("aten.one_hot")
def _one_hot(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return (*an.of(node.args[0]), None)


# --- products

@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def _matmul(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x, y = (an.of(v) for v in node.args[:2])
    if x[-1] or y[-2 if len(y) > 1 else -1]:
        raise Refusal("it sums over tokens: every sequence of a batch would get into the result")
    batch: list[Axis | None] = [None] * max(len(x) - 2, len(y) - 2, 0)
    for axes in (x[:-2], y[:-2]):
        for i, axis in enumerate(reversed(axes), start=1):
            batch[-i] = meet(batch[-i], axis)
    rows = (x[-2],) if len(x) > 1 else ()
    columns = (y[-1],) if len(y) > 1 else ()
    return place((*batch, *rows, *columns))


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm")
def _addmm(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x, y = (an.of(v) for v in node.args[1:3])
    if x[-1] or y[-2]:
        raise Refusal("it sums over tokens: every sequence of a batch would get into the result")
    batch = tuple(meet(p, q) for p, q in zip(x[:-2], y[:-2], strict=True))
    out = place((*batch, x[-2], y[-1]))
    for i, axis in enumerate(reversed(an.of(node.args[0])), start=1):
        out = (*out[: len(out) - i], meet(out[-i], axis), *out[len(out) - i + 1 :])
    return place(out)


@rule("aten.linear")
def _linear(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["input"])
    if axes[-1] or an.tokens(a["weight"]) or an.tokens(a["bias"]):
        raise Refusal("it sums over tokens: every sequence of a batch would get into the result")
    return (*axes[:-1], None)


@rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def _norm(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(a["input"])
    if any(axes[len(axes) - len(a["normalized_shape"]) :]):
        raise Refusal("it normalises over tokens")
    if isinstance(node.meta["val"], (tuple, list)):
        return (axes, *(tuple(axes) for _ in node.meta["val"][1:]))
    return axes
