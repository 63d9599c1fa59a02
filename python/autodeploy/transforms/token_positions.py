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
    """

    name = "token_positions"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.arange"):
            if not _counts_tokens(node, ir.input("token_ids")):
                continue
            positions = ir.input("positions")
            if n.dtype_of(node) != n.dtype_of(positions):
                positions = rewriter.call(aten.to.dtype, positions, n.dtype_of(node), like=node, before=node)
            replace(node, positions)
            changed = True
        return bool(erase_dead(ir.graph)) or changed


def _counts_tokens(node: Node, token_ids: Node) -> bool:
    a = n.bound(node)
    shape = n.shape_of(node)
    if not n.is_symbolic(shape[0]) or not n.same_size(shape[0], n.shape_of(token_ids)[0]):
        return False
    return a.get("start", 0) in (0, None) and a.get("step", 1) in (1, None)
