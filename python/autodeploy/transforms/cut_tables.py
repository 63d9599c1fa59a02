"""Tables that a model cuts to the number of tokens are read at the tokens' positions."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten
from .rewrite import Rewriter, erase_dead, replace


class CutTables(Transform):
    """Reads what no token made, cut to its first rows, at `positions`.

    1. table[:T] (along any dim) of a value without tokens is index_select(table, dim, positions): row i is that of the
       i-th token of the one sequence that was captured, so a token's row is that of its place in its own sequence.
    2. The same cut from a number c on, table[c : T + c], reads at `positions` + c.

    Constant masks, which are cut along two dims, are attention's (`raise_attention`) and gone before.
    """

    name = "cut_tables"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.slice"):
            first = _first_row(node)
            if first is None:
                continue
            positions = ir.input("positions")
            if first:
                positions = rewriter.call(aten.add.Tensor, positions, first, like=node, before=node)
            a = n.bound(node)
            dim = n.normal_dim(a["dim"], n.rank(node))
            replace(node, rewriter.call(aten.index_select.default, a["self"], dim, positions, like=node, before=node))
            changed = True
        return bool(erase_dead(ir.graph)) or changed


def _first_row(node: Node) -> int | None:
    """The row from which a table without tokens is cut to one row per token; None of any other slice."""
    a = n.bound(node)
    table = a["self"]
    dim = n.normal_dim(a["dim"], n.rank(node))
    size = n.shape_of(node)[dim]
    if n.has_tokens(table) or not n.is_symbolic(size) or n.tokens_in(size) != 1 or a["step"] != 1:
        return None
    if any(n.op_name(user) == "aten.slice" and not n.same_shape(user, node) for user in node.users):
        return None  # cut along another dim, too: it pairs tokens
    start = a["start"] or 0
    return start if isinstance(start, int) and start >= 0 else None
