"""A sink that a model joins to its scores becomes one more term of the softmax's sum."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .key_axes import extent, size_at
from .nodes import aten
from .rewrite import Rewriter, erase_dead, replace


class WriteOutSinks(Transform):
    """Finds softmax over scores with a column joined to them that is dropped again.

    1. softmax(cat([scores, sink]))[..., :-1], the sink one number for each row of keys, perhaps less their largest, is
       exp(scores - top) / (sum of it + exp(sink - top)), top being the largest of all: no dim has a column more than
       there are keys, which no shape of a step could have.
    """

    name = "write_out_sinks"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.softmax"):
            joined, kept = _joined(node), n.only_user(node)
            if joined is None or kept is None or not _drops_last(kept, node):
                continue
            scores, sink = joined
            at = n.rank(node) - 1

            def call(target: object, *args: object, before: Node = kept) -> Node:
                return rewriter.call(target, *args, like=before, before=before)

            top = call(aten.maximum.default, call(aten.amax.default, scores, [at], True), sink)
            powers = call(aten.exp.default, call(aten.sub.Tensor, scores, top))
            rest = call(aten.exp.default, call(aten.sub.Tensor, sink, top))
            total = call(aten.add.Tensor, call(aten.sum.dim_IntList, powers, [at], True), rest)
            weights = call(aten.div.Tensor, powers, total)
            if n.dtype_of(weights) != n.dtype_of(kept):
                weights = call(aten.to.dtype, weights, n.dtype_of(kept))
            replace(kept, weights)
            changed = True
        return bool(erase_dead(ir.graph)) or changed


def _joined(softmax: Node) -> tuple[Node, Node] | None:
    """Scores over keys, and the column behind them."""
    x = n.without_casts(softmax.args[0])
    if softmax.args[1] != n.rank(softmax) - 1:
        return None
    if n.is_op(x, "aten.sub") and n.is_op(x.args[1], "aten.amax") and x.args[1].args[0] is x.args[0]:
        x = n.without_casts(x.args[0])
    if not n.is_op(x, "aten.cat") or x.args[1] != n.rank(x) - 1 or len(x.args[0]) != 2:
        return None
    scores, sink = x.args[0]
    grows = n.is_symbolic(n.shape_of(scores)[-1]) and extent(n.shape_of(scores)[-1]).share
    return (scores, sink) if grows and n.same_size(n.shape_of(sink)[-1], 1) else None


def _drops_last(kept: Node, node: Node) -> bool:
    if not n.is_op(kept, "aten.slice"):
        return False
    a, last = n.bound(kept), n.rank(node) - 1
    if n.normal_dim(a["dim"], n.rank(node)) != last or a["start"] not in (None, 0) or a["step"] != 1:
        return False
    before, after = n.shape_of(node)[last], n.shape_of(kept)[last]
    return all(size_at(before, t) - size_at(after, t) == 1 for t in (1, 2, 1000))
