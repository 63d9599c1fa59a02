"""Attention that reads nothing but an opaque mask takes over what the mask says."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from autodeploy.ops import OPS

from .errors import CaptureError

# Calls that keep a [T, T] mask what it is, up to dims of size 1.
_RESHAPES = {
    "alias", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "reshape", "slice", "squeeze", "to",
    "_to_copy", "type_as", "unsqueeze", "view", "view_as",
}  # fmt: skip
_ONES = {"ones", "ones_like", "new_ones"}


def fold_masks(graph: Graph) -> None:
    """`masked_attention` becomes `attention` wherever the mask, if any, is a mask node unchanged by the model.

    A list of keys goes along. What is left (a changed mask, a bias from content) stays `masked_attention`.

    Raises:
        CaptureError: a mask under which tokens see nothing is read by attention.
    """
    masked = OPS["masked_attention"]
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not masked.torch_op:
            continue
        a = masked.bind(node.args, node.kwargs)
        if a["bias"] is not None:
            continue
        sinks = a["sinks"]
        if sinks is not None and sinks.meta["val"].dim() != 1:
            continue
        kind = _kind(a)
        if kind is None or (a["indices"] is not None and not kind["causal"]):
            continue
        if kind["window"] < 0:
            raise CaptureError(f"[attention] expected a positive window, found 0 at {node.meta.get('source')}")
        attributes = (a["scale"], kind["causal"], kind["window"], kind["chunk"], a["softcap"])
        with graph.inserting_before(node):
            operands = (a["q"], a["k"], a["v"], sinks, None, None, a["indices"])
            new = graph.call_function(OPS["attention"].torch_op, (*operands, *attributes))
        new._rename("attention")
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, propagate_meta=False)
        graph.erase_node(node)


def _kind(a: dict[str, Any]) -> dict[str, Any] | None:
    if a["mask"] is None:
        return {"causal": a["causal"], "window": a["window"], "chunk": 0}
    node = _origin(a["mask"])
    if node is None or a["causal"] or a["window"]:
        return None
    mask = OPS["mask"].bind(node.args, node.kwargs)
    if mask["padding"] is not None and not _is_ones(mask["padding"]):
        return None
    return {k: mask[k] for k in ("causal", "window", "chunk")}


def _op_name(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return node.target._schema.name.removeprefix("aten::")
    return ""


def _origin(node: Node) -> Node | None:
    """The mask node of which `node` is a reshaping that keeps all of it."""
    while True:
        if node.op == "call_function" and node.target is OPS["mask"].torch_op:
            return node
        value = node.meta.get("val")
        if _op_name(node) not in _RESHAPES or not isinstance(value, torch.Tensor) or value.dtype != torch.bool:
            return None
        before = node.args[0]
        if not isinstance(before, Node) or _without_ones(before) != _without_ones(node):
            return None
        node = before


def _without_ones(node: Node) -> list[str]:
    return [str(n) for n in node.meta["val"].shape if not isinstance(n, int) or n != 1]


def _is_ones(node: Node) -> bool:
    """Whether every element is 1 or True, by how it was made."""
    name = _op_name(node)
    if name in _ONES:
        return True
    if name in ("full", "new_full", "full_like"):
        return node.args[-1] in (1, True)
    return name in _RESHAPES and isinstance(node.args[0], Node) and _is_ones(node.args[0])
