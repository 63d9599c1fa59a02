"""Where tokens are in a value: axes, how they meet, and the table of rules that the proof of the token axis follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from . import nodes as n


@dataclass(frozen=True)
class Axis:
    """How a dim of size outer * T * inner runs: slowest over `outer`, fastest over `inner`."""

    outer: int = 1
    inner: int = 1


TOKENS = Axis()
Axes = tuple[Axis | None, ...]  # per dim; None: independent of T


class Refusal(Exception):
    """Raised by a rule: why an op mixes tokens, and what to do."""

    def __init__(self, reason: str, remedy: str = "express it through an op that knows where sequences start"):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Analysis:
    """Axes of the values seen so far; rules read operands through it."""

    def __init__(self) -> None:
        self.axes: dict[Node, Axes | tuple[Axes, ...]] = {}

    def of(self, x: Any) -> Axes:
        """Axes of an operand; () for anything that is no tensor."""
        found = self.axes.get(x, ()) if isinstance(x, Node) else ()
        return found  # type: ignore[return-value]

    def tokens(self, x: Any) -> bool:
        return any(self.of(x))


Rule = Callable[[Analysis, Node, dict[str, Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule of these ops, a function (analysis, node, arguments by name) -> axes of the result(s)."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def place(axes: Axes, what: str = "it") -> Axes:
    """The axes of a value, which may have tokens in one dim only."""
    if sum(a is not None for a in axes) > 1:
        raise Refusal(f"{what} pairs tokens with tokens (two dims grow with the number of tokens)")
    return axes


def meet(a: Axis | None, b: Axis | None) -> Axis | None:
    """The axis of a dim in which two operands meet."""
    if a is None or b is None or a == b:
        return a or b
    raise Refusal(f"it combines tokens in different orders ({a} and {b})")


def broadcast(an: Analysis, operands: list[Any], result: torch.Tensor) -> Axes:
    """Axes of an elementwise result: tokens must stand in the same dim of every operand that has them."""
    out: list[Axis | None] = [None] * result.dim()
    for x in operands:
        for i, axis in enumerate(reversed(an.of(x)), start=1):
            out[-i] = meet(out[-i], axis)
    return place(tuple(out))


def no_size_as_number(node: Node) -> None:
    """Refuses a call that computes with the number of tokens."""
    if n.size_inputs(node):
        reason = "it computes with the number of tokens, which is another number in every step"
        raise Refusal(reason, "make it depend on position_ids instead")


def regroup(axes: Axes, old: torch.Size, new: torch.Size) -> Axes:
    """Axes after a row-major reshape from `old` to `new`.

    Raises:
        Refusal: tokens would change places with the factors around them.
    """
    outer, inner, seen = 1, 1, False
    for axis, size in zip(axes, old, strict=True):
        if axis is not None:
            outer, inner, seen = outer * axis.outer, axis.inner, True
        elif seen:
            inner *= int(size)
        else:
            outer *= int(size)
    if not seen:
        return (None,) * len(new)
    out: list[Axis | None] = []
    before = 1
    for i, size in enumerate(new):
        if not n.is_symbolic(size):
            out.append(None)
            before *= int(size)
            continue
        after = 1
        for later in new[i + 1 :]:
            if n.is_symbolic(later):
                raise Refusal("its result has the number of tokens in two dims")
            after *= int(later)
        axis = Axis(outer // before, inner // after) if outer % before == 0 and inner % after == 0 else None
        if axis is None or axis.outer * axis.inner != n.tokens_in(size):
            raise Refusal(f"reshaping {list(old)} to {list(new)} mixes tokens with the dims around them")
        out.append(axis)
        before = outer
    return tuple(out)
