"""What is left of pointwise arithmetic becomes fused regions."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from ..ir import DTYPES, ModelIR
from ..ir.over_keys import body_of
from ..ir.region import fused_region, region_text
from . import nodes as n
from .base import Transform
from .nodes import aten
from .placeholders import drop_unused
from .pointwise import POINTWISE, Reg, RegionBuilder
from .rewrite import Rewriter, erase_dead, replace, sort_graph

_MOST_INPUTS = 24  # views that a region reads; more would not stay in registers or in the first cache anyway


class FuseRegions(Transform):
    """Partitions pointwise calls into regions, each one node that carries its program (ir/region.py).

    1. Calls of one iteration shape that read each other belong together. A call of a smaller shape that others
       broadcast is a region of its own: it is computed once, not once per element.
    2. A region is convex: nothing outside it both reads one of its results and feeds it. Regions grow while that holds.
    3. What other calls or outputs read are a region's results, in the order in which they are computed.
    4. Numbers, constants of one element and tensors of one value become constants of the region. Conversions stay:
       those between `act` and f32 say where the model rounds.
    5. A conversion of a smaller value that a region broadcasts is done in the region; one that a view separates from
       the calls that read it moves behind the view.
    6. The bodies of `over_keys` are fused likewise.
    """

    name = "fuse_regions"

    def run(self, ir: ModelIR) -> bool:
        bodies = [body for node in ir.graph.nodes if (body := body_of(node)) is not None]
        inside = [_fuse(body) for body in dict(zip(map(id, bodies), bodies, strict=True)).values()]
        return _fuse(ir) or any(inside)


def _fuse(ir: ModelIR) -> bool:
    _sink_casts(ir)
    groups = _Partition(list(ir.graph.nodes)).groups()
    for members in reversed(groups):  # readers first: they may take over conversions of what they read
        _emit(ir, members)
    if groups:
        sort_graph(ir.graph)
        drop_unused(ir)
    return bool(groups)


def is_pointwise(node: Node) -> bool:
    """Whether a call can be part of a region."""
    if n.op_name(node) not in POINTWISE or not n.is_tensor(node) or not _known_dtypes(node):
        return False
    if n.size_inputs(node) or "decimals" in node.kwargs:
        return False
    return not (n.is_op(node, "aten.where") and len(node.args) == 1)


def _known_dtypes(node: Node) -> bool:
    return all(n.is_tensor(x) and n.dtype_of(x) in DTYPES for x in (node, *node.all_input_nodes))


def _sink_casts(ir: ModelIR) -> None:
    """Rule 5, views."""
    r = Rewriter(ir)
    for node in list(ir.graph.nodes):
        if not n.is_view(node) or not node.users or not n.is_cast(node.args[0]):
            continue
        if not all(is_pointwise(user) for user in node.users):
            continue
        cast = node.args[0]
        view = r.call(node.target, cast.args[0], *node.args[1:], like=node, before=node, **node.kwargs)
        replace(node, r.call(aten.to.dtype, view, n.dtype_of(cast), like=cast, before=node))
    erase_dead(ir.graph)


class _Group:
    """Members of a region being grown, and the calls outside that they read."""

    def __init__(self, node: Node):
        self.members: list[Node] = [node]
        self.externals: dict[Node, None] = dict.fromkeys(node.all_input_nodes)


class _Partition:
    """Groups of pointwise calls; see rules 1 and 2."""

    def __init__(self, nodes: list[Node]):
        self.place = {node: i for i, node in enumerate(nodes)}
        self.group: dict[Node, _Group] = {}
        self.order: list[_Group] = []
        for node in nodes:
            if node.op == "call_function" and is_pointwise(node):
                self._add(node)

    def groups(self) -> list[list[Node]]:
        """Members in graph order, regions in the order of their last member."""
        alive = dict.fromkeys(self.group.values())
        made = [sorted(g.members, key=self.place.__getitem__) for g in alive]
        return sorted(made, key=lambda members: self.place[members[-1]])

    def _add(self, node: Node) -> None:
        mine = _Group(node)
        self.group[node] = mine
        for x in node.all_input_nodes:
            other = self.group.get(x)
            mine = self.group[node]
            if other is not None and other is not mine and n.same_shape(other.members[0], node):
                if self._may_join(other, mine):
                    self._join(other, mine)

    def _may_join(self, a: _Group, b: _Group) -> bool:
        inside = set(a.members) | set(b.members)
        outside = [x for x in (*a.externals, *b.externals) if x not in inside]
        if len(outside) > _MOST_INPUTS:
            return False
        return not self._reaches(outside, (a, b), min(self.place[m] for m in inside))

    def _reaches(self, start: Iterable[Node], targets: tuple[_Group, _Group], low: int) -> bool:
        """Whether one of these values depends on a member of the groups, regions being all or nothing.

        Values before the first member cannot, unless they are part of a region that grew beyond it.
        """
        seen: set[Any] = set()
        stack = list(start)
        while stack:
            x = stack.pop()
            group = self.group.get(x)
            if group is not None:
                if group in targets:
                    return True
                if group not in seen:
                    seen.add(group)
                    stack.extend(group.externals)
            elif x not in seen and self.place[x] >= low:
                seen.add(x)
                stack.extend(x.all_input_nodes)
        return False

    def _join(self, a: _Group, b: _Group) -> None:
        """b becomes part of a."""
        for m in b.members:
            self.group[m] = a
        a.members.extend(b.members)
        inside = set(a.members)
        a.externals = {x: None for x in (*a.externals, *b.externals) if x not in inside}


def _emit(ir: ModelIR, members: list[Node]) -> None:
    """Replaces the members by one region after the last of them; the graph has to be sorted afterwards."""
    members = [m for m in members if m.users]  # some may have gone with the regions that read them
    if not members:
        return
    inside = set(members)
    shape = members[0]
    builder = RegionBuilder()
    registers: dict[Node, Reg] = {}
    inputs: list[Node] = []

    def read(x: Any) -> Any:
        if not isinstance(x, Node):
            return x
        if x not in registers:
            uniform = _uniform(ir, x)
            if uniform is not None:
                registers[x] = builder.const(uniform, DTYPES[n.dtype_of(x)])
            elif n.is_cast(x) and is_pointwise(x) and x not in inside and not n.same_shape(x, shape):
                registers[x] = builder.cast(read(x.args[0]), DTYPES[n.dtype_of(x)])
            else:
                registers[x] = builder.input(DTYPES[n.dtype_of(x)])
                inputs.append(x)
        return registers[x]

    for node in members:
        arguments = {k: read(x) for k, x in n.bound(node).items()}
        registers[node] = POINTWISE[n.op_name(node)](builder, arguments, DTYPES[n.dtype_of(node)])
    results = [m for m in members if any(user not in inside for user in m.users)]
    if not inputs:
        return
    region = builder.finish([registers[m] for m in results])
    last = members[-1]
    value = tuple(m.meta["val"] for m in results)
    with ir.graph.inserting_after(last):
        fused = ir.graph.call_function(fused_region, tuple(inputs), {"program": region_text(region)})
        fused.meta = {"val": value if len(value) > 1 else value[0], "source": last.meta.get("source", "")}
        fused.meta["module"] = last.meta.get("module", "")
        fused.meta["fused"] = list(dict.fromkeys(m.meta.get("source", "") for m in members))
    if len(results) == 1:
        replace(results[0], fused)
    else:
        for i, m in reversed(list(enumerate(results))):
            with ir.graph.inserting_after(fused):
                part = ir.graph.call_function(operator.getitem, (fused, i))
            part.meta = {"val": m.meta["val"], "source": m.meta.get("source", "")}
            replace(m, part)
    erase_dead(ir.graph, reversed(members))


def _uniform(ir: ModelIR, x: Node) -> float | int | bool | None:
    """The one value of an input that is the same everywhere (rule 4)."""
    if n.is_op(x, "aten.full"):
        return n.number(n.bound(x)["fill_value"])
    constant = ir.constants.get(str(x.target)) if x.op == "placeholder" else None
    return constant.value.item() if constant is not None and constant.value.numel() == 1 else None
