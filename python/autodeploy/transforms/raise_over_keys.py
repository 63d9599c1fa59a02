"""Code that pairs tokens with the keys of their own sequence becomes `over_keys`, one node with a small graph in it."""

from __future__ import annotations

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from ..ir import ModelIR
from ..ir.over_keys import over_keys
from . import key_rules  # noqa: F401  (its rules are those of key_axes)
from . import nodes as n
from .axes import TOKENS, Analysis, Refusal
from .base import Transform, TransformError, refuse
from .key_axes import KEY, QUERY, STATIC, Dim, Dims, Region, Run, extent, understand
from .key_bodies import BodyBuilder
from .key_check import check_body
from .raise_over_keys_tools import counts_keys, is_counted
from .rewrite import Rewriter, erase_dead, infer, replace, sort_graph, values_of
from .token_axis import step

_SOURCES = ("aten.full", "aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
            "aten.new_empty", "aten.arange", "autodeploy.mask")


class RaiseOverKeys(Transform):
    """Finds what no canonical mixer says, and the proof of the token axis refuses: code with a dim of keys.

    1. The graph is followed as the proof of the token axis does it. From the first call on that it refuses, dims of
       tokens are told apart as dims of queries and of keys (key_axes.py), until a value is left that has one dim of
       queries alone, at each place one token's.
    2. Calls that read each other's values with keys in them are one region; masks, positions and filled tensors are
       made anew in every region that reads them. What stands between two calls of a region belongs to it.
    3. A region is an `over_keys` node: its operands with a dim of queries, and its operands with a dim of keys, which
       the sequence's pages keep. A key operand that is a view or a conversion of a smaller value is kept as that value;
       token positions on the side of the keys are counted.
    4. Every body is run on random numbers and compared with the calls that it was made of, for several lengths, whole
       and in pieces: code that looks at later tokens, or depends on how many follow, is refused.
    5. What does not fit is left as it is, and the proof of the token axis refuses it with its line.
    """

    name = "raise_over_keys"

    def run(self, ir: ModelIR) -> bool:
        walk = _Walk(ir)
        if not walk.region.dims:
            return False
        walk.settle()
        rewriter = Rewriter(ir)
        checked: set[str] = set()  # layers repeat
        for members in walk.components():
            _emit(ir, rewriter, walk, members, checked)
        sort_graph(ir.graph)
        erase_dead(ir.graph)
        if walk.lists:
            _settle_sizes(ir)
        return True


class _Walk:
    """Follows the graph; `region.dims` has the calls with keys, `exits` those whose results are tokens again."""

    def __init__(self, ir: ModelIR):
        self.ir = ir
        self.an = Analysis()
        self.region = Region()
        self.exits: dict[Node, int] = {}  # the dim of queries
        self.counting: set[Node] = set()  # computed with the number of keys: good within its region alone
        self.lists: dict[Node, Dims] = {}  # made from exits, of a size that is one number for many tokens
        self.why: dict[Node, TransformError] = {}
        self._sources: dict[Node, bool] = {}
        self.place = {node: i for i, node in enumerate(ir.graph.nodes)}
        for node in ir.graph.nodes:
            self._visit(node)

    def _visit(self, node: Node) -> None:
        inside = [x for x in node.all_input_nodes if x in self.region.dims and x not in self.exits]
        if node.op == "output":
            if inside:
                raise self.why[inside[0]]
            return
        if not inside:
            try:
                if _is_listed(node) and not n.size_inputs(node):
                    self._follow_list(node)
                else:
                    step(self.an, node)
                return
            except TransformError as error:
                self.why[node] = error
        else:
            self.why[node] = self.why[inside[0]]
        try:
            counts = counts_keys(node)
            if n.size_inputs(node) and not counts and n.op_name(node) not in _WITH_SIZES:
                raise Refusal("it computes with the number of tokens, which is another number in every step")
            dims = understand(self.region, node, self.outside)
        except Refusal as refusal:
            if self.why[node].args and not inside:
                raise self.why[node] from None
            raise refuse("token axis", node, refusal.reason, refusal.remedy) from None
        self.region.dims[node] = dims
        if counts or (any(x in self.counting for x in inside) and not any(map(self._has_keys, inside))):
            self.counting.add(node)
            return
        values = dims if isinstance(node.meta["val"], (tuple, list)) else (dims,)
        places = [_only_queries(v) for v in values]
        if all(p is not None for p in places) and not isinstance(node.meta["val"], (tuple, list)):
            self.exits[node] = places[0]  # type: ignore[assignment]
            self.an.axes[node] = tuple(TOKENS if i == places[0] else None for i in range(len(dims)))

    def _has_keys(self, x: Node) -> bool:
        dims = self.region.dims[x]
        values = dims if isinstance(x.meta["val"], (tuple, list)) else (dims,)
        return any(d.run is not None and d.run.kind == KEY for v in values for d in v)

    def _follow_list(self, node: Node) -> None:
        """A call on lists of keys, which are shorter where there are fewer keys: here they have their full length."""
        dims = understand(Region(dict(self.lists) | {x: self.region.dims[x] for x in self.exits}), node, self.outside)
        at = None if isinstance(node.meta["val"], (tuple, list)) else _only_queries(dims)
        if at is None:
            raise refuse("token axis", node, "a size of it depends on the number of tokens", "give it one size")
        self.lists[node] = dims
        self.an.axes[node] = tuple(TOKENS if i == at else None for i in range(len(dims)))

    def outside(self, x: Node) -> Dims:
        """Dims of a value from outside a region: its tokens are queries or keys, which its reader will tell."""
        if x in self.lists:
            return self.lists[x]
        shape = n.shape_of(x)
        axes = self.an.of(x)
        if not any(axes):
            return tuple(Dim(None, STATIC, int(s)) for s in shape)
        if any(axis is not None and axis != TOKENS for axis in axes):
            raise Refusal("it reads tokens that are mixed with another dim")
        return tuple(
            Dim(None, STATIC, int(s)) if axis is None else Dim(Run(), STATIC + 1)
            for s, axis in zip(shape, axes, strict=True)
        )

    def token_dim(self, x: Node) -> int:
        """The dim of tokens of a value from outside a region."""
        if x in self.exits:
            return self.exits[x]
        return next(i for i, s in enumerate(n.shape_of(x)) if n.is_symbolic(s))

    def settle(self) -> None:
        """Dims of which nothing told what they run over run over keys."""
        for node, dims in self.region.dims.items():
            for value in dims if isinstance(node.meta["val"], (tuple, list)) else (dims,):
                for dim in value:
                    if dim.run is not None and dim.run.kind is None:
                        dim.run.become(KEY)

    def components(self) -> list[list[Node]]:
        """Members of every region, in graph order; sources are members of each region that reads them."""
        real = [x for x in self.region.dims if not self.is_source(x)]
        group: dict[Node, set[Node]] = {}
        for node in real:
            mine = {node}
            for x in self._inner_inputs(node):
                mine |= group[x]
            for member in mine:
                group[member] = mine
        found: list[list[Node]] = []
        seen: set[int] = set()
        for node in real:
            if id(group[node]) not in seen:
                seen.add(id(group[node]))
                found.append(self._closed(group[node]))
        return found

    def _inner_inputs(self, node: Node) -> list[Node]:
        """Values with keys that a call reads, through calls that only depend on sources."""
        return [x for x in node.all_input_nodes if x in self.region.dims and x not in self.exits
                and not self.is_source(x)]

    def is_source(self, node: Node) -> bool:
        """Whether a value in a region depends on nothing but masks, positions, sizes and numbers."""
        if node not in self._sources:
            plain = all(self._is_plain(x) or (x in self.region.dims and x not in self.exits and self.is_source(x))
                        for x in n.tensor_inputs(node))
            self._sources[node] = node not in self.exits and plain
        return self._sources[node]

    def _is_plain(self, x: Node) -> bool:
        return (x.op == "placeholder" and str(x.target) in self.ir.constants) or is_counted(self.ir, x)

    def _closed(self, members: set[Node]) -> list[Node]:
        """Members with their sources, and with what stands between two of them."""
        closed = set(members)
        below = set()  # what depends on a member
        for node in self.ir.graph.nodes:
            if node in closed or any(x in below for x in node.all_input_nodes):
                below.add(node)
        stack = list(closed)
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            for x in node.all_input_nodes:
                if x in seen or x.op == "placeholder":
                    continue
                seen.add(x)
                if x in closed or (x in self.region.dims and x not in self.exits and self.is_source(x)) or x in below:
                    closed.add(x)
                    stack.append(x)
        return sorted(closed, key=self.place.__getitem__)


_WITH_SIZES = {
    *_SOURCES, "aten.reshape", "aten.view", "aten._unsafe_view", "aten.expand", "aten.slice", "aten.topk",
    "aten.unflatten", "aten.constant_pad_nd", "aten.pad", "aten.broadcast_to", "aten.slice_scatter",
}  # fmt: skip


def _is_listed(node: Node) -> bool:
    """Whether a value has a size that is one number from some number of tokens on, such as min(k, T)."""
    if not n.is_tensor(node) or n.is_regular(n.shape_of(node)):
        return False
    try:
        return any(n.is_symbolic(s) and not extent(s).share for s in n.shape_of(node))
    except Refusal:
        return False


def _settle_sizes(ir: ModelIR) -> None:
    """Such sizes are their number now: calls that give them are told so, and what they make is inferred again."""
    changed: set[Node] = set()
    for node in list(ir.graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function":
            continue
        if not isinstance(value, (torch.Tensor, tuple, list)):
            if isinstance(value, torch.SymInt) and n.is_symbolic(value) and not n.is_regular([value]):
                _give_number(node)
            continue
        if node.target is over_keys:
            changed.add(node)
        elif any(x in changed for x in node.all_input_nodes):
            node.meta["val"] = infer(ir, node.target, values_of(node.args), values_of(node.kwargs))
            changed.add(node)
    erase_dead(ir.graph)


def _give_number(node: Node) -> None:
    try:
        grown = extent(node.meta["val"])
    except Refusal:
        return
    if grown.share:
        return
    for user in list(node.users):
        if isinstance(user.meta.get("val"), (torch.Tensor, tuple, list)):
            user.args = map_arg(user.args, lambda x: grown.count if x is node else x)
            user.kwargs = map_arg(user.kwargs, lambda x: grown.count if x is node else x)


def _form(members: list[Node], outputs: list[Node]) -> str:
    """The calls of a region, the same for regions that differ in nothing but where their operands come from."""
    names: dict[Node, str] = {}

    def name(x: Node) -> str:
        value = x.meta["val"]
        if not isinstance(value, (torch.Tensor, tuple, list)):
            return str(value)
        kind = f"{value.dtype}{tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        return names.setdefault(x, f"%{len(names)} {kind}")

    calls = [f"{name(m)} = {m.target} {map_arg((m.args, m.kwargs), name)}" for m in members]
    return "\n".join([*calls, str([name(x) for x in outputs])])


def _only_queries(dims: Dims) -> int | None:
    """The dim of queries of a value that has no keys."""
    running = [i for i, d in enumerate(dims) if d.run is not None]
    if len(running) != 1 or dims[running[0]].run.kind != QUERY:  # type: ignore[union-attr]
        return None
    return running[0]


def _emit(ir: ModelIR, r: Rewriter, walk: _Walk, members: list[Node], checked: set[str]) -> None:
    inside = set(members)
    outputs = [x for x in members if x in walk.exits and any(u not in inside for u in x.users)]
    stray = [x for x in members if x not in walk.exits and x in walk.why and not walk.is_source(x)
             and any(u not in inside for u in x.users)]
    if stray or not outputs:
        raise walk.why[(stray or [x for x in members if x in walk.why])[0]]
    builder = BodyBuilder(ir, walk, members)
    body, leaves = builder.build(outputs)
    form = f"{_form(members, outputs)}\n{body.text()}"
    if form not in checked:
        check_body(ir, walk, members, outputs, body, leaves)
        checked.add(form)
    node = builder.place(r, body, leaves, outputs)
    for i, output in enumerate(outputs):
        replace(output, builder.result(r, node, i, output))
