"""One spelling for sizes: numbers, and sums of a number and a multiple of the token count taken from the token ids."""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from .guards import counterexample


def fold_sizes(graph: Graph, token_ids: Node, longest: int | None = None) -> None:
    """Replaces every size that the graph computes by a number, or by k * aten.sym_size.int(token_ids, 0) + c.

    Sizes with c come from padding and cutting; the transforms raise what is made of them to windows over tokens, or
    refuse it.

    Where T is at most `longest`, so are minima and maxima that come to such a sum up to there, in shapes of values too.

    A slice that begins as far from the end as its dim is long begins at 0: `x[..., -T:]` of T rows is all of them.

    Other sizes stay as they are: code over a sequence's own keys may have them, and what else has is refused by the
    proof of the token axis.
    """
    symbol = token_ids.meta["val"].shape[0].node.expr
    _fold_slices_from_the_end(graph)
    made: dict[tuple[int, int], Node] = {}
    after = token_ids
    while after.next.op == "placeholder":
        after = after.next

    def tokens(factor: int, constant: int) -> Node:
        key = (factor, constant)
        if key not in made:
            first = made.get((1, 0)) or (tokens(1, 0) if key != (1, 0) else None)
            multiple = tokens(factor, 0) if constant else None
            with graph.inserting_after(multiple or first or after):
                if multiple is not None:
                    node = graph.call_function(operator.add, (multiple, constant))
                elif first is not None:
                    node = graph.call_function(operator.mul, (first, factor))
                else:
                    node = graph.call_function(torch.ops.aten.sym_size.int, (token_ids, 0))
            node.meta["val"] = token_ids.meta["val"].shape[0] * factor + constant
            node.meta["source"] = "the number of tokens"
            made[key] = node
        return made[key]

    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or isinstance(value, (torch.Tensor, tuple, list)) or node in made.values():
            continue
        if not node.users:
            continue
        size = _as_sum(value, symbol, longest)
        if size is None:
            if all(isinstance(u.meta.get("val"), (torch.SymInt, torch.SymBool, int, bool)) for u in node.users):
                continue  # a step on the way to another size
            continue  # only code over a sequence's own keys may have such a size: the proof of the token axis decides
        constant, factor = size
        _replace(node, tokens(factor, constant) if factor else constant)
    if longest is not None:
        _spell_shapes(graph, token_ids, symbol, longest)
    for node in reversed(list(graph.nodes)):
        if (
            node.op == "call_function"
            and not node.users
            and not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
        ):
            graph.erase_node(node)


def _fold_slices_from_the_end(graph: Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor):
        if len(node.args) < 3 or not isinstance(node.args[2], Node):
            continue
        x, dim, start, *rest = node.args
        begin = x.meta["val"].shape[dim] + start.meta["val"]
        if isinstance(begin, torch.SymInt) and begin.node.expr.is_zero:
            node.args = (x, dim, 0, *rest)


def _as_sum(value: Any, symbol: Any, longest: int | None) -> tuple[Any, int] | None:
    """(c, k) of a size c + k * T, (number, 0) of a number; None of anything else."""
    if isinstance(value, (int, float, bool)):
        return value, 0
    if not isinstance(value, (torch.SymInt, torch.SymFloat)):
        return None
    expr = value.node.expr
    if expr.is_number:
        return int(expr), 0
    factor = expr.coeff(symbol)
    constant = (expr - factor * symbol).expand()
    if factor.is_Integer and constant.is_Integer:
        return int(constant), int(factor)
    try:
        first, second = (expr.xreplace({symbol: sympy.Integer(t)}) for t in (1, 2))
    except ZeroDivisionError:  # a size told from the others of a tensor that has no elements for few tokens
        return None
    if longest is None or not (first.is_Integer and second.is_Integer):
        return None
    constant, factor = 2 * first - second, second - first
    same = counterexample(sympy.Eq(expr, constant + factor * symbol), longest) is None
    return (int(constant), int(factor)) if same else None


def _spell_shapes(graph: Graph, token_ids: Node, symbol: Any, longest: int) -> None:
    tokens = token_ids.meta["val"].shape[0]
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        spelled = [_as_sum(s, symbol, longest) for s in value.shape]
        if any(s is None for s in spelled):
            continue
        shape = [factor * tokens + constant if factor else constant for constant, factor in spelled]
        if [str(s) for s in shape] != [str(s) for s in value.shape]:
            node.meta["val"] = value.new_empty(shape)


def _replace(node: Node, by: Any) -> None:
    if isinstance(by, Node):
        node.replace_all_uses_with(by, propagate_meta=False)
        return

    def swap(argument: Node) -> Any:
        return by if argument is node else argument

    for user in list(node.users):
        user.args = torch.fx.node.map_arg(user.args, swap)
        user.kwargs = torch.fx.node.map_arg(user.kwargs, swap)
