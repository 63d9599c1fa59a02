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
from .pointwise import POINTWISE

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


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

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
    rule = RULES.get(n.op_name(node))
    if rule is None:
        raise Refusal("it is not known what this op does to the keys of a sequence")
    step = Step(region, node, outside)
    found = rule(step)
    if isinstance(node.meta["val"], (tuple, list)):
        return tuple(step.result(r, v) for r, v in zip(found, node.meta["val"], strict=True))
    return found if isinstance(found, tuple) else step.result(found)


# --- rules: the runs of a result's dims

@_rule(*POINTWISE, "aten.type_as", "aten.nan_to_num")
def _pointwise(s: Step) -> Any:
    return s.broadcast(list(n.tensor_inputs(s.node)), n.rank(s.node))


@_rule("aten.clone", "aten.contiguous", "aten.alias", "aten.detach", "aten.zeros_like", "aten.ones_like",
       "aten.full_like", "aten.empty_like", "aten.dropout")
def _same(s: Step) -> Any:
    return s.runs(s.node.args[0])


@_rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(s: Step) -> Any:
    return s.broadcast([s.node.args[0]], n.rank(s.node))


@_rule("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as")
def _reshape(s: Step) -> Any:
    old = [d for d in s.dims(s.node.args[0]) if d.run is not None]
    new = [i for i, size in enumerate(n.shape_of(s.node)) if n.is_symbolic(size) and extent(size).share]
    if len(old) != len(new):
        raise Refusal("it regroups the dims of tokens")
    out: list[Run | None] = [None] * n.rank(s.node)
    for dim, i in zip(old, new, strict=True):
        if extent(n.shape_of(s.node)[i]).room != dim.share:
            dim.run.become(KEY)  # type: ignore[union-attr]
        out[i] = dim.run
    return out


@_rule("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.mT")
def _permute(s: Step) -> Any:
    runs = s.runs(s.node.args[0])
    return [runs[d] for d in n.permutation(s.node) or []]


@_rule("aten.unsqueeze")
def _unsqueeze(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    runs.insert(n.normal_dim(s.a["dim"], len(runs) + 1), None)
    return runs


@_rule("aten.squeeze")
def _squeeze(s: Step) -> Any:
    shape = n.shape_of(s.a["self"])
    dims = range(len(shape)) if s.a.get("dim") is None else [n.normal_dim(d, len(shape)) for d in n.as_list(s.a["dim"])]
    return [r for i, r in enumerate(s.runs(s.a["self"])) if not (i in dims and n.same_size(shape[i], 1))]


@_rule("aten.repeat_interleave")
def _repeat(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    if not isinstance(s.a.get("repeats"), int) or s.a.get("dim") is None:
        raise Refusal("it repeats a varying number of times")
    run = runs[n.normal_dim(s.a["dim"], len(runs))]
    if run is not None:
        run.become(KEY)  # every block as many keys as it has
    return runs


@_rule("aten.select")
def _select(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    dim = n.normal_dim(s.a["dim"], len(runs))
    if runs[dim] is not None:
        raise Refusal("it singles out a token")
    return runs[:dim] + runs[dim + 1 :]


@_rule("aten.slice")
def _slice(s: Step) -> Any:
    dims = s.dims(s.a["self"])
    dim = n.normal_dim(s.a["dim"], len(dims))
    if dims[dim].run is not None:
        kept = extent(n.shape_of(s.node)[dim])  # the whole blocks of a sequence, mostly
        whole = extent(n.shape_of(s.a["self"])[dim])
        start = s.a["start"] or 0
        if start != whole.more - kept.more and start != 0:
            raise Refusal("it singles out tokens by their place")
        if s.a["step"] != 1 or kept.share != whole.share:
            raise Refusal("it singles out tokens by their place")
        if not n.is_whole_slice(s.node):
            dims[dim].run.become(KEY)  # type: ignore[union-attr]
    return [d.run for d in dims]


@_rule("aten.copy")
def _copy(s: Step) -> Any:
    return s.broadcast([s.a["self"], s.a["src"]], n.rank(s.node))


@_rule("aten.slice_scatter")
def _slice_scatter(s: Step) -> Any:
    runs = s.broadcast([s.a["self"], s.a["src"]], n.rank(s.node))
    run = runs[n.normal_dim(s.a["dim"], len(runs))]
    if run is not None:
        if s.a["start"] not in (None, 0, 1) or s.a["step"] != 1:
            raise Refusal("it writes to tokens by their place")
        run.become(KEY)
    return runs


@_rule("aten.constant_pad_nd", "aten.pad")
def _pad(s: Step) -> Any:
    dims, widths = s.dims(s.a["self"]), list(s.a["pad"])
    for i in range(len(widths) // 2):
        dim = dims[-1 - i]
        if dim.run is None:
            continue
        low, high = widths[2 * i : 2 * i + 2]
        filled = extent(n.shape_of(s.node)[len(dims) - 1 - i]).room == dim.share
        if low != 0 or (high != 0 and not filled):
            raise Refusal("it pads or shifts the tokens")
        if high != 0:
            dim.run.become(KEY)  # filled up to whole blocks
    return [d.run for d in dims]


@_rule("aten.baddbmm")
def _baddbmm(s: Step) -> Any:
    out = _product(s, s.a["batch1"], s.a["batch2"])
    for i, dim in enumerate(reversed(s.dims(s.a["self"])), start=1):
        if dim.run is not None:
            out[-i] = dim.run if out[-i] is None else out[-i].join(dim.run)
    return out


@_rule("aten.matmul", "aten.bmm")
def _matmul(s: Step) -> Any:
    return _product(s, *s.node.args[:2])


def _product(s: Step, x: Node, y: Node) -> Any:
    if min(n.rank(x), n.rank(y)) < 2:
        raise Refusal("it multiplies by a vector")
    a, b = s.dims(x), s.dims(y)
    if a[-1].run is not None:
        a[-1].run.join(b[-2].run if b[-2].run is not None else Run()).become(KEY)
    out: list[Run | None] = [None] * n.rank(s.node)
    out[-2], out[-1] = a[-2].run, b[-1].run
    for lead in (a[:-2], b[:-2]):
        for i, dim in enumerate(reversed(lead), start=3):
            if dim.run is not None:
                out[-i] = dim.run if out[-i] is None else out[-i].join(dim.run)  # type: ignore[union-attr]
    return out


@_rule("aten.softmax", "aten.log_softmax")
def _softmax(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    run = runs[n.normal_dim(s.a["dim"], len(runs))]
    if run is not None:
        run.become(KEY)
    return runs


@_rule("aten.sum", "aten.amax", "aten.amin", "aten.any", "aten.mean")
def _reduce(s: Step) -> Any:
    x = s.node.args[0]
    runs, dims = s.runs(x), n.reduced_dims(s.node, s.a)
    for d in dims:
        if runs[d] is not None:
            if n.op_name(s.node) == "aten.mean":
                raise Refusal("it averages over tokens, however many there are")
            runs[d].become(KEY)  # type: ignore[union-attr]
            runs[d] = None
    keep = s.a.get("keepdim", False)
    return [r for i, r in enumerate(runs) if keep or i not in dims]


@_rule("aten.topk")
def _topk(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    dim = n.normal_dim(s.a["dim"], len(runs))
    if runs[dim] is not None:
        runs[dim].become(KEY)  # type: ignore[union-attr]
        runs[dim] = None
    return (runs, list(runs))


@_rule("operator.getitem")
def _getitem(s: Step) -> Any:
    return s.region.dims[s.node.args[0]][s.node.args[1]]


@_rule("aten.gather", "aten.scatter", "aten.scatter_add")
def _gather(s: Step) -> Any:
    dim = n.normal_dim(s.a["dim"], n.rank(s.node))
    operands = [s.a[k] for k in ("self", "index", "src") if isinstance(s.a.get(k), Node)]
    along = [s.runs(x)[dim] for x in operands]
    if along[0] is not None:
        along[0].become(KEY)
    out: list[Run | None] = [None] * n.rank(s.node)
    for x in operands:
        for i, run in enumerate(s.runs(x)):
            if run is not None and i != dim:
                out[i] = run if out[i] is None else out[i].join(run)  # type: ignore[union-attr]
    out[dim] = along[1] if n.is_op(s.node, "aten.gather") else along[0]
    return out


@_rule("aten.cat")
def _cat(s: Step) -> Any:
    out = s.broadcast(list(s.node.args[0]), n.rank(s.node))
    run = out[n.normal_dim(s.a.get("dim", 0), n.rank(s.node))]
    if run is not None:
        run.become(KEY)
    return out


@_rule("aten.linear", "aten.layer_norm", "aten.rms_norm")
def _last(s: Step) -> Any:
    runs = s.runs(s.a["input"])
    if runs[-1] is not None:
        raise Refusal("it sums over tokens")
    return [*runs[:-1], None]


@_rule("aten.full", "aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
       "aten.new_empty", "aten.arange")
def _create(s: Step) -> Any:
    return [None] * n.rank(s.node)


@_rule("autodeploy.mask")
def _mask(s: Step) -> Any:
    if not s.a["causal"]:
        raise Refusal("its mask shows a token what follows it", "only causal models can be compiled")
    query, key = Run(), Run()
    query.become(QUERY)
    if s.a["padding"] is not None:
        (seen,) = s.runs(s.a["padding"])
        key = seen if seen is not None else key
    key.become(KEY)
    return [query, key]
