"""PyTorch's own attention function becomes an attention over tokens whose mask is to be understood."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .forms import sizes
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace


class NameAttention(Transform):
    """Replaces aten.scaled_dot_product_attention of q [1, Hq, T, D], k [1, Hkv, T, D], v [1, Hkv, T, Dv].

    1. It is `masked_attention` with its mask and scale; fewer key heads need no repeating (`enable_gqa`).
    2. Other dims than these stay, and the proof of the token axis refuses them with their line.
    """

    name = "name_attention"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.scaled_dot_product_attention"):
            made = _named(rewriter, node)
            if made is not None:
                replace(node, made)
                changed = True
        return bool(erase_dead(ir.graph)) or changed


def _named(r: Rewriter, node: Node) -> Node | None:
    a = n.bound(node)
    operands = [a["query"], a["key"], a["value"]]
    tokens = n.shape_of(r.ir.input("token_ids"))[0]
    for x in operands:
        shape = n.shape_of(x)
        if len(shape) != 4 or not n.same_size(shape[0], 1) or n.is_symbolic(shape[1]):
            return None
        if not n.same_size(shape[2], tokens) or n.is_symbolic(shape[3]):
            return None
    if a["dropout_p"]:
        return None

    def call(target: object, *args: object) -> Node:
        return r.call(target, *args, like=node, before=node)

    q, k, v = (call(aten.permute.default, call(aten.squeeze.dims, x, [0]), [1, 0, 2]) for x in operands)
    mask = a["attn_mask"]
    if mask is not None:
        shape = n.shape_of(mask)
        while len(shape) > 3:
            if not n.same_size(shape[0], 1):
                return None
            mask = call(aten.squeeze.dims, mask, [0])
            shape = n.shape_of(mask)
    scale = a["scale"] if a["scale"] is not None else int(n.shape_of(operands[0])[3]) ** -0.5
    made = call(
        canonical.masked_attention.default, q, k, v, mask, None, None, None, float(scale), bool(a["is_causal"]), 0, 0.0
    )
    made.meta["via"] = "pattern"
    made = call(aten.permute.default, made, [1, 0, 2])
    return call(aten.reshape.default, made, sizes(n.shape_of(node)))
