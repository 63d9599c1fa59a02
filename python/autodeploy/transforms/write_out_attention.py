"""Attention whose mask no attribute says is written out, for `raise_over_keys` to take up."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..ir import ModelIR
from ..ops import OPS
from . import nodes as n
from .base import Transform
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace


class WriteOutAttention(Transform):
    """Replaces `masked_attention`, which exists only to be understood, by what it computes.

    1. scores = q @ k^T * scale in float32, capped, with the bias, the mask and the index list applied; the softmax of
       it, a sink being one more term of its sum; the product with v, rounded once.
    2. Query heads that share a key head are rows of one product, so that keys and values are read as they are.
    """

    name = "write_out_attention"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        found = n.calls(ir.graph, "autodeploy.masked_attention")
        for node in found:
            replace(node, _Writer(rewriter, node).write())
        return bool(erase_dead(ir.graph)) or bool(found)


class _Writer:
    def __init__(self, r: Rewriter, node: Node):
        self.r, self.node = r, node
        self.a = OPS["masked_attention"].bind(node.args, node.kwargs)

    def call(self, target: object, *args: object, **kwargs: object) -> Node:
        return self.r.call(target, *args, like=self.node, before=self.node, **kwargs)

    def write(self) -> Node:
        a = self.a
        q, k, v = (self.call(aten.to.dtype, a[x], torch.float32) for x in "qkv")
        heads, shared = int(n.shape_of(q)[1]), int(n.shape_of(k)[1])
        group = heads // shared
        split = lambda x: self.call(aten.unflatten.int, x, 0, [shared, group])  # noqa: E731
        q = split(self.call(aten.permute.default, q, [1, 0, 2]))  # [Hkv, G, T, D]
        k = self.call(aten.unsqueeze.default, self.call(aten.permute.default, k, [1, 2, 0]), 1)
        v = self.call(aten.unsqueeze.default, self.call(aten.permute.default, v, [1, 0, 2]), 1)
        tall = lambda x: self.call(aten.expand.default, x, [-1, group, -1, -1])  # noqa: E731
        scores = self.call(aten.mul.Tensor, self.call(aten.matmul.default, q, tall(k)), a["scale"])
        if a["softcap"]:
            capped = self.call(aten.tanh.default, self.call(aten.div.Tensor, scores, a["softcap"]))
            scores = self.call(aten.mul.Tensor, capped, a["softcap"])
        weights = self.weights(self.hidden(scores, split))
        out = self.call(aten.matmul.default, weights, tall(v))
        out = self.call(aten.permute.default, self.call(aten.flatten.using_ints, out, 0, 1), [1, 0, 2])
        return self.call(aten.to.dtype, out, n.dtype_of(self.node))

    def hidden(self, scores: Node, split: object) -> Node:
        """Scores [Hkv, G, T, T] with everything applied that hides keys or shifts their scores."""
        a = self.a

        def heads_first(x: Node) -> Node:
            """[.., T, T] with heads, one head, or none, as [Hkv or 1, G or 1, T, T] broadcasts."""
            while n.rank(x) > 3:
                x = self.call(aten.squeeze.dims, x, [0])
            if n.rank(x) == 3 and n.same_size(n.shape_of(x)[0], 1):
                x = self.call(aten.squeeze.dims, x, [0])
            return split(x) if n.rank(x) == 3 else x  # type: ignore[operator]

        if a["bias"] is not None:
            scores = self.call(aten.add.Tensor, scores, heads_first(a["bias"]))
        mask = a["mask"]
        if mask is not None and n.dtype_of(mask) != torch.bool:
            scores = self.call(aten.add.Tensor, scores, heads_first(self.call(aten.to.dtype, mask, torch.float32)))
        elif mask is not None:
            scores = self.only(scores, heads_first(mask))
        positions = self.r.ir.input("positions")
        if a["causal"] or a["window"] or mask is None:
            scores = self.only(scores, self.call(canonical.mask.default, positions, None, a["causal"], a["window"], 0))
        if a["indices"] is not None:
            seen = self.call(canonical.mask.default, positions, None, True, 0, 0)
            listed = self.call(aten.zeros_like.default, seen, dtype=torch.float32)
            listed = self.call(aten.scatter.value, listed, 1, a["indices"], 1.0)
            scores = self.only(scores, self.call(aten.gt.Scalar, listed, 0.0))
        return scores

    def only(self, scores: Node, seen: Node) -> Node:
        return self.call(
            aten.masked_fill.Scalar, scores, self.call(aten.logical_not.default, seen), float("-inf")
        )

    def weights(self, scores: Node) -> Node:
        sinks = self.a["sinks"]
        if sinks is None:
            return self.call(aten.softmax.int, scores, -1)
        sinks = self.call(aten.to.dtype, sinks, torch.float32)
        shared, group = n.shape_of(scores)[:2]
        sinks = self.call(aten.unsqueeze.default, self.call(aten.unflatten.int, sinks, 0, [shared, group]), -1)
        if n.rank(sinks) == 3:  # one for each head; else [Hkv, G, T, 1]
            sinks = self.call(aten.unsqueeze.default, sinks, -1)
        top = self.call(aten.maximum.default, self.call(aten.amax.default, scores, [-1], True), sinks)
        powers = self.call(aten.exp.default, self.call(aten.sub.Tensor, scores, top))
        total = self.call(aten.sum.dim_IntList, powers, [-1], True)
        rest = self.call(aten.exp.default, self.call(aten.sub.Tensor, sinks, top))
        return self.call(aten.div.Tensor, powers, self.call(aten.add.Tensor, total, rest))
