"""Places along lines of tokens: numbers that models count in order to look back as far as some mark and no further.

A `Place` is what an integer or a flag says about places i = 0, 1, ... of a dim of T + extra entries (`token_lines`).
None of them is a value that a runtime could have, since it counts from where a line starts; but how they are compared
and used to gather is decided by a few tokens back alone:

1. `Index`: i + offset, from arange.
2. `Marked`: i + offset where a flag is set, offset - 1 elsewhere, from where.
3. `Last`: the largest of those so far, from cummax, which is the last marked place (or -1); later by `late` entries.
4. `Since`: how far the last marked place is back: an Index less a Last.
5. `From`: whether i is at least `first`.

Since >= n says that none of the entries between is marked: a `window` of flags. From, joined by `and` with flags about
entries behind `first`, says nothing new about them. A gather at an Index that does not go below 0 is a delay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from . import nodes as n
from .nodes import aten
from .token_lines import Line, Lines, Number, constant_of, delayed, window


@dataclass(frozen=True)
class Place:
    """`dim` counts from the last dim (-1); other dims have size 1, or are copies."""

    dim: int
    extra: int


@dataclass(frozen=True)
class Index(Place):
    offset: int = 0
    low: int | None = None  # clamped to at least this


@dataclass(frozen=True)
class Marked(Place):
    flags: Line = None  # type: ignore[assignment]
    offset: int = 0


@dataclass(frozen=True)
class Last(Marked):
    late: int = 0


@dataclass(frozen=True)
class Since(Last):
    """i less the last marked place among those up to i - late, plus offset."""


@dataclass(frozen=True)
class From(Place):
    first: int = 0


def place_of(lines: Lines, node: Node) -> Place | Line | None:
    """What a call that makes or reads places says: a Place, or a line; None of any other call."""
    if not hasattr(node.target, "_schema"):
        if n.op_name(node) == n.GETITEM and node.args[1] == 0:
            return lines.places.get(node.args[0])
        return None
    name, a = n.op_name(node), n.bound(node)
    if name == "aten.arange":
        return _arange(lines, node, a)
    if not any(x in lines.places for x in node.all_input_nodes):
        return None
    rule = _RULES.get(name)
    return rule(lines, node, a) if rule is not None else None


def _arange(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    start, size = a.get("start", 0), lines.size(n.shape_of(node)[0])
    if size is None or size[1] != 1 or not isinstance(start, int) or a.get("step", 1) != 1:
        return None
    return None if n.dtype_of(node).is_floating_point else Index(-1, size[0], start)


# --- views


def _kept(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    return lines.places.get(node.args[0])


def _to(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    integer = not n.dtype_of(node).is_floating_point and n.dtype_of(node) == n.dtype_of(node.args[0])
    return lines.places.get(node.args[0]) if integer else None


def _unsqueeze(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    place = lines.places.get(a["self"])
    if place is None:
        return None
    behind = n.normal_dim(a["dim"], n.rank(node)) - n.rank(node) > place.dim
    return replace(place, dim=place.dim - behind)


def _slice(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    """Cutting off the last entries, or none."""
    place, end = lines.places.get(a["self"]), lines.size(2**62 if a["end"] is None else a["end"])
    if place is None or a["step"] != 1 or a["start"] not in (None, 0) or end is None:
        return None
    if n.normal_dim(a["dim"], n.rank(node)) - n.rank(node) != place.dim:
        return place if end == (2**63 - 1, 0) or end == (2**62, 0) else None
    if end[1] == 0 and end[0] < 0:
        return replace(place, extra=place.extra + end[0])
    if end[1] == 0 and end[0] >= 2**62:
        return place
    return replace(place, extra=end[0]) if end[1] == 1 and -1 <= end[0] <= place.extra else None


def _cat(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    """Entries before the first that say, as those of a Last do there, that nothing is marked yet."""
    parts = node.args[0]
    place = lines.places.get(parts[-1])
    if not isinstance(place, Last) or isinstance(place, Since):
        return None
    dim = n.normal_dim(a.get("dim", 0), n.rank(node))
    if dim - n.rank(node) != place.dim:
        return None
    for part in parts[:-1]:
        count = n.shape_of(part)[dim]
        if n.is_symbolic(count) or constant_of(part) != place.offset - 1:
            return None
        place = replace(place, late=place.late + int(count), extra=place.extra + int(count))
    return place


# --- arithmetic


def _add(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    sign = -1 if n.op_name(node) == "aten.sub" else 1
    x, y = a["self"], a["other"]
    place, other = lines.places.get(x), lines.places.get(y) if isinstance(y, Node) else None
    if a.get("alpha", 1) != 1 or n.dtype_of(node).is_floating_point:
        return None
    if isinstance(place, Index) and place.low is None and isinstance(other, Last) and sign == -1:
        if isinstance(other, Since) or (other.dim, other.extra) != (place.dim, place.extra):
            return None
        return Since(other.dim, other.extra, other.flags, place.offset - other.offset, other.late)
    number = _integer(y)
    if place is None and sign == 1 and other is not None:
        place, number = other, _integer(x)
    clamped = isinstance(place, Index) and place.low is not None
    if place is None or number is None or isinstance(place, From) or clamped:
        return None
    return replace(place, offset=place.offset + sign * number)  # type: ignore[call-arg]


def _integer(x: Any) -> int | None:
    value = constant_of(x) if isinstance(x, Node) else x
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _clamp(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    place, low = lines.places.get(a["self"]), _integer(a.get("min", a.get("other")))
    if not isinstance(place, Index) or place.low is not None or low is None or a.get("max") is not None:
        return None
    return replace(place, low=low)


def _where(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    place, other = lines.places.get(a["self"]), _integer(a["other"])
    flags = lines.of(a["condition"])
    if not isinstance(place, Index) or place.low is not None or other != place.offset - 1 or flags is None:
        return None
    rank = n.rank(a["condition"])
    if flags.dim - rank != place.dim or flags.extra != place.extra or n.rank(node) != rank:
        return None
    return Marked(place.dim, place.extra, flags, place.offset)


def _cummax(lines: Lines, node: Node, a: dict[str, Any]) -> Place | None:
    place = lines.places.get(a["self"])
    if not isinstance(place, Marked) or isinstance(place, Last):
        return None
    if n.normal_dim(a["dim"], n.rank(a["self"])) - n.rank(a["self"]) != place.dim:
        return None
    return Last(place.dim, place.extra, place.flags, place.offset)


# --- what they are for

_FLIPPED = {"aten.ge": "aten.le", "aten.gt": "aten.lt", "aten.le": "aten.ge", "aten.lt": "aten.gt"}


def _compare(lines: Lines, node: Node, a: dict[str, Any]) -> Place | Line | None:
    name, place, number = n.op_name(node), lines.places.get(a["self"]), _integer(a["other"])
    if place is None:
        name, place, number = _FLIPPED[name], lines.places.get(a["other"]), _integer(a["self"])
    if number is None:
        return None
    least = number + (name in ("aten.gt", "aten.le"))  # x > n: x >= n + 1; x <= n: not x >= n + 1
    negated = name in ("aten.lt", "aten.le")
    if isinstance(place, Index) and place.low is None and not negated:
        return From(place.dim, place.extra, least - place.offset)
    return _unmarked(lines, node, place, least, negated) if isinstance(place, Since) else None


def _unmarked(lines: Lines, node: Node, place: Since, least: int, negated: bool) -> Line | None:
    """Since >= least: no entry between `late` and least - offset - 1 back is marked, nor before the first entry."""
    flags, farthest = place.flags, least - place.offset - 1
    if farthest < place.late:
        return None
    before: Any = flags.fill
    if farthest > flags.before:  # what stands before the first entry counts as marked
        before = True if not flags.before or before is True else None
    if isinstance(before, Node) or before is None:
        return None
    back = list(range(farthest, place.late - 1, -1))
    out, order, rest = window(lines, replace(flags, fill=before), back)
    marked = lines.call(aten.any.dim, out, 1)
    marked = lines.call(aten.reshape.default, marked, [-1, *rest])
    marked = lines.call(aten.permute.default, marked, [order.index(i) for i in range(len(order))])
    rows = marked if negated else lines.call(aten.logical_not.default, marked)
    fill: Number | None = negated if before is True else None
    return Line(rows, flags.dim, flags.before, flags.extra, fill)


def _and(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    """Flags that hold from a place on only, of which nothing before that place is asked."""
    x, y = a["self"], a["other"]
    place, flags = lines.places.get(x), lines.of(y)
    if place is None:
        place, flags = lines.places.get(y), lines.of(x)
    if not isinstance(place, From) or flags is None or flags.extra != place.extra:
        return None
    rank = n.rank(x if x not in lines.places else y)
    if flags.dim - rank != place.dim or n.rank(node) != rank:
        return None
    if place.first <= 0 or (flags.before and flags.fill is False and place.first <= flags.before):
        return flags
    if place.first <= flags.before:
        return replace(flags, fill=None)
    # Tokens before the place: nothing holds, which a delay of flags that always hold says.
    always = lines.call(aten.logical_or.default, flags.rows, lines.call(aten.logical_not.default, flags.rows))
    late = delayed(lines, Line(always, flags.dim, fill=False), place.first - flags.before)
    return replace(flags, rows=lines.call(aten.logical_and.default, flags.rows, late), fill=False)


def _gather(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, place = lines.of(a["self"]), lines.places.get(a["index"])
    dim = n.normal_dim(a["dim"], n.rank(node))
    if line is None or not isinstance(place, Index) or line.dim != dim or place.dim != dim - n.rank(node):
        return None
    if place.offset > 0 or (place.offset < 0 and place.low != 0) or line.extra != place.extra:
        return None
    sizes = zip(n.shape_of(a["self"]), n.shape_of(node), strict=True)
    if not all(n.same_size(p, q) for i, (p, q) in enumerate(sizes) if i != dim):
        return None
    fill = line.fill if line.before or not place.offset else None  # else the first token, again and again
    return replace(line, before=line.before - place.offset, fill=fill)


_RULES: dict[str, Any] = {
    **dict.fromkeys(("aten.alias", "aten.clone", "aten.contiguous", "aten.detach", "aten.expand"), _kept),
    **dict.fromkeys(("aten.to", "aten._to_copy"), _to),
    "aten.unsqueeze": _unsqueeze, "aten.slice": _slice,
    **dict.fromkeys(("aten.cat", "aten.concat", "aten.concatenate"), _cat),
    "aten.add": _add, "aten.sub": _add, "aten.clamp_min": _clamp, "aten.clamp": _clamp, "aten.maximum": _clamp,
    "aten.where": _where, "aten.cummax": _cummax, "aten.gather": _gather,
    **dict.fromkeys(_FLIPPED, _compare),
    **dict.fromkeys(("aten.__and__", "aten.bitwise_and", "aten.logical_and"), _and),
}  # fmt: skip
