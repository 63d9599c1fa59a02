"""A cat of cats is one cat."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .rewrite import erase_dead


class FlattenCats(Transform):
    """Joins values in one go. Runs after blocks were raised: some are recognised by a cat of their own.

    1. A cat that only another cat along the same dim reads gives its parts to that one.
    """

    name = "flatten_cats"

    def run(self, ir: ModelIR) -> bool:
        changed = False
        for node in n.calls(ir.graph, "aten.cat"):
            parts: list[Node] = []
            for x in node.args[0]:
                nested = n.is_op(x, "aten.cat") and len(x.users) == 1 and x.args[1] == node.args[1]
                parts.extend(x.args[0] if nested else [x])
            if len(parts) != len(node.args[0]):
                node.args = (parts, node.args[1])
                changed = True
        if changed:
            erase_dead(ir.graph)
        return changed
