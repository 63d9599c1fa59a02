"""What the export assumed about the number of tokens is proved for every number, or the model is refused."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from .empty_ways import asks_whether_anything
from .errors import CaptureError

_SMALL = range(1, 66)
_LARGE = (127, 1000, 4095, 4096, 4097, 32768, 131072, 1 << 20, (1 << 24) + 1)


def discharge(graph: Graph, longest: int | None = None, at_least: int = 1) -> None:
    """Removes run-time assertions about sizes that hold for every T >= `at_least`, up to `longest` where it is given.

    Raises:
        CaptureError: one fails for some T, or depends on the values of tensors; it names the model's line.
    """
    for node in _assertions(graph):
        _prove(graph, node, longest, at_least)
    for node in _assertions(graph):
        graph.erase_node(node)


def first_failure(graph: Graph, longest: int | None = None, at_least: int = 1) -> int | None:
    """The least T (up to `longest`) for which an assertion fails; None when all hold, or one is not about T."""
    failing = [_failure(graph, node, longest, at_least) for node in _assertions(graph)]
    found = [t for t in failing if t is not None]
    return None if 0 in found else min(found, default=None)


def _assertions(graph: Graph) -> list[Node]:
    return graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default)


def _expression(node: Node) -> Any:
    condition = node.args[0]
    value = condition.meta.get("val") if isinstance(condition, Node) else condition
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    return value.node.expr


def _failure(graph: Graph, node: Node, longest: int | None, at_least: int) -> int | None:
    """As `counterexample`; None where the other way of the branch makes the same (see `empty_ways`)."""
    failing = counterexample(_expression(node), longest, at_least)
    return None if failing and asks_whether_anything(graph, _expression(node)) else failing


def _prove(graph: Graph, node: Node, longest: int | None, at_least: int) -> None:
    expr = _expression(node)
    failing = _failure(graph, node, longest, at_least)
    if failing is None:
        return
    line = node.meta.get("source", "an unknown line")
    if failing == 0:
        raise CaptureError(f"[capture] expected sizes that follow from T, found one that depends on values at {line}")
    raise CaptureError(
        f"[capture] expected code that does the same for every number of tokens T, found a branch on it at {line}: the "
        f"captured way needs {expr}, which fails for T = {failing}"
    )


def counterexample(expr: Any, longest: int | None = None, at_least: int = 1) -> int | None:
    """A T >= `at_least` for which `expr` is false, None when there is none; 0 when `expr` has more in it than T.

    No T above `longest` is tried, where it is given.
    Conditions on sizes are made of sums, products, quotients by constants, minima and comparisons: where truth changes,
    T is near one of their constants or a quotient of two of them, and those are tried beside small and large numbers.
    """
    if expr in (sympy.true, sympy.false):
        return None if expr == sympy.true else 1
    symbols = expr.free_symbols
    if len(symbols) != 1 or str(next(iter(symbols))).startswith("u"):
        return 0
    (symbol,) = symbols
    constants = {abs(int(n)) for n in expr.atoms(sympy.Integer)} | {1}
    near = {a // b + d for a in constants for b in constants if b for d in (-1, 0, 1)}
    near |= {longest or 1}
    near |= {a * b + d for a in constants for b in constants for d in (-1, 0, 1)}
    for tokens in sorted({*_SMALL, *_LARGE, *(n for n in near if n >= 1)}):
        if longest is not None and tokens > longest:
            break
        if tokens >= at_least and not _holds(expr, symbol, tokens):
            return tokens
    return None


def _holds(expr: Any, symbol: Any, tokens: int) -> bool:
    """Whether a condition is true for T = `tokens`; one that divides by the size of an empty tensor says nothing."""
    try:
        return bool(expr.xreplace({symbol: sympy.Integer(tokens)}) == sympy.true)
    except ZeroDivisionError:
        return True
