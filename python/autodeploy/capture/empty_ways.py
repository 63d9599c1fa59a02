"""Branches that ask whether there is anything at all: their other way does nothing, as does the captured one then."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Graph

_PADS = (torch.ops.aten.constant_pad_nd.default, torch.ops.aten.pad.default)


def asks_whether_anything(graph: Graph, condition: Any) -> bool:
    """Whether a condition on T is that some tensor has elements, or more than one, or that some padding has a width.

    `if rest: x = pad(x, rest)` and `if blocks > 0: y = pool(x[:, : blocks * size])` are captured in the way that does
    something. Where the number is 0 that way pads by nothing, or computes with tensors that have no elements, and what
    it makes is what the other way has: nothing. Likewise `if blocks > 1: y[1:] = x[:-1]` for one block. The condition
    must be exactly that a size of a tensor of the graph, or a width of its paddings, is not 0, or not 1.
    """
    asked = _number_asked_for(condition)
    if asked is None:
        return False
    sizes = _sizes(graph)
    factors = [f for f in sympy.Mul.make_args(asked) if not f.is_number]  # a number of elements is a product of sizes
    return _is_size(asked, sizes) or all(_is_size(f, sizes) for f in factors)


def _is_size(number: Any, sizes: list[Any]) -> bool:
    return any(_same(number, size) or _same(-number, size) for size in sizes)


def _number_asked_for(condition: Any) -> Any:
    """n of the conditions n > 0, n >= 1, n != 0, and n > 1, n >= 2, n != 1; None of others."""
    if isinstance(condition, (sympy.StrictLessThan, sympy.LessThan)):
        condition = condition.reversed
    if not isinstance(condition, (sympy.Ne, sympy.StrictGreaterThan, sympy.GreaterThan)):
        return None
    least = {sympy.Ne: (0, 1), sympy.StrictGreaterThan: (0, 1), sympy.GreaterThan: (1, 2)}[type(condition)]
    left, right = condition.args
    if right in least:
        return left
    return right if isinstance(condition, sympy.Ne) and left in least else None


def _sizes(graph: Graph) -> list[Any]:
    found: dict[Any, None] = {}
    for node in graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(value, torch.Tensor):
                found.update((s.node.expr, None) for s in value.shape if isinstance(s, torch.SymInt))
        if node.op == "call_function" and node.target in _PADS:
            for width in node.args[1]:
                width = width.meta["val"] if isinstance(width, torch.fx.Node) else width
                if isinstance(width, torch.SymInt):
                    found[width.node.expr] = None
    return list(found)


def _same(a: Any, b: Any) -> bool:
    """Whether two numbers are one for every T that was tried: they may be written differently."""
    symbols = a.free_symbols | b.free_symbols
    if len(symbols) != 1:
        return False
    (symbol,) = symbols
    return all(_at(a, symbol, t) == _at(b, symbol, t) for t in range(1, 300))


def _at(expr: Any, symbol: Any, tokens: int) -> Any:
    try:
        return expr.xreplace({symbol: sympy.Integer(tokens)})
    except ZeroDivisionError:  # the size of a dim beside one without elements
        return None
