"""A depthwise convolution that looks back over tokens becomes `causal_conv1d`."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace


class RaiseConvolution(Transform):
    """Finds causal depthwise convolutions over the tokens of [1, C, T].

    1. conv1d with K - 1 zeros before the tokens (padded by the call itself, and then cut to its first T results; or by
       constant_pad_nd in front of it), stride and dilation 1 and a group per channel.
    2. A silu that alone reads the result is the op's activation.
    """

    name = "raise_convolution"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.conv1d"):
            a = n.bound(node)
            width = n.last_size(a["weight"])
            if width is None or not _is_depthwise(a):
                continue
            x, last = a["input"], node
            padding = n.as_list(a["padding"])
            if padding == [width - 1] and width > 1:
                cut = n.only_user(node)
                if cut is None or not _keeps_first(cut, x):
                    continue
                last = cut
            elif padding == [0] and n.is_op(x, "aten.constant_pad_nd", "aten.pad") and _pads_before(x, width - 1):
                x = x.args[0]
            else:
                continue
            if len(n.shape_of(x)) != 3 or not n.same_size(n.shape_of(x)[0], 1) or n.has_tokens(a["weight"]):
                continue
            _emit(rewriter, x, a, last)
            changed = True
        return bool(erase_dead(ir.graph)) or changed


def _is_depthwise(a: dict[str, Any]) -> bool:
    weight = n.shape_of(a["weight"])
    channels = n.shape_of(a["input"])[-2]
    plain = n.as_list(a["stride"]) == [1] and n.as_list(a["dilation"]) == [1]
    return plain and a["groups"] == channels == weight[0] and weight[1] == 1


def _keeps_first(node: Node, x: Node) -> bool:
    """Whether a call cuts to as many results, from the first, as x has tokens."""
    if not n.is_op(node, "aten.slice") or not n.same_size(n.shape_of(node)[-1], n.shape_of(x)[-1]):
        return False
    a = n.bound(node)
    return n.normal_dim(a["dim"], n.rank(node)) == n.rank(node) - 1 and a["start"] in (None, 0) and a["step"] == 1


def _pads_before(node: Node, count: int) -> bool:
    a = n.bound(node)
    widths = list(a["pad"])
    zeros = a.get("mode", "constant") == "constant" and not a["value"]
    return zeros and widths[:2] == [count, 0] and not any(widths[2:])


def _emit(r: Rewriter, x: Node, a: dict[str, Any], last: Node) -> None:
    weight, activation = a["weight"], ""
    user = n.only_user(last)
    if n.is_op(user, "aten.silu"):
        last, activation = user, "silu"  # type: ignore[assignment]

    def call(target: Any, *args: Any) -> Node:
        return r.call(target, *args, like=last, before=last)

    tokens = call(aten.permute.default, call(aten.squeeze.dims, x, [0]), [1, 0])
    out = call(canonical.causal_conv1d.default, tokens, call(aten.squeeze.dims, weight, [1]), a["bias"], activation)
    out.meta["via"] = "pattern"
    replace(last, call(aten.unsqueeze.default, call(aten.permute.default, out, [1, 0]), 0))
