"""Editing an FX graph whose nodes carry fake values: new calls get their shapes and sources here.

Layers of a model repeat, and so do the calls that transforms make for them; shapes are therefore inferred once per
distinct call (operator, shapes, dtypes, plain arguments) and shared.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir import ModelIR
from .nodes import canonical, shape_key

_MEMO: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_ROWS_HINT = 29  # an example of R for shape reasoning, unlike any likely size


def _key(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return (x.dtype, shape_key(x))
    if isinstance(x, (list, tuple)):
        return tuple(_key(y) for y in x)
    if isinstance(x, dict):
        return tuple((k, _key(v)) for k, v in sorted(x.items()))
    if isinstance(x, torch.SymInt):
        return str(x)
    return (type(x), x)


def infer(ir: ModelIR, target: Any, args: Any, kwargs: Any) -> Any:
    """The fake result of a call; `args` hold fake tensors in the place of nodes."""
    mode = ir.fake_mode
    memo = _MEMO.setdefault(mode, {})
    key = (target, _key(args), _key(kwargs))
    if key not in memo:
        with mode, torch.no_grad():
            if target is canonical.select_rows.default:
                memo[key] = args[0].new_empty((rows_symbol(ir), *args[0].shape[1:]))
            else:
                memo[key] = target(*args, **kwargs)
    return memo[key]


def rows_symbol(ir: ModelIR) -> torch.SymInt:
    """R, the number of wanted rows, as a size of fake tensors: one symbol for a whole graph."""
    mode = ir.fake_mode
    memo = _MEMO.setdefault(mode, {})
    if "R" not in memo:
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import DimDynamic

        env = mode.shape_env
        source = ConstantSource("autodeploy_rows")
        symbol = env.create_symbol(_ROWS_HINT, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        memo["R"] = env.create_symintnode(symbol, hint=_ROWS_HINT, source=source)
    return memo["R"]


def values_of(args: Any) -> Any:
    """Arguments with every node replaced by its fake value."""
    return torch.fx.node.map_arg(args, lambda n: n.meta["val"])


class Rewriter:
    """Makes nodes in a graph of `ir` (its own by default, or one being built to replace it).

    New nodes go where `at` points: before a node (`before`), or at the end of a graph that is being built.
    """

    def __init__(self, ir: ModelIR, graph: Graph | None = None):
        self.ir = ir
        self.graph = ir.graph if graph is None else graph

    def call(self, target: Any, *args: Any, like: Node, before: Node | None = None, name: str | None = None,
             **kwargs: Any) -> Node:
        """A call with its value inferred and its source taken from `like`; placed before `before` when given."""
        value = infer(self.ir, target, values_of(args), values_of(kwargs))
        if name is None and isinstance(target, torch._ops.OpOverload):
            name = target._schema.name.split("::")[1]
        if before is None:
            node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        else:
            with self.graph.inserting_before(before):
                node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta = {key: x for key, x in like.meta.items() if key in ("source", "via", "module")}
        node.meta["val"] = value
        if not node.meta.get("source"):
            node.meta["source"] = "made by the compiler"
        return node


def replace(old: Node, new: Node) -> None:
    """Every user of `old` reads `new`; `old` is left to `erase_dead`."""
    old.replace_all_uses_with(new, propagate_meta=False)


def erase_dead(graph: Graph, candidates: Iterable[Node] | None = None) -> int:
    """Erases calls without users, and what only they used; returns how many.

    With `candidates`, only these and their inputs are looked at (so that a local rewrite costs nothing elsewhere).
    """
    stack = list(graph.nodes) if candidates is None else list(candidates)
    gone: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in gone or node.op != "call_function" or node.users:
            continue
        stack.extend(node.all_input_nodes)
        graph.erase_node(node)
        gone.add(node)
    return len(gone)


def sort_graph(graph: Graph) -> None:
    """Puts every node behind its inputs; apart from that, nodes keep their order."""
    placed: set[Node] = set()
    order: list[Node] = []
    for root in list(graph.nodes):
        stack = [root]
        while stack:
            node = stack[-1]
            if node in placed:
                stack.pop()
                continue
            waiting = [x for x in node.all_input_nodes if x not in placed]
            if not waiting:
                placed.add(node)
                order.append(node)
                stack.pop()
            elif len(stack) > len(graph.nodes):
                raise AssertionError(f"cycle through {node}")
            else:
                stack.extend(reversed(waiting))
    for previous, node in itertools.pairwise(order):
        if previous.next is not node:
            previous.append(node)
