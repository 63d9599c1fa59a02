"""Only the rows whose logits are wanted go through what follows the last token mixer."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .axes import TOKENS
from .base import Transform
from .forms import sizes
from .nodes import aten, canonical
from .rewrite import Rewriter, infer, values_of
from .token_axis import token_axes


class SelectRows(Transform):
    """Puts `select_rows` as early as the token axis allows; the outputs become [R, ...].

    1. The tail is every call that no token mixer depends on; the proof of the token axis says that it treats tokens
       one by one, so it may as well run on some of them.
    2. The values that the tail takes from the rest, its frontier, are selected: each must have its tokens as its first
       dim and be of a floating dtype; a call whose operands cannot be selected stays out of the tail, and so do all
       calls that it depends on.
    3. Views of the frontier stay out of the tail: they cost nothing, and what they leave out need not be selected.
    4. A tensor of one value is not selected but made again with R rows.
    5. Shapes of the tail are inferred anew with R rows.
    """

    name = "select_rows"

    def run(self, ir: ModelIR) -> bool:
        if n.calls(ir.graph, "autodeploy.select_rows"):
            return False
        tail, frontier = _tail(ir)
        if not tail:
            return False
        rewriter = Rewriter(ir)
        selected: dict[Node, Node] = {}
        rows: Node | None = None
        for node in list(ir.graph.nodes):
            if node in tail:
                for x in node.all_input_nodes:
                    if _is_uniform(x) and x not in selected:
                        if rows is None:
                            first = next(iter(selected.values()))
                            rows = rewriter.call(aten.sym_size.int, first, 0, like=first, before=first.next)
                        selected[x] = _made_again(rewriter, x, rows, node)
                node.args = torch.fx.node.map_arg(node.args, lambda x: selected.get(x, x))
                node.kwargs = torch.fx.node.map_arg(node.kwargs, lambda x: selected.get(x, x))
                node.meta["val"] = infer(ir, node.target, values_of(node.args), values_of(node.kwargs))
            elif node in frontier and not _is_uniform(node):
                selected[node] = _selected(rewriter, node)
        output = ir.graph.output_node()
        output.args = (tuple(selected.get(x, x) for x in output.args[0]),)
        return True


def _tail(ir: ModelIR) -> tuple[set[Node], set[Node]]:
    """Rules 1 and 2: the calls that run on rows alone, and the values they take from the others."""
    axes = token_axes(ir.graph)
    nodes = list(ir.graph.nodes)
    needed: set[Node] = set()  # by a mixer
    for node in reversed(nodes):
        if node in needed or n.mixes_tokens(node):
            needed.update((node, *node.all_input_nodes))
    tail: set[Node] = set()
    frontier: set[Node] = set()
    for node in nodes:
        if node.op != "call_function" or node in needed or not n.has_tokens(node):
            continue
        moving = [x for x in node.all_input_nodes if n.has_tokens(x) and not _is_uniform(x)]
        if not moving or n.size_inputs(node):
            continue
        if n.is_view(node) and moving[0] not in tail and _selectable(node, axes[node]):
            continue
        if all(x in tail or _selectable(x, axes[x]) for x in moving):
            tail.add(node)
    while left := [x for x in tail if _stays_out(x, tail, axes)]:
        tail.difference_update(left)
    for node in tail:
        frontier.update(x for x in node.all_input_nodes if x not in tail and n.has_tokens(x))
    for node in ir.output_nodes():
        if node not in tail:
            frontier.add(node)
    return tail, frontier


def _stays_out(node: Node, tail: set[Node], axes: dict[Node, Any]) -> bool:
    """Whether a call outside the tail needs its result for every token, or an operand from there cannot be selected."""
    if any(user.op == "call_function" and user not in tail for user in node.users):
        return True
    moving = [x for x in node.all_input_nodes if n.has_tokens(x) and not _is_uniform(x)]
    return not all(x in tail or _selectable(x, axes[x]) for x in moving)


def _is_uniform(x: Node) -> bool:
    return n.is_op(x, "aten.full") and n.has_tokens(x)


def _made_again(r: Rewriter, x: Node, rows: Node, before: Node) -> Node:
    a = n.bound(x)
    size = []
    for s in n.shape_of(x):
        factor = n.tokens_in(s) if n.is_symbolic(s) else 0
        if factor > 1:
            size.append(r.call(operator.mul, rows, factor, like=x, before=before))
        else:
            size.append(rows if factor else int(s))
    return r.call(aten.full.default, size, a["fill_value"], like=x, before=before, dtype=n.dtype_of(x))


def _selectable(x: Node, axes: Any) -> bool:
    value = x.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and axes[0] == TOKENS


def _selected(r: Rewriter, x: Node) -> Node:
    shape = list(n.shape_of(x))
    after = x.next
    y = x
    if len(shape) != 2:
        y = r.call(aten.reshape.default, y, [-1, _width(shape)], like=x, before=after)
    y = r.call(canonical.select_rows.default, y, like=x, before=after)
    if len(shape) != 2:
        y = r.call(aten.reshape.default, y, [-1, *sizes(shape)[1:]], like=x, before=after)
    return y


def _width(shape: list[Any]) -> int:
    width = 1
    for s in shape[1:]:
        width *= int(s)
    return width
