"""Builds the body of an `over_keys` node from the calls of a region."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from ..ir import DTYPES, ModelIR
from ..ir.over_keys import BLOCKS, QUERIES, BodyIR, over_keys, register_body
from . import nodes as n
from .axes import Refusal
from .base import refuse
from .key_axes import KEY, QUERY, Dim, Dims, Run, extent, understand
from .nodes import aten
from .raise_over_keys_tools import counts_keys, is_counted
from .rewrite import Rewriter

_HINTS = {QUERIES: 29, BLOCKS: 31}  # examples for shape reasoning, unlike any likely size
_SHRINKABLE = ("aten.expand", "aten.to", "aten._to_copy", "aten.unsqueeze", "aten.permute", "aten.reshape")
_FILLED = {"aten.zeros": 0, "aten.zeros_like": 0, "aten.new_zeros": 0, "aten.empty": 0, "aten.new_empty": 0,
           "aten.empty_like": 0, "aten.ones": 1, "aten.ones_like": 1, "aten.new_ones": 1}
# Where a number made from sizes stands, a tensor does in a body.
_NUMBERS = {aten.masked_fill.Scalar: aten.masked_fill.Tensor, aten.where.ScalarOther: aten.where.self,
            aten.where.ScalarSelf: aten.where.self}
Leaf = tuple[Node, str]  # a value from outside, and its role


class BodyBuilder:
    """Rebuilds calls over symbols for queries and blocks of keys; every dim stays where it was captured."""

    def __init__(self, ir: ModelIR, walk: Any, members: list[Node]):
        self.ir, self.walk, self.members = ir, walk, members
        self.inside = set(members)
        self.block, self.min_keys = self._block()
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        module = GraphModule(torch.nn.Module(), Graph())
        self.body = BodyIR(module, {}, {}, outputs=(), block=self.block, min_keys=self.min_keys, mode=mode)
        self.rewriter = Rewriter(self.body)
        self.sizes: dict[tuple[str, int], Node] = {}
        self.values: dict[Any, Node] = {}
        self.leaves: list[Leaf] = []
        self.roles: list[str] = []
        for name in (QUERIES, BLOCKS):
            node = self.graph.placeholder(name)
            node.meta = {"val": self._symbol(mode, name), "source": "the sizes of a body"}
            self.sizes[(name, 1)] = node
        self.last_input = node

    @property
    def graph(self) -> Graph:
        return self.body.graph

    def _symbol(self, mode: FakeTensorMode, name: str) -> torch.SymInt:
        from torch._dynamo.source import ConstantSource

        env, source = mode.shape_env, ConstantSource(name)
        assert env is not None
        symbol = env.create_symbol(_HINTS[name], source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        return env.create_symintnode(symbol, hint=_HINTS[name], source=source)

    # Dims.

    def dims_of(self, node: Node) -> Any:
        """Dims of a member, one that stands between two calls of the region included."""
        region = self.walk.region
        if node not in region.dims:
            try:
                region.dims[node] = understand(region, node, self.walk.outside)
            except Refusal as refusal:
                raise refuse("token axis", node, refusal.reason, refusal.remedy) from None
        return region.dims[node]

    def _all_dims(self, node: Node) -> list[Dims]:
        dims = self.dims_of(node)
        return list(dims) if isinstance(node.meta["val"], (tuple, list)) else [dims]

    def _block(self) -> tuple[int, int]:
        """Keys in a block: the common multiple of what the region pools; and the keys that its sizes ask for."""
        everything = [d for m in self.members for dims in self._all_dims(m) for d in dims]
        leaves = self.walk.region.leaves.items()
        everything += [d for (_, reader), dims in leaves if reader in self.inside for d in dims]
        numbers = [extent(x.meta["val"]).share for m in self.members for x in n.size_inputs(m)
                   if isinstance(x.meta["val"], torch.SymInt) and n.is_symbolic(x.meta["val"])
                   and counts_keys(m)]
        block = math.lcm(1, *(d.share.denominator for d in everything if d.run is not None),
                         *(share.denominator for share in numbers))
        return block, max((self.walk.region.enough.get(m, 0) for m in self.members), default=0)

    def size(self, dim: Dim) -> Any:
        """A dim as an argument of a call in the body."""
        if dim.run is None:
            return dim.count
        if dim.run.kind == QUERY:
            return self.sizes[(QUERIES, 1)]
        factor = int(dim.share * self.block)
        if (BLOCKS, factor) not in self.sizes:
            base = self.sizes[(BLOCKS, 1)]
            with self.graph.inserting_after(self.last_input):
                node = self.graph.call_function(operator.mul, (base, factor))
            node.meta = {"val": base.meta["val"] * factor, "source": "the number of keys"}
            self.sizes[(BLOCKS, factor)] = node
        return self.sizes[(BLOCKS, factor)]

    def shape(self, dims: Dims) -> list[Any]:
        return [self.size(d) for d in dims]

    # Building.

    def build(self, outputs: list[Node]) -> tuple[BodyIR, list[Leaf]]:
        for node in self.members:
            self.values[node] = self.emit(node, self.dims_of(node), lambda x, node=node: self.read(x, node))
        results = []
        for output in outputs:
            at = self.walk.exits[output]
            order = [at, *(d for d in range(n.rank(output)) if d != at)]
            value = self.values[output]
            results.append(self.call(aten.permute.default, value, order, like=output) if at else value)
        self.graph.output(tuple(results))
        self.graph.output_node().meta = {"val": tuple(x.meta["val"] for x in results)}
        self.body.outputs = tuple(f"result{i}" for i in range(len(results)))
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and not node.users:
                self.graph.erase_node(node)
        self._drop_unread()
        self.body.graph_module.recompile()
        return self.body, self.leaves

    def _drop_unread(self) -> None:
        operands = self.body.operands()
        kept = [i for i, x in enumerate(operands) if x.users]
        for i, x in enumerate(operands):
            if i not in kept:
                self.graph.erase_node(x)
        self.leaves[:] = [self.leaves[i] for i in kept]
        self.body.roles = tuple(self.roles[i] for i in kept)

    def call(self, target: Any, *args: Any, like: Node, **kwargs: Any) -> Node:
        return self.rewriter.call(target, *args, like=like, **kwargs)

    def read(self, x: Node, reader: Node) -> Node:
        """What a call of the region reads."""
        if x in self.inside:
            return self.values[x]
        dims = self.walk.region.of(x, reader, self.walk.outside)
        kind = next((d.run.kind for d in dims if d.run is not None), None)
        return self.leaf(x, dims, kind, reader)

    def leaf(self, x: Node, dims: Dims, kind: str | None, reader: Node) -> Node:
        """A value from outside as an operand; on the side of the keys, its smallest form is what is kept."""
        key = (x, kind)
        if key in self.values:
            return self.values[key]
        if kind == KEY and str(x.target) == "positions":
            found = self.call(aten.arange.start_step, 0, self.size(dims[0]), 1, like=reader)
        elif kind == KEY and self._shrinks(x):
            found = self.emit(x, dims, lambda y: self.leaf(y, self._like(y, dims), self._kind(y, kind), reader))
        else:
            found = self._operand(x, dims, kind)
        self.values[key] = found
        return found

    @staticmethod
    def _kind(y: Node, kind: str | None) -> str | None:
        return kind if n.has_tokens(y) else None

    def _like(self, y: Node, dims: Dims) -> Dims:
        """Dims of an operand of a value with `dims`: its one dim of tokens runs over the same."""
        run = next(d.run for d in dims if d.run is not None)
        return tuple(Dim(run, d.share) if d.run is not None else d for d in self.walk.outside(y))

    def _shrinks(self, x: Node) -> bool:
        """Whether a value is a view or conversion of one that is no larger, or counts positions."""
        if x.op != "call_function" or x in self.walk.region.dims:
            return False
        if is_counted(self.ir, x):
            return True
        if n.op_name(x) not in _SHRINKABLE or not isinstance(x.args[0], Node) or x.args[0].op != "call_function":
            return False
        before = x.args[0]
        if before in self.walk.region.dims or sum(map(n.is_symbolic, n.shape_of(before))) != 1:
            return False
        axes = [axis for axis in self.walk.an.of(before) if axis is not None]
        if len(axes) != 1 or axes[0] != type(axes[0])():
            return False
        return _bytes(before) <= _bytes(x)

    def _operand(self, x: Node, dims: Dims, kind: str | None) -> Node:
        """A placeholder [N or keys, ...], or of a fixed value, as it was captured."""
        if DTYPES.get(n.dtype_of(x)) is None:
            raise refuse("over_keys", x, f"its dtype {n.dtype_of(x)} has no place in a Program", "convert it first")
        at = next((i for i, d in enumerate(dims) if d.run is not None), None)
        order = list(range(len(dims))) if at is None else [at, *(i for i in range(len(dims)) if i != at)]
        shape = [self._value_of(self.size(dims[i])) for i in order]
        role = {None: "fixed", QUERY: "query", KEY: "key"}[kind]
        with self.graph.inserting_after(self.last_input):
            node = self.graph.placeholder(f"x{len(self.leaves)}")
        with self.body.fake_mode:
            node.meta = {"val": torch.empty(shape, dtype=n.dtype_of(x)), "source": n.source(x) or "an operand"}
        self.last_input = node
        self.leaves.append((x, role))
        self.roles.append(role)
        if at:
            back = [order.index(i) for i in range(len(order))]
            return self.call(aten.permute.default, node, back, like=node)
        return node

    @staticmethod
    def _value_of(size: Any) -> Any:
        return size.meta["val"] if isinstance(size, Node) else size

    def emit(self, node: Node, dims: Any, read: Any) -> Node:
        """A call in the body; `read` gives its operands."""
        name, a = n.op_name(node), n.bound(node) if hasattr(node.target, "_schema") else {}
        if name == n.GETITEM:
            return self.call(operator.getitem, read(node.args[0]), node.args[1], like=node)
        made = self._sized(node, name, a, dims, read)
        if made is None:
            args = torch.fx.node.map_arg(node.args, lambda x: self._argument(x, node, read))
            kwargs = torch.fx.node.map_arg(node.kwargs, lambda x: self._argument(x, node, read))
            made = self.call(self._target(node), *args, like=node, **kwargs)
        self._check(node, made, dims)
        return made

    def _part(self, node: Node, a: dict[str, Any], dims: Dims, x: Node) -> Node:
        """A slice along keys: all of it, without the place behind the others, or moved so that it begins at 0."""
        dim = n.normal_dim(a["dim"], len(dims))
        wanted = self.size(dims[dim])
        if a["start"]:
            last = self.call(aten.sub.Tensor, self._count(dims[dim], node), 1, like=node)
            x = self._moved(node, x, dim, dims[dim], 1, last)
        if n.same_size(x.meta["val"].shape[dim], self._value_of(wanted)):
            return x
        return self.call(aten.slice.Tensor, x, dim, 0, wanted, 1, like=node)

    def _written(self, node: Node, a: dict[str, Any], dims: Dims, read: Any) -> Node:
        """x[1:] = y along keys: block i has y's block i - 1, the first keeps what it has. x[0:] = y is y."""
        dim = n.normal_dim(a["dim"], len(dims))
        if not a["start"]:
            return read(a["src"])
        moved = self._moved(node, read(a["src"]), dim, dims[dim], -1, None)
        places = self.call(aten.arange.start_step, 0, self.size(dims[dim]), 1, like=node)
        first = self.call(aten.eq.Scalar, places, 0, like=node)
        shape = [self.size(d) if i == dim else 1 for i, d in enumerate(dims)]
        first = self.call(aten.reshape.default, first, shape, like=node)
        return self.call(aten.where.self, first, read(a["self"]), moved, like=node)

    def _moved(self, node: Node, x: Node, dim: int, size: Dim, by: int, last: Node | None) -> Node:
        """Block i of the result is block i + by of x, or the nearest that there is."""
        places = self.call(aten.arange.start_step, 0, self.size(size), 1, like=node)
        places = self.call(aten.add.Tensor, places, by, like=node)
        if last is None:
            places = self.call(aten.clamp_min.default, places, 0, like=node)
        else:
            places = self.call(aten.minimum.default, places, last, like=node)
        return self.call(aten.index_select.default, x, dim, places, like=node)

    def _count(self, size: Dim, node: Node) -> Node:
        """A size as a number to compute with, i64 []."""
        places = self.call(aten.arange.start_step, 0, self.size(size), 1, like=node)
        return self.call(aten.add.Tensor, self.call(aten.amax.default, places, [0], False, like=node), 1, like=node)

    @staticmethod
    def _target(node: Node) -> Any:
        return _NUMBERS.get(node.target, node.target) if n.size_inputs(node) else node.target

    def _argument(self, x: Node, node: Node, read: Any) -> Node:
        if n.is_tensor(x) or isinstance(x.meta["val"], (tuple, list)):
            return read(x)
        grown = extent(x.meta["val"])
        run = Run()
        run.become(KEY)
        if not grown.share or grown.more:
            raise refuse("token axis", node, "it computes with the number of tokens", "use position_ids instead")
        return self._count(Dim(run, grown.share), node)

    def _sized(self, node: Node, name: str, a: dict[str, Any], dims: Any, read: Any) -> Node | None:
        """Calls that have sizes among their arguments."""
        if name in ("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as"):
            return self.call(aten.reshape.default, read(node.args[0]), self.shape(dims), like=node)
        if name in ("aten.expand", "aten.expand_as", "aten.broadcast_to"):
            return self.call(aten.expand.default, read(node.args[0]), self.shape(dims), like=node)
        if name in ("aten.full", "aten.new_full", "aten.full_like") or name in _FILLED:
            value = a["fill_value"] if "full" in name else _FILLED[name]
            if isinstance(value, Node):
                number = self.call(aten.to.dtype, self._argument(value, node, read), n.dtype_of(node), like=node)
                return self.call(aten.expand.default, number, self.shape(dims), like=node)
            return self.call(aten.full.default, self.shape(dims), value, like=node, dtype=n.dtype_of(node))
        if name == "aten.arange":
            if a.get("start") not in (0, None) or a.get("step") not in (1, None):
                raise refuse("token axis", node, "it numbers tokens from another place than the first", "start at 0")
            counted = self.call(aten.arange.start_step, 0, self.size(dims[0]), 1, like=node)
            dtype = n.dtype_of(node)
            return counted if dtype == torch.int64 else self.call(aten.to.dtype, counted, dtype, like=node)
        if name == "aten.slice" and dims[n.normal_dim(a["dim"], len(dims))].run is not None:
            return self._part(node, a, dims, read(a["self"]))
        if name == "aten.slice_scatter" and dims[n.normal_dim(a["dim"], len(dims))].run is not None:
            return self._written(node, a, dims, read)
        if name == "aten.copy":
            return self.call(aten.expand.default, read(a["src"]), self.shape(dims), like=node)
        if name in ("aten.constant_pad_nd", "aten.pad"):
            widths = a["pad"]
            padded = [len(dims) - 1 - i // 2 for i in range(len(widths)) if widths[i] != 0]
            if all(dims[d].run is not None for d in padded):
                return read(a["self"])
            return None
        if name == "aten.repeat_interleave":
            dim = n.normal_dim(a["dim"], len(dims))
            x = self.call(aten.unsqueeze.default, read(a["self"]), dim + 1, like=node)
            x = self.call(aten.expand.default, x, [-1] * (dim + 1) + [a["repeats"]] + [-1] * (len(dims) - dim - 1),
                          like=node)
            return self.call(aten.reshape.default, x, self.shape(dims), like=node)
        if name == "aten.baddbmm":
            return self._baddbmm(node, a, read)
        if name == "aten.topk":
            dim = n.normal_dim(a["dim"], len(dims[0]))
            k = dims[0][dim].count
            return self.call(aten.topk.default, read(a["self"]), k, dim, a["largest"], True, like=node)
        if name == "autodeploy.mask":
            return self._mask(node, a, dims, read)
        return None

    def _baddbmm(self, node: Node, a: dict[str, Any], read: Any) -> Node:
        out = self.call(aten.matmul.default, read(a["batch1"]), read(a["batch2"]), like=node)
        if a["alpha"] != 1:
            out = self.call(aten.mul.Tensor, out, a["alpha"], like=node)
        if a["beta"] == 0:
            return out
        added = read(a["self"])
        if a["beta"] != 1:
            added = self.call(aten.mul.Tensor, added, a["beta"], like=node)
        return self.call(aten.add.Tensor, out, added, like=node)

    def _mask(self, node: Node, a: dict[str, Any], dims: Dims, read: Any) -> Node:
        """seen [N, keys] of `mask`: what key j = 0, 1, ... is to the query at its position i."""

        def call(target: Any, *args: Any) -> Node:
            return self.call(target, *args, like=node)

        positions = self.ir.input("positions")
        i = call(aten.unsqueeze.default, self.leaf(positions, dims[:1], QUERY, node), 1)
        j = call(aten.unsqueeze.default, self.leaf(positions, dims[1:], KEY, node), 0)
        seen = call(aten.le.Tensor, j, i)
        if a["window"]:
            near = call(aten.lt.Scalar, call(aten.sub.Tensor, i, j), a["window"])
            seen = call(aten.logical_and.default, seen, near)
        if a["chunk"]:
            ours, theirs = (call(aten.floor_divide.default, x, a["chunk"]) for x in (i, j))
            seen = call(aten.logical_and.default, seen, call(aten.eq.Tensor, ours, theirs))
        if a["padding"] is not None:
            kept = call(aten.ne.Scalar, read(a["padding"]), 0)
            seen = call(aten.logical_and.default, seen, call(aten.unsqueeze.default, kept, 0))
        return seen

    def _check(self, node: Node, made: Node, dims: Any) -> None:
        many = isinstance(node.meta["val"], (tuple, list))
        found = made.meta["val"] if many else (made.meta["val"],)
        for value, expected in zip(found, dims if many else (dims,), strict=True):
            wanted = [self._value_of(self.size(d)) for d in expected]
            if len(wanted) != value.dim() or not all(map(n.same_size, value.shape, wanted)):
                raise refuse("over_keys", node, f"inside a sequence it is {list(value.shape)}, not {wanted}",
                             "tokens and keys cannot be told apart here")

    # In the graph of the model.

    def place(self, r: Rewriter, body: BodyIR, leaves: list[Leaf], outputs: list[Node]) -> Node:
        """The node, with its operands' tokens first."""
        before = outputs[-1]
        operands = []
        for x, role in leaves:
            at = 0 if role == "fixed" else self.walk.token_dim(x)
            order = [at, *(d for d in range(n.rank(x)) if d != at)]
            operands.append(r.call(aten.permute.default, x, order, like=before, before=before) if at else x)
        key = register_body(body)
        with r.graph.inserting_before(before):
            node = r.graph.call_function(over_keys, tuple(operands), {"body": key})
        values = []
        for output in outputs:
            at = self.walk.exits[output]
            order = [at, *(d for d in range(n.rank(output)) if d != at)]
            static = [d.count for d in self.walk.region.dims[output]]
            shape = [self.ir.T if d == at else static[d] for d in order]
            with self.ir.fake_mode:
                values.append(torch.empty(shape, dtype=n.dtype_of(output)))
        node.meta = {"val": tuple(values), "source": before.meta.get("source", ""), "via": "sequence"}
        node.meta["covers"] = list(dict.fromkeys(m.meta.get("source", "") for m in self.members))
        return node

    def result(self, r: Rewriter, node: Node, i: int, output: Node) -> Node:
        """The i-th result as the model has it."""
        with r.graph.inserting_after(node):
            got = r.graph.call_function(operator.getitem, (node, i))
        got.meta = {"val": node.meta["val"][i], "source": node.meta["source"]}
        at = self.walk.exits[output]
        if not at:
            return got
        order = [at, *(d for d in range(n.rank(output)) if d != at)]
        back = [order.index(d) for d in range(len(order))]
        value = r.call(aten.permute.default, got, back, like=node, before=got.next)
        return value


def _bytes(x: Node) -> int:
    return x.meta["val"].element_size() * math.prod(int(s) for s in n.shape_of(x) if not n.is_symbolic(s))
