"""Attention whose mask or bias capture could not tell by attributes becomes `attention` where they can be told now."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from ..ops import OPS
from . import nodes as n
from .attention_masks import MaskKind, mask_kind
from .attention_terms import Terms, read_added, slopes_of, table_of
from .base import Transform
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace


class RaiseMaskedAttention(Transform):
    """Reads the mask, the bias and the sinks of `masked_attention`.

    1. A boolean mask is one of `attention_masks`; what is added to scores is one of `attention_terms`: masks in
       numbers, slopes over keys, a table read by distance.
    2. Sinks of every token are turned tokens first.
    3. What does not fit, and lists of keys (which are made from pairs of tokens), stay for `write_out_attention`.
    """

    name = "raise_masked_attention"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "autodeploy.masked_attention"):
            made = _attention(rewriter, node)
            if made is not None:
                replace(node, made)
                changed = True
        return bool(erase_dead(ir.graph)) or changed


def _attention(r: Rewriter, node: Node) -> Node | None:
    a = OPS["masked_attention"].bind(node.args, node.kwargs)
    mask, bias, sinks, heads = a["mask"], a["bias"], a["sinks"], int(n.shape_of(a["q"])[1])
    if a["indices"] is not None:
        return None
    terms = Terms()
    if mask is None:
        terms.kinds.append(MaskKind(bool(a["causal"]), int(a["window"])))
    elif n.dtype_of(mask).is_floating_point:
        if not read_added(r, mask, terms, 1.0, node):
            return None
    else:
        kind = mask_kind(r.ir, mask)
        if kind is None:
            return None
        terms.kinds.append(kind)
        if a["causal"] or a["window"]:
            terms.kinds.append(MaskKind(bool(a["causal"]), int(a["window"])))
    if bias is not None and not read_added(r, bias, terms, 1.0, node):
        return None
    kind = terms.merged()
    if kind is None or not kind.causal or kind.window < 0:  # later tokens: refused where it is written out
        return None
    slopes, table = slopes_of(r, terms, heads, node), table_of(r, terms, heads, node)
    if (terms.slopes and slopes is None) or (terms.tables and table is None):
        return None
    if sinks is not None and n.rank(sinks) == 2:
        sinks = r.call(aten.permute.default, sinks, [1, 0], like=node, before=node)
    operands = (a["q"], a["k"], a["v"], sinks, slopes, table, None)
    attributes = (a["scale"], kind.causal, kind.window, kind.chunk, a["softcap"])
    return r.call(canonical.attention.default, *operands, *attributes, like=node, before=node)
