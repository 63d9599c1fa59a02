"""Rotations of neighbouring heads become one."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace


class FuseRopes(Transform):
    """One rope for heads side by side in one value that turn by the same angles: query and key of a fused linear.

    1. Ropes belong together when their operands are slices of the last dim of one value, seen as heads of one width,
       and angles and pairing are the same.
    2. Those whose slices follow each other become a rope of the joint slice; each result is its slice of heads.
    """

    name = "fuse_ropes"

    def run(self, ir: ModelIR) -> bool:
        groups: dict[tuple[object, ...], list[_Heads]] = {}
        for node in n.calls(ir.graph, "autodeploy.rope"):
            heads = _heads(node)
            if heads is not None:
                a = n.bound(node)
                key = (heads.base, heads.width, a["cos"], a["sin"], a["interleaved"])
                groups.setdefault(key, []).append(heads)
        rewriter = Rewriter(ir)
        place = {node: i for i, node in enumerate(ir.graph.nodes)}
        changed = False
        for members in groups.values():
            members.sort(key=lambda h: h.start)
            for run in _runs(members):
                if len(run) > 1:
                    _fuse(rewriter, run, min((h.rope for h in run), key=place.__getitem__))
                    changed = True
        if changed:
            erase_dead(ir.graph)
        return changed


@dataclass
class _Heads:
    """A rope of base[:, start:stop] seen as heads of `width` channels."""

    rope: Node
    base: Node
    start: int
    stop: int
    width: int


def _heads(rope: Node) -> _Heads | None:
    x = rope.args[0]
    if not n.is_op(x, "aten.reshape") or n.rank(x) != 3:
        return None
    part = x.args[0]
    if not n.is_op(part, "aten.slice") or n.rank(part) != 2 or part.args[1] != 1 or part.args[4] != 1:
        return None
    return _Heads(rope, part.args[0], part.args[2], part.args[3], int(n.shape_of(x)[2]))


def _runs(members: list[_Heads]) -> list[list[_Heads]]:
    runs = [[members[0]]]
    for heads in members[1:]:
        if heads.start == runs[-1][-1].stop:
            runs[-1].append(heads)
        else:
            runs.append([heads])
    return runs


def _fuse(r: Rewriter, run: list[_Heads], first: Node) -> None:
    start, stop, width = run[0].start, run[-1].stop, run[0].width
    joint = r.call(aten.slice.Tensor, run[0].base, 1, start, stop, 1, like=first, before=first)
    heads = r.call(aten.reshape.default, joint, [-1, (stop - start) // width, width], like=first, before=first)
    turned = r.call(canonical.rope.default, heads, *first.args[1:], like=first, before=first)
    turned.meta["fused"] = [n.source(h.rope) for h in run]
    for h in run:
        low, high = (h.start - start) // width, (h.stop - start) // width
        replace(h.rope, r.call(aten.slice.Tensor, turned, 1, low, high, 1, like=h.rope, before=first))
