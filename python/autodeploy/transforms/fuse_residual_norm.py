"""A residual addition and the normalisation of its sum become one op."""

from __future__ import annotations

import operator

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import canonical
from .rewrite import Rewriter, erase_dead, replace


class FuseResidualNorm(Transform):
    """add and rms_norm (layer_norm) become add_rms_norm (add_layer_norm), which gives both the norm and the sum.

    1. The sum must be a plain addition of two values of the same shape and dtype that have tokens.
    2. Weight and bias of the norm are parameters (they are there before the sum is).
    3. Where several norms read one sum, the first one is fused; the others read the sum.
    """

    name = "fuse_residual_norm"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "autodeploy.rms_norm", "autodeploy.layer_norm"):
            total = node.args[0]
            if not _is_residual(total) or any(x is not None and x.op != "placeholder" for x in _vectors(node)):
                continue
            x, residual = total.args
            if _depth_hint(x) > _depth_hint(residual):
                x, residual = residual, x
            fused = canonical.add_rms_norm if n.is_op(node, "autodeploy.rms_norm") else canonical.add_layer_norm
            pair = rewriter.call(fused.default, x, residual, *node.args[1:], like=node, before=total)
            normed = rewriter.call(operator.getitem, pair, 0, like=node, before=total)
            summed = rewriter.call(operator.getitem, pair, 1, like=total, before=total)
            replace(node, normed)
            replace(total, summed)
            ir.graph.erase_node(node)
            ir.graph.erase_node(total)
            changed = True
        if changed:
            erase_dead(ir.graph)
        return changed


def _vectors(node: Node) -> list[Node | None]:
    return list(node.args[1 : 2 if n.is_op(node, "autodeploy.rms_norm") else 3])  # type: ignore[arg-type]


def _is_residual(total: Node) -> bool:
    if not n.is_op(total, "aten.add") or total.kwargs or len(total.args) != 2:
        return False
    x, y = total.args
    if not (n.is_tensor(x) and n.is_tensor(y)) or x is y:
        return False
    same = n.same_shape(x, y) and n.same_shape(x, total) and n.has_tokens(x) and n.has_tokens(y)
    return same and n.dtype_of(x) == n.dtype_of(y) == n.dtype_of(total)


def _depth_hint(x: Node) -> int:
    """1 for a value that looks like the residual stream: a sum itself, or read by more than this addition."""
    return int(len(x.users) > 1 or n.is_op(x, "aten.add", n.GETITEM))
