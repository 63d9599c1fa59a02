"""Computes equal things once."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .rewrite import erase_dead, replace

_COMMUTES = {
    "aten.add", "aten.mul", "aten.maximum", "aten.minimum", "aten.eq", "aten.ne", "aten.logical_and",
    "aten.logical_or", "aten.bitwise_and", "aten.bitwise_or", "aten.bitwise_xor",
}  # fmt: skip


class CommonSubexpressions(Transform):
    """Keeps the first of several equal calls.

    1. Calls are equal when operator and arguments are; of operators that commute, in either order.
    2. Token mixers stay apart: each has a state of its own. Random numbers stay apart.
    """

    name = "common_subexpressions"

    def run(self, ir: ModelIR) -> bool:
        known: dict[Any, Node] = {}
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or not _is_pure(node):
                continue
            key = (node.target, _key(_ordered(node)), _key(node.kwargs))
            first = known.setdefault(key, node)
            if first is not node:
                replace(node, first)
                changed = True
        if changed:
            erase_dead(ir.graph)
        return changed


def _is_pure(node: Node) -> bool:
    return not n.mixes_tokens(node) and "rand" not in n.op_name(node)


def _ordered(node: Node) -> tuple[Any, ...]:
    args = node.args
    if n.op_name(node) in _COMMUTES and len(args) == 2 and isinstance(args[0], Node) and isinstance(args[1], Node):
        return tuple(sorted(args, key=id))
    return args


def _key(x: Any) -> Any:
    if isinstance(x, Node):
        return ("node", id(x))
    if isinstance(x, (list, tuple)):
        return tuple(_key(y) for y in x)
    if isinstance(x, dict):
        return tuple((k, _key(v)) for k, v in sorted(x.items()))
    return (type(x).__name__, repr(x) if isinstance(x, float) else x)
