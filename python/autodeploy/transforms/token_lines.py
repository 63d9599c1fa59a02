"""Lines of tokens: values that hold a sequence with something before it, while windows over tokens are being raised.

Models that look back over tokens pad them, shift them and cut them again. In between, a dim has T + c entries and its
places no longer are tokens. A `Line` says what such a value holds in terms of one that has a row for each token; the
rules here (`RULES`, by op) tell the line of an op's result from those of its operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .nodes import aten, canonical
from .rewrite import Rewriter

Number = int | float | bool


@dataclass(frozen=True)
class Line:
    """A value whose dim `dim` has T + `extra` entries: `before` times `fill`, then the T rows of `rows`.

    The entries are cut off, or go on with anything, where T + extra is not before + T. `rows` has the value's shape but
    for T entries in `dim`. `fill` is a number, a value without tokens that broadcasts to the entries (with size 1 in
    `dim`), or None: unknown.
    """

    rows: Node
    dim: int
    before: int = 0
    extra: int = 0
    fill: Number | Node | None = 0

    @property
    def plain(self) -> bool:
        """Whether entries are tokens."""
        return not self.before and not self.extra


class Lines:
    """The lines of a graph's values, and what rules need to make calls."""

    def __init__(self, ir: ModelIR):
        self.ir = ir
        self.rewriter = Rewriter(ir)
        self.symbol = ir.T.node.expr
        self.lines: dict[Node, Line] = {}
        self.fixed: set[Node] = set()  # values that no token has a part in
        self.unfolded: dict[Node, tuple[Line, int]] = {}  # windows of a line over so many tokens, oldest first
        self.places: dict[Node, Any] = {}  # what is counted along lines (`line_places`)
        self.at: Node | None = None  # where calls are made

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        assert self.at is not None
        return self.rewriter.call(target, *args, like=self.at, before=self.at, **kwargs)

    def size(self, x: Any) -> tuple[int, int] | None:
        """(c, k) of a size or an argument c + k * T; None of anything else."""
        value = x.meta.get("val") if isinstance(x, Node) else x
        if isinstance(value, int) and not isinstance(value, bool):
            return value, 0
        if not isinstance(value, torch.SymInt):
            return None
        expr = value.node.expr
        factor = expr.coeff(self.symbol)
        constant = (expr - factor * self.symbol).expand()
        return (int(constant), int(factor)) if factor.is_Integer and constant.is_Integer else None

    def of(self, x: Any) -> Line | None:
        """The line of a value: one that was found, or its own tokens where one dim has exactly T entries."""
        if not n.is_tensor(x):
            return None
        if x in self.lines:
            return self.lines[x]
        dims = [i for i, s in enumerate(n.shape_of(x)) if n.is_symbolic(s)]
        if len(dims) != 1 or self.size(n.shape_of(x)[dims[0]]) != (0, 1):
            return None
        return Line(x, dims[0])

    def is_fixed(self, x: Any) -> bool:
        """Whether an argument is a number, or a value that no token has a part in."""
        return not isinstance(x, Node) or x in self.fixed

    def fill_node(self, line: Line, shape: Any, dtype: torch.dtype) -> Node | None:
        """The fill of a line of this shape as a value with size 1 in its dim."""
        if line.fill is None:
            return None
        sizes = [1 if i == line.dim else int(s) for i, s in enumerate(shape)]
        if isinstance(line.fill, Node):
            return self.call(aten.expand.default, line.fill, sizes)
        return self.call(aten.full.default, sizes, line.fill, dtype=dtype)


# --- windows


def flat(lines: Lines, line: Line) -> tuple[Node, list[int], list[int]]:
    """The rows of a line as [T, C], the order of dims that put its tokens first, and the other dims' sizes."""
    shape = n.shape_of(line.rows)
    order = [line.dim, *(i for i in range(len(shape)) if i != line.dim)]
    rest = [int(shape[i]) for i in order[1:]]
    x = lines.call(aten.permute.default, line.rows, order)
    return lines.call(aten.reshape.default, x, [-1, _count(rest)]), order, rest


def _count(sizes: list[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def flat_fill(lines: Lines, line: Line, order: list[int], rest: list[int]) -> Node | None:
    """The fill of a line as [C]; None for zeros."""
    if not isinstance(line.fill, Node):
        if not line.fill:
            return None
        return lines.call(aten.full.default, [_count(rest)], line.fill, dtype=n.dtype_of(line.rows))
    fill = lines.fill_node(line, n.shape_of(line.rows), n.dtype_of(line.rows))
    assert fill is not None
    if n.dtype_of(fill) != n.dtype_of(line.rows):
        fill = lines.call(aten.to.dtype, fill, n.dtype_of(line.rows))
    fill = lines.call(aten.permute.default, fill, order)
    return lines.call(aten.reshape.default, fill, [_count(rest)])


def window(lines: Lines, line: Line, back: list[int]) -> tuple[Node, list[int], list[int]]:
    """[T, K, C] of a line's tokens, fill before them; with the order of dims and sizes that C is made of."""
    x, order, rest = flat(lines, line)
    if not any(back):
        return lines.call(aten.unsqueeze.default, x, 1), order, rest
    out = lines.call(canonical.window.default, x, flat_fill(lines, line, order, rest), back)
    out.meta["via"] = "pattern"
    return out, order, rest


def delayed(lines: Lines, line: Line, count: int) -> Node:
    """The rows of a line, `count` tokens late."""
    out, order, rest = window(lines, line, [count])
    out = lines.call(aten.reshape.default, lines.call(aten.select.int, out, 1, 0), [-1, *rest])
    return lines.call(aten.permute.default, out, [order.index(i) for i in range(len(order))])


Rule = Callable[[Lines, Node, dict[str, Any]], "Line | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule of these ops, a function (lines, node, arguments by name) -> line of the result, or None."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def fixed_value(node: Node, fixed: set[Node]) -> bool:
    """Whether no token has a part in a call's result (how many there are counts as one)."""
    if n.has_tokens(node) or n.size_inputs(node) or "rand" in n.op_name(node):
        return False
    if n.op_name(node) in _NEW:  # they read their operand's dtype alone, and a shape of numbers
        return True
    return all(x in fixed for x in node.all_input_nodes)


_NEW = ("aten.new_zeros", "aten.new_ones", "aten.new_full")


def constant_of(x: Node) -> Number | None:
    """The number that a tensor holds everywhere, if it was made so."""
    name = n.op_name(x)
    if name in ("aten.full", "aten.new_full", "aten.full_like"):
        return n.number(n.bound(x)["fill_value"])
    if name in ("aten.zeros", "aten.new_zeros", "aten.zeros_like"):
        return 0
    if name in ("aten.ones", "aten.new_ones", "aten.ones_like"):
        return 1
    if name in ("aten.expand", "aten.unsqueeze", "aten.squeeze", "aten.alias", "aten.clone", "aten.reshape",
                "aten.view", "aten.slice", "aten.select"):  # fmt: skip
        return constant_of(x.args[0])
    if n.is_cast(x) and (inner := constant_of(x.args[0])) is not None:
        return torch.tensor(inner).to(n.dtype_of(x)).item()
    return None


def joined(a: Line, fill: Number | Node | None, count: int) -> Number | Node | None:
    """The fill of a line with `count` more entries of `fill` before it; None where they differ from those there."""
    if not a.before or not count:
        return fill if count else a.fill
    return fill if type(a.fill) is type(fill) and a.fill == fill else None
