"""Writes into tensors become new tensors, so that every value of the graph is made once."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .errors import CaptureError

aten = torch.ops.aten


def parameter_writes(program: ExportedProgram) -> list[Node]:
    """Calls of an exported graph that write into a parameter, or a buffer that checkpoints hold, whatever the view."""
    stored = stored_placeholders(program)
    memory = {s for node in program.graph.nodes if node.name in stored for s in _storages(node)}
    writes = (node for node in program.graph.nodes if _writes(node) and isinstance(node.args[0], Node))
    return [node for node in writes if _storages(node.args[0]) & memory]


def stored_placeholders(program: ExportedProgram) -> frozenset[str]:
    """Names of the placeholders that a checkpoint fills."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = program.graph_signature.input_specs
    return frozenset(s.arg.name for s in specs if s.kind in kinds and s.persistent is not False)


def functionalize(graph: Graph, stored: frozenset[str] = frozenset()) -> Graph:
    """The graph with calls that write into an operand (`x.mul_(y)`, `x[..., :n] = y`) replaced by calls that do not.

    A write through a view is carried back into the tensor that it looks at (slice_scatter, ...), and other views of it
    that are read later are taken again. Which values share memory is told by the storage of their fake tensors.

    A placeholder in `stored` may be written with what does not depend on the model's input: from there on the graph
    computes with the new value, and makes it again at every run from what the checkpoint holds. That is right for a
    model that changes its parameters once, before its first use of them (export_prefill checks that it does not again).

    Raises:
        CaptureError: the model writes into a parameter or an input, or through a kind of view that has no way back.
    """
    for node in graph.nodes:
        if node.target is aten.detach_.default:  # says something about gradients, of which there are none
            node.target = aten.detach.default
    return _Functionalizer(stored).run(graph) if any(_writes(node) for node in graph.nodes) else graph


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _storages(node: Any) -> set[int]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    values = value if isinstance(value, (tuple, list)) else (value,)
    return {v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)}


class _Functionalizer:
    """Walks the old graph in order and writes the new one.

    Keys of all tables are nodes of the old graph. `now` is the node of the new graph that holds a value; `parent` the
    value that a view looks at (or that a writing call returns); `version` how often the tensor behind all views, the
    root, was written; `seen` the root's version when `now` was made: an older one has to be taken again.
    """

    def __init__(self, stored: frozenset[str]) -> None:
        self.stored = stored
        self.graph = Graph()
        self.now: dict[Node, Node] = {}
        self.parent: dict[Node, Node] = {}
        self.version: dict[Node, int] = {}
        self.seen: dict[Node, int] = {}

    def run(self, old: Graph) -> Graph:
        for node in old.nodes:
            if _writes(node):
                self.write(node)
            else:
                self.now[node] = self.graph.node_copy(node, self.read)
                if node.op == "call_function":
                    self.note_view(node)
        return self.graph

    def note_view(self, node: Node) -> None:
        mine = _storages(node)
        base = next((a for a in node.all_input_nodes if mine & _storages(a)), None) if mine else None
        if base is not None and (node.target is not operator.getitem or base in self.parent):
            self.parent[node] = base
            self.seen[node] = self.version.get(self.root(base), 0)

    def root(self, node: Node) -> Node:
        while node in self.parent:
            node = self.parent[node]
        return node

    def read(self, node: Node) -> Node:
        """The new graph's node with the value of `node` at this point."""
        current = self.version.get(self.root(node), 0)
        if node in self.parent and self.seen[node] != current:
            base = self.read(self.parent[node])
            self.now[node] = base if _writes(node) else self.graph.node_copy(node, self.read)
            self.seen[node] = current
        return self.now[node]

    def call(self, target: Any, args: Any, kwargs: Any, source: Node, value: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {**source.meta, "val": value}
        return node

    def write(self, node: Node) -> None:
        target = node.args[0]
        assert isinstance(target, Node)
        root = self.root(target)
        if root.op == "placeholder" and (root.name not in self.stored or self.reads_input(node)):
            _refuse(node, "into a parameter or an input")
        args, kwargs = map_arg((node.args, node.kwargs), self.read)
        value = self.call(_functional(node), args, kwargs, node, target.meta["val"])
        self.version[root] = self.version.get(root, 0) + 1
        self.parent[node] = target
        self.store(node, value, node)

    def reads_input(self, node: Node) -> bool:
        """Whether a value depends on a placeholder that no checkpoint fills."""
        seen, left = {node}, [node]
        while left:
            for x in left.pop().all_input_nodes:
                if x.op == "placeholder" and x.name not in self.stored:
                    return True
                if x not in seen:
                    seen.add(x)
                    left.append(x)
        return False

    def store(self, view: Node, value: Node, write: Node) -> None:
        """`view` has `value` now, and so has the part of every tensor behind it."""
        while True:
            self.now[view], self.seen[view] = value, self.version[self.root(view)]
            if view not in self.parent:
                return
            base = self.parent[view]
            item = None
            if view.target is operator.getitem:
                item, view, base = view.args[1], base, self.parent[base]
            value = self.put_back(view, item, base, value, write)
            view = base

    def put_back(self, view: Node, item: Any, base: Node, value: Node, write: Node) -> Node:
        """`base` with `value` in the place that `view` (the `item`-th of its results) looks at."""
        if _writes(view):
            return value
        before, whole = self.now[base], base.meta["val"]
        name = view.target._schema.name if isinstance(view.target, torch._ops.OpOverload) else str(view.target)
        args = map_arg(view.args[1:], self.read)
        match name.removeprefix("aten::"):
            case "slice":
                return self.call(aten.slice_scatter.default, (before, value, *args), view.kwargs, write, whole)
            case "select":
                return self.call(aten.select_scatter.default, (before, value, *args), view.kwargs, write, whole)
            case "split" | "split_with_sizes" | "chunk":
                dim = view.args[2] if len(view.args) > 2 else view.kwargs.get("dim", 0)
                parts = [v.shape[dim] for v in view.meta["val"]]
                if not all(isinstance(n, int) for n in parts):
                    _refuse(write, "into a part of the tokens")
                start = sum(parts[:item])
                place = (before, value, dim, start, start + parts[item])
                return self.call(aten.slice_scatter.default, place, {}, write, whole)
            case "unbind":
                dim = view.args[1] if len(view.args) > 1 else view.kwargs.get("dim", 0)
                return self.call(aten.select_scatter.default, (before, value, dim, item), {}, write, whole)
            case "transpose" | "t" | "numpy_T" | "mT":  # each is its own inverse
                return self.call(view.target, (value, *args), {}, write, whole)
            case "permute":
                order = list(view.args[1])
                inverse = sorted(range(len(order)), key=lambda d: order[d] % len(order))
                return self.call(aten.permute.default, (value, inverse), {}, write, whole)
            case "alias" | "detach" | "contiguous" | "to" | "type_as":
                return value
            case "view" | "reshape" | "squeeze" | "unsqueeze" | "flatten" | "unflatten" | "_unsafe_view" | "view_as":
                shape = [self.size(before, d, n, write) for d, n in enumerate(whole.shape)]
                return self.call(aten.reshape.default, (value, shape), {}, write, whole)
        _refuse(write, f"through a view made by {name}")

    def size(self, node: Node, dim: int, size: Any, source: Node) -> Any:
        if isinstance(size, int):
            return size
        return self.call(aten.sym_size.int, (node, dim), {}, source, size)


def _functional(node: Node) -> Any:
    """The overload that returns what `node` writes."""
    schema = node.target._schema
    namespace, name = schema.name.split("::")
    if schema.name == "aten::copy_":
        return aten.copy.default
    packet = getattr(aten, name.removesuffix("_"), None) if namespace == "aten" and name.endswith("_") else None
    overload = getattr(packet, node.target._overloadname, None)
    if overload is None:
        _refuse(node, f"by the operator {schema.name}")
    return overload


def _refuse(node: Node, how: str) -> NoReturn:
    line = node.meta.get("source", "an unknown line")
    raise CaptureError(f"[capture] expected code whose writes can be undone, found one {how} at {line}")
