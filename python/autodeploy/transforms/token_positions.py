"""Positions that a model counts itself become the step's positions."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten
from .rewrite import Rewriter, erase_dead, replace


class TokenPositions(Transform):
    """Reads `positions` where the model numbers its tokens.

    1. arange(T), counting 0, 1, ... over the tokens of the one sequence that was captured, is `positions`: a token's
       place in its own sequence, whoever else is in the batch. Where a model uses it as a place in a tensor of tokens,
       the proof of the token axis refuses it still.
    2. arange(c, T + c) with a number c is `positions` + c.
    """

    name = "token_positions"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.arange"):
            first = _first_of_count(node, ir.input("token_ids"))
            if first is None:
                continue
            positions = ir.input("positions")
            if first:
                positions = rewriter.call(aten.add.Tensor, positions, first, like=node, before=node)
            if n.dtype_of(node) != n.dtype_of(positions):
                positions = rewriter.call(aten.to.dtype, positions, n.dtype_of(node), like=node, before=node)
            replace(node, positions)
            changed = True
        return bool(erase_dead(ir.graph)) or changed


def _first_of_count(node: Node, token_ids: Node) -> int | None:
    """The first number of a range that counts the tokens one by one from a number; None of any other range."""
    a = n.bound(node)
    shape = n.shape_of(node)
    if not n.is_symbolic(shape[0]) or not n.same_size(shape[0], n.shape_of(token_ids)[0]):
        return None
    start = a.get("start") or 0
    return start if isinstance(start, int) and a.get("step", 1) in (1, None) else None
