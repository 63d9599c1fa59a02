"""Branches that ask whether there is anything at all: their other way does nothing, and so does the captured one then."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Graph

_PADS = (torch.ops.aten.constant_pad_nd.default, torch.ops.aten.pad.default)


def asks_whether_anything(graph: Graph, condition: Any) -> bool:
    """Whether a condition on T is that some tensor has elements, or that some padding has a width.

    `if rest: x = pad(x, rest)` and `if blocks > 0: y = pool(x[:, : blocks * size])` are captured in the way that does
    something. Where the number is 0 that way pads by nothing, or computes with tensors that have no elements, and what
    it makes is what the other way has: nothing. The condition must be exactly that a size of a tensor of the graph, or
    a width of its paddings, is not 0.
    """
    asked = _number_asked_for(condition)
    return asked is not None and any(_same(asked, size) or _same(-asked, size) for size in _sizes(graph))


def _number_asked_for(condition: Any) -> Any:
    """n of the conditions n > 0, n >= 1 and n != 0; None of others."""
    if isinstance(condition, sympy.Ne) and condition.rhs == 0:
        return condition.lhs
    if isinstance(condition, sympy.Ne) and condition.lhs == 0:
        return condition.rhs
    if isinstance(condition, sympy.StrictGreaterThan) and condition.rhs == 0:
        return condition.lhs
    if isinstance(condition, sympy.StrictLessThan) and condition.lhs == 0:
        return condition.rhs
    if isinstance(condition, sympy.GreaterThan) and condition.rhs == 1:
        return condition.lhs
    if isinstance(condition, sympy.LessThan) and condition.lhs == 1:
        return condition.rhs
    return None


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
    return all(a.xreplace({symbol: sympy.Integer(t)}) == b.xreplace({symbol: sympy.Integer(t)}) for t in range(1, 300))
