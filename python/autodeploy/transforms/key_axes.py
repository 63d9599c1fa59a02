"""Which dims of a value run over the queries of a sequence and which over its keys, for `raise_over_keys`.

A captured graph is one sequence, so both have the size T there. A value that pairs tokens has a dim for the queries
(the tokens whose results are asked for) and one for the keys (all tokens that the sequence has so far); values made
from keys alone may pool them in blocks, and then have T // b of them. Dims get a `Run`, a variable that stands for one
of the two until something tells: a mask says it of its rows and columns, a sum, a softmax or a selection runs over
keys, and whatever stands beside a dim of keys is a dim of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch.fx import Node

from . import nodes as n
from .axes import Refusal

QUERY, KEY = "query", "key"
_MANY = 10**9  # a number of tokens beyond every size that a configuration names
_FINEST = 1 << 20  # keys in the largest block
_MOST_MORE = 1  # blocks that a dim may have more or fewer than a share of the tokens
_WHOLE = 2**20 * 3**4 * 5**2 * 7 * 11 * 13  # tokens that are a whole number of blocks of any usual size


class Run:
    """A variable for what a dim runs over; joined runs are one."""

    def __init__(self) -> None:
        self._joined: Run | None = None
        self._kind: str | None = None
        self.beside: list[Run] = []  # runs that share a value with this one

    def root(self) -> Run:
        run = self
        while run._joined is not None:
            run = run._joined
        return run

    @property
    def kind(self) -> str | None:
        return self.root()._kind

    def become(self, kind: str) -> None:
        """This dim runs over queries, or over keys; raises Refusal when it is known to run over the other."""
        run = self.root()
        if run._kind == kind:
            return
        if run._kind is not None:
            raise Refusal("it takes the same dim for the tokens that ask and for the tokens that are seen")
        run._kind = kind
        for other in run.beside:
            other.become(QUERY if kind == KEY else KEY)

    def join(self, other: Run) -> Run:
        """Both are one from now on."""
        a, b = self.root(), other.root()
        if a is b:
            return a
        kind = b._kind
        b._joined = a
        a.beside += b.beside
        if kind is not None and a._kind is None:
            a.become(kind)
        elif a._kind is not None and kind is None:
            for run in b.beside:
                run.become(QUERY if a._kind == KEY else KEY)
        elif kind != a._kind:
            raise Refusal("it combines a dim of tokens that ask with a dim of tokens that are seen")
        if any(run.root() is a for run in a.beside):
            raise Refusal("it pairs the same tokens twice")
        return a

    def stand_beside(self, other: Run) -> None:
        """Two dims of one value: one runs over queries, the other over keys."""
        a, b = self.root(), other.root()
        if a is b:
            raise Refusal("it pairs the same tokens twice")
        a.beside.append(b)
        b.beside.append(a)
        for x, y in ((a, b), (b, a)):
            if x._kind is not None:
                y.become(QUERY if x._kind == KEY else KEY)


@dataclass(frozen=True)
class Extent:
    """A size as a function of the number of tokens T: `share` * T for many tokens, else `count` from `enough` on.

    `more`: what it has more than its share: fewer in a tensor that left out its first or last blocks, more in one with
    a place behind all others for what belongs nowhere.
    """

    share: Fraction
    count: int = 0
    enough: int = 0
    more: int = 0

    @property
    def room(self) -> Fraction:
        """The share that a dim gets in a body: a shortened one has its full length there, one with more the double."""
        return self.share * 2 if self.more > 0 else self.share


def extent(size: Any) -> Extent:
    """How a traced size grows.

    Raises:
        Refusal: it is no share of the tokens, such as T + 1.
    """
    if isinstance(size, int) or not n.is_symbolic(size):
        return Extent(Fraction(0), int(size))
    at = [size_at(size, k * _MANY) for k in (1, 2)]
    share = Fraction(at[1] - at[0], _MANY).limit_denominator(_FINEST)
    if not share:
        if any(size_at(size, _MANY + t) != at[0] for t in range(1, 8)):
            raise Refusal(f"a size of {size.node.expr} for T tokens comes back in turns")
        return Extent(Fraction(0), at[0], _first(lambda t: size_at(size, t) == at[0]))
    whole = _WHOLE * share.denominator
    more = size_at(size, whole) - share * whole
    if abs(more) > _MOST_MORE:
        raise Refusal(f"a size of {size.node.expr} for T tokens is no share of them")
    return Extent(share, more=int(more))


def size_at(size: Any, tokens: int) -> int:
    """A traced size for a number of tokens."""
    if isinstance(size, int) or not n.is_symbolic(size):
        return int(size)
    (symbol,) = size.node.expr.free_symbols
    try:
        return int(size.node.expr.xreplace({symbol: tokens}))
    except ZeroDivisionError:  # a dim whose size was told from the others, one of which is 0 now
        return int(size.node.expr.xreplace({symbol: _MANY}))


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest T from which on a monotone condition holds."""
    low, high = 0, 1
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Dim:
    """A dim of a value in a region: a number (`run` is None), or `share` of what it runs over."""

    run: Run | None
    share: Fraction
    count: int = 0


Dims = tuple[Dim, ...]
STATIC = Fraction(0)


@dataclass
class Region:
    """Values of the calls that pair tokens, as far as they are known."""

    dims: dict[Node, Any] = field(default_factory=dict)  # Dims, or a tuple of them
    enough: dict[Node, int] = field(default_factory=dict)  # tokens from which on a call's sizes are what they are
    leaves: dict[tuple[Node, Node], Dims] = field(default_factory=dict)  # (value from outside, reader)

    def of(self, x: Any, reader: Node, outside: Callable[[Node], Any]) -> Dims:
        """Dims of an operand; one from outside gets runs of its own for each reader."""
        if x in self.dims:
            return self.dims[x]
        key = (x, reader)
        if key not in self.leaves:
            self.leaves[key] = outside(x)
        return self.leaves[key]


Rule = Callable[["Step"], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule of these ops, which gives the runs of a result's dims, or dims themselves (key_rules.py)."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


class Step:
    """One call being understood: its operands' dims, and its results' as its rule says them."""

    def __init__(self, region: Region, node: Node, outside: Callable[[Node], Any]):
        self.region, self.node, self._outside = region, node, outside
        self.a = n.bound(node) if hasattr(node.target, "_schema") else {}

    def dims(self, x: Any) -> Dims:
        return self.region.of(x, self.node, self._outside)

    def runs(self, x: Any) -> list[Run | None]:
        return [d.run for d in self.dims(x)]

    def result(self, runs: list[Run | None], value: Any = None) -> Dims:
        """Dims of a result whose symbolic dims run as given; a new run where none is."""
        value = self.node.meta["val"] if value is None else value
        out = []
        for run, size in zip(runs, value.shape, strict=True):
            if not n.is_symbolic(size):
                out.append(Dim(None, STATIC, int(size)))
                continue
            grown = extent(size)
            if not grown.share:
                self.region.enough[self.node] = max(self.region.enough.get(self.node, 0), grown.enough)
                out.append(Dim(None, STATIC, grown.count))
                continue
            run = Run() if run is None else run
            if grown.room != 1 or grown.more:
                run.become(KEY)
            out.append(Dim(run, grown.room))
        symbolic = [d.run for d in out if d.run is not None]
        if len(symbolic) > 2:
            raise Refusal("it has tokens in three dims")
        if len(symbolic) == 2 and symbolic[1].root() not in [r.root() for r in symbolic[0].root().beside]:
            symbolic[0].stand_beside(symbolic[1])
        return tuple(out)

    def broadcast(self, operands: list[Any], rank: int) -> list[Run | None]:
        out: list[Run | None] = [None] * rank
        for x in operands:
            for i, dim in enumerate(reversed(self.dims(x)), start=1):
                if dim.run is not None:
                    out[-i] = dim.run if out[-i] is None else out[-i].join(dim.run)  # type: ignore[union-attr]
        return out


def understand(region: Region, node: Node, outside: Callable[[Node], Any]) -> Any:
    """Dims of a call's result, or a tuple of them for several results.

    Raises:
        Refusal: no rule says what the call does to queries and keys.
    """
    found_rule = RULES.get(n.op_name(node))
    if found_rule is None:
        raise Refusal("it is not known what this op does to the keys of a sequence")
    step = Step(region, node, outside)
    found = found_rule(step)
    if isinstance(node.meta["val"], (tuple, list)):
        return tuple(step.result(r, v) for r, v in zip(found, node.meta["val"], strict=True))
    return found if isinstance(found, tuple) else step.result(found)
