"""Linears that read the same value become one."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR, ParamInfo
from . import nodes as n
from .base import Transform
from .nodes import aten, canonical
from .placeholders import add_placeholder, drop_unused, fresh_name
from .rewrite import Rewriter, erase_dead, replace

_ALIGNED = 16  # rows of a weight that a result's parts should start at multiples of


class FuseLinears(Transform):
    """One product for all linears of one value: query, key and value; gate and up; a router beside a shared expert.

    1. Linears of the same value form a group when their weights are parameters of one dtype that nothing else reads,
       and either all of them have a bias that is such a parameter, or none.
    2. The weight of the fused linear has the segments of all weights, in order: each keeps its own format. So has the
       bias. Weights whose rows are no multiple of 16 come last, so that the others' results start aligned.
    3. Each linear becomes a slice of the fused result.
    """

    name = "fuse_linears"

    def run(self, ir: ModelIR) -> bool:
        groups: dict[tuple[object, ...], list[Node]] = {}  # members in graph order
        for node in n.calls(ir.graph, "autodeploy.linear"):
            x, weight, bias = node.args
            if _own(ir, weight) and (bias is None or _own(ir, bias)):
                groups.setdefault((x, n.dtype_of(weight), bias is None), []).append(node)
        rewriter = Rewriter(ir)
        changed = False
        for members in groups.values():
            if len(members) > 1:
                _fuse(rewriter, members)
                changed = True
        if changed:
            erase_dead(ir.graph)
            drop_unused(ir)
        return changed


def _own(ir: ModelIR, x: Node) -> bool:
    return x.op == "placeholder" and str(x.target) in ir.params and len(x.users) == 1


def _fuse(r: Rewriter, members: list[Node]) -> None:
    first = members[0]
    x = first.args[0]
    members = sorted(members, key=lambda m: n.shape_of(m.args[1])[0] % _ALIGNED != 0)
    weight = _joined(r, [m.args[1] for m in members])
    bias = None if members[0].args[2] is None else _joined(r, [m.args[2] for m in members])
    fused = r.call(canonical.linear.default, x, weight, bias, like=first, before=first)
    fused.meta["fused"] = [n.source(m) for m in members]
    last = n.rank(fused) - 1
    at = 0
    for m in members:
        rows = int(n.shape_of(m.args[1])[0])
        part = r.call(aten.slice.Tensor, fused, last, at, at + rows, 1, like=m, before=m)
        replace(m, part)
        at += rows


def _joined(r: Rewriter, parts: list[Node]) -> Node:
    """A parameter with the segments of several."""
    ir = r.ir
    infos = [ir.params[str(p.target)] for p in parts]
    rows = sum(i.shape[0] for i in infos)
    key, name = fresh_name(ir, _common_name([i.name for i in infos]))
    ir.params[key] = ParamInfo(
        name,
        (rows, *infos[0].shape[1:]),
        infos[0].dtype,
        [s for i in infos for s in i.segments],
        tuple(dict.fromkeys(f for i in infos for f in i.fqns)),
    )
    value = parts[0].meta["val"]
    with ir.fake_mode:
        joined = value.new_empty((rows, *value.shape[1:]))
    return add_placeholder(ir, key, joined, n.source(parts[0]))


def _common_name(names: list[str]) -> str:
    """`a.b.{q,k,v}.weight` of names that share their start and their end."""
    split = [x.split(".") for x in names]
    shortest = min(len(s) for s in split)
    head = 0
    while head < shortest and len({s[head] for s in split}) == 1:
        head += 1
    tail = 0
    while tail < shortest - head and len({s[-1 - tail] for s in split}) == 1:
        tail += 1
    middle = [".".join(s[head : len(s) - tail]) for s in split]
    ends = split[0][len(split[0]) - tail :] if tail else []
    return ".".join([*split[0][:head], "{" + ",".join(middle) + "}", *ends])
