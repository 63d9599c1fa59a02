"""Rules of the token axis for arithmetic, views and creation."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from . import nodes as n
from .axes import Analysis, Axes, Axis, Refusal, broadcast, meet, no_size_as_number, place, regroup, rule
from .pointwise import POINTWISE


@rule(*POINTWISE, "aten.type_as", "aten.fill", "aten.nan_to_num")
def pointwise(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    no_size_as_number(node)
    return broadcast(an, list(n.tensor_inputs(node)), node.meta["val"])


@rule("aten.alias", "aten.detach", "aten.contiguous", "aten.clone", "aten.lift_fresh_copy", "aten.lift_fresh",
       "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.dropout",
       "aten.native_dropout")
def _same(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    no_size_as_number(node)
    return an.of(node.args[0])


# --- views

@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as",
       "aten.reshape_as")
def _reshape(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x = node.args[0]
    return regroup(an.of(x), n.shape_of(x), n.shape_of(node))


@rule("aten.unsqueeze")
def _unsqueeze(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = list(an.of(a["self"]))
    axes.insert(n.normal_dim(a["dim"], len(axes) + 1), None)
    return tuple(axes)


@rule("aten.squeeze")
def _squeeze(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    x = a["self"]
    shape = n.shape_of(x)
    dims = range(len(shape)) if a.get("dim") is None else [n.normal_dim(d, len(shape)) for d in n.as_list(a["dim"])]
    return tuple(axis for i, axis in enumerate(an.of(x)) if not (i in dims and n.same_size(shape[i], 1)))


@rule("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.mT")
def _permute(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(node.args[0])
    return tuple(axes[d] for d in n.permutation(node) or [])


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    out = list(broadcast(an, [node.args[0]], node.meta["val"]))
    for i, size in enumerate(n.shape_of(node)):
        if n.is_symbolic(size) and out[i] is None:
            out[i] = Axis(1, n.tokens_in(size))  # one value for all tokens
    return place(tuple(out))


@rule("aten.broadcast_tensors")
def _broadcast_tensors(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = broadcast(an, list(a["tensors"]), node.meta["val"][0])
    return tuple(axes for _ in node.meta["val"])


@rule("aten.repeat")
def _repeat(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes, repeats = an.of(a["self"]), list(a["repeats"])
    axes = (None,) * (len(repeats) - len(axes)) + axes
    if any(not isinstance(r, int) for r in repeats):
        raise Refusal("it repeats as often as there are tokens")
    return tuple(Axis(x.outer * r, x.inner) if x else None for x, r in zip(axes, repeats, strict=True))


@rule("aten.repeat_interleave")
def _repeat_interleave(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes, repeats = list(an.of(a["self"])), a.get("repeats")
    if not isinstance(repeats, int) or a.get("dim") is None:
        raise Refusal("it repeats a varying number of times")
    dim = n.normal_dim(a["dim"], len(axes))
    if axes[dim]:
        axes[dim] = Axis(axes[dim].outer, axes[dim].inner * repeats)
    return tuple(axes)


@rule("aten.slice")
def _slice(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    if axes[n.normal_dim(a["dim"], len(axes))] and not n.is_whole_slice(node):
        raise Refusal("it singles out tokens by their place in the batch")
    if any(axis is None and n.is_symbolic(size) for axis, size in zip(axes, n.shape_of(node), strict=True)):
        raise Refusal("it cuts a table to the number of tokens of the whole batch",
                      "read the table at the position_ids that the model is called with")
    return axes


@rule("aten.select")
def _select(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    dim = n.normal_dim(a["dim"], len(axes))
    if axes[dim]:
        raise Refusal("it singles out a token by its place in the batch")
    return axes[:dim] + axes[dim + 1 :]


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unsafe_split",
       "aten.unsafe_chunk")
def _split(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(node.args[0])
    if axes[n.normal_dim(a.get("dim", 0), len(axes))]:
        raise Refusal("it cuts the tokens into parts")
    return tuple(axes for _ in node.meta["val"])


@rule("aten.unbind")
def _unbind(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    axes = an.of(node.args[0])
    dim = n.normal_dim(a.get("dim", 0), len(axes))
    if axes[dim]:
        raise Refusal("it takes the tokens apart")
    return tuple(axes[:dim] + axes[dim + 1 :] for _ in node.meta["val"])


@rule("operator.getitem")
def _getitem(an: Analysis, node: Node, a: dict[str, Any]) -> Any:
    return an.axes.get(node.args[0], ())[node.args[1]]


@rule("aten.cat", "aten.concat", "aten.concatenate", "aten.stack")
def _cat(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    parts = node.args[0]
    if n.op_name(node) == "aten.stack":
        dim = n.normal_dim(a.get("dim", 0), n.rank(parts[0]) + 1)
        kept = broadcast(an, list(parts), parts[0].meta["val"])
        return kept[:dim] + (None,) + kept[dim:]
    out = broadcast(an, list(parts), parts[0].meta["val"])
    if out[n.normal_dim(a.get("dim", 0), len(out))]:
        raise Refusal("it puts tokens behind tokens")
    return out


@rule("aten.slice_scatter", "aten.select_scatter")
def _slice_scatter(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = list(an.of(a["self"]))
    dim = n.normal_dim(a["dim"], len(axes))
    part = list(an.of(a["src"]))
    if n.op_name(node) == "aten.select_scatter":
        part.insert(dim, None)
    if axes[dim] or part[dim]:
        raise Refusal("it writes to tokens by their place in the batch")
    return place(tuple(meet(x, y) for x, y in zip(axes, part, strict=True)))


@rule("aten.constant_pad_nd", "aten.pad")
def _pad(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    widths = list(a["pad"])
    for i in range(len(widths) // 2):
        if any(w != 0 for w in widths[2 * i : 2 * i + 2]) and axes[-1 - i]:
            raise Refusal("it pads or shifts the tokens")
    return axes


@rule("aten.unfold")
def _unfold(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    axes = an.of(a["self"])
    if axes[n.normal_dim(a["dimension"], len(axes))]:
        raise Refusal("it makes windows over tokens")
    return (*axes, None)


@rule("aten.view_as_complex")
def _view_as_complex(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return an.of(node.args[0])[:-1]


@rule("aten.view_as_real")
def _view_as_real(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    return (*an.of(node.args[0]), None)


# --- creation

@rule("aten.full", "aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
       "aten.new_empty")
def _create(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    value = a.get("fill_value")
    if isinstance(value, Node) and not isinstance(value.meta["val"], torch.Tensor):
        no_size_as_number(node)
    axes = tuple(Axis(1, n.tokens_in(s)) if n.is_symbolic(s) else None for s in n.shape_of(node))
    return place(axes)


@rule("aten.arange", "aten.linspace")
def _arange(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    if n.size_inputs(node) or n.has_tokens(node):
        raise Refusal("it numbers the tokens of the whole batch, where each sequence counts from its own start",
                      "use the position_ids that the model is called with")
    return (None,)


@rule("aten.scalar_tensor", "aten.rand", "aten.randn")
def _scalar(an: Analysis, node: Node, a: dict[str, Any]) -> Axes:
    no_size_as_number(node)
    return (None,) * n.rank(node)
