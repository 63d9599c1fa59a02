"""Learns what an opaque function on arrays does to layout and values, by running it on numbered elements.

The function may reorder, reshape or place an array into a part of a larger one, and apply one elementwise map (such as
w - 1 or log(-w)). Learned are: the elementwise map, from its values at known points; the place of every element, from
numbers 1..n passed through the map's inverse; and the result is checked on random numbers.

Rows (last dimension) mostly stay whole, so a few columns are enough, whatever the size. Where the function insists on
full rows, or breaks them, it runs on the whole shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import WeightError
from .evaluate import evaluate
from .expr import Expr, binary, permute, reshape, take, tensor, unary
from .formats import Array, Stored

Process = Callable[[Array], dict[str, Array]]
Apply = Callable[[Expr], Expr]

_COLUMNS = 3
_MAX_ELEMENTS = 1 << 27  # of a function that must run on the whole shape
_MAX_CHECKED = 1 << 22  # elements on which a result is confirmed
_MAX_SCATTERED = 1 << 20  # elements that may be listed one by one


@dataclass(frozen=True)
class Piece:
    """A tensor's part in a result: `apply` makes it; it fills [start, stop) of `size` along `dim` (None: all)."""

    apply: Apply
    dim: int | None = None
    start: int = 0
    stop: int = 0
    size: int = 0


def learn(process: Process, shape: tuple[int, ...], name: str) -> dict[str, Piece]:
    """The pieces that `process` makes of an array of `shape`, by result name; empty if it makes none.

    Raises WeightError naming the tensor when the effect is none of those described above.
    """
    probe = np.broadcast_to(np.float64(0.5), shape)
    with np.errstate(all="ignore"):
        first = _try(process, probe)
    if first is not None and all(a is probe for a in first.values()):
        return {target: Piece(lambda x: x) for target in first}
    few = (*shape[:-1], min(shape[-1], _COLUMNS)) if len(shape) > 1 else shape
    for size in dict.fromkeys([few, shape]):
        if math.prod(size) > _MAX_ELEMENTS:
            break
        for value_map in _value_maps(process, size):
            found = _learn_layout(process, size, value_map, whole=size == shape)
            if found is not None and _agrees(process, size, found) and _agrees(process, _check_size(shape), found):
                return found
    raise WeightError(
        f"[{name}] its conversion cannot be expressed: it is neither a reordering nor a known function of values"
    )


def _check_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape to confirm what was learned on few columns: the whole one, or some more columns where it is large."""
    whole = len(shape) < 2 or math.prod(shape) <= _MAX_CHECKED
    return shape if whole else (*shape[:-1], min(shape[-1], 2 * _COLUMNS + 1))


@dataclass(frozen=True)
class _ValueMap:
    """An elementwise map, its inverse, and where its argument must lie (a sign)."""

    apply: Apply
    inverse: Callable[[Array], Array]
    sign: int = 1
    exact: bool = False  # whole numbers stay whole, however large
    identity: bool = False


def _affine(a: float, b: float) -> _ValueMap:
    def apply(x: Expr) -> Expr:
        if a != 1:
            x = binary("mul", x, a)
        return binary("add", x, b) if b > 0 else binary("sub", x, -b) if b < 0 else x

    return _ValueMap(apply, lambda y: (y - b) / a, exact=True, identity=(a, b) == (1, 0))


_FIXED_MAPS = (
    _ValueMap(lambda x: unary("log", unary("neg", x)), lambda y: -np.exp(y), sign=-1),
    _ValueMap(lambda x: unary("neg", unary("exp", x)), lambda y: np.log(-y)),
    _ValueMap(lambda x: unary("log", x), np.exp),
    _ValueMap(lambda x: unary("exp", x), np.log),
    _ValueMap(lambda x: unary("reciprocal", x), lambda y: 1 / y),
    _ValueMap(lambda x: unary("sqrt", x), np.square),
    _ValueMap(lambda x: unary("square", x), np.sqrt),
)


def _value_maps(process: Process, shape: tuple[int, ...]) -> list[_ValueMap]:
    """Candidates, most likely first: the line through two constants, then the fixed list."""
    with np.errstate(all="ignore"):
        at_one, at_two = _try(process, np.full(shape, 1.0)), _try(process, np.full(shape, 2.0))
    if not at_one or not at_two:
        return []
    one, two = (float(np.max(next(iter(r.values())))) for r in (at_one, at_two))
    maps = list(_FIXED_MAPS)
    if math.isfinite(one) and math.isfinite(two) and two != one:
        maps.insert(0, _affine(two - one, one - (two - one)))
    return maps


def _learn_layout(
    process: Process, shape: tuple[int, ...], value_map: _ValueMap, whole: bool
) -> dict[str, Piece] | None:
    count = math.prod(shape)
    numbers = np.arange(1, count + 1, dtype=np.float64).reshape(shape)
    # Functions such as exp leave float64's range for large numbers: those are scaled into (0, 1].
    scale = 1.0 if value_map.exact else 1.0 / count
    with np.errstate(all="ignore"):
        made = _try(process, value_map.sign * numbers * scale)
        if not made:
            return None
        pieces = {}
        for target, values in made.items():
            codes = value_map.inverse(values.astype(np.float64)) * value_map.sign / scale
            # Only what keeps values as they are may fill a part of something larger, which is zero elsewhere.
            written = values != 0 if value_map.identity else np.ones(values.shape, bool)
            piece = _decode(codes, written, shape, value_map.apply, whole)
            if piece is None:
                return None
            pieces[target] = piece
    return pieces


def _decode(codes: Array, written: Array, shape: tuple[int, ...], on_value: Apply, whole: bool) -> Piece | None:
    """Reads where each element went; another tensor fills the places that were not written."""
    with np.errstate(all="ignore"):
        rounded = np.where(written, np.rint(codes), 0)
    if not np.all(np.isfinite(rounded)) or np.any(np.abs(rounded - codes)[written] > 1e-3):
        return None
    order = rounded.astype(np.int64)
    place = _place(written)
    if place is None:
        return None
    dim, start, stop = place
    if dim is not None:
        order = np.take(order, range(start, stop), axis=dim)
    if order.size != math.prod(shape) or not np.array_equal(np.sort(order, axis=None), np.arange(1, order.size + 1)):
        return None
    layout = _layout(order - 1, shape, whole)
    if layout is None:
        return None
    return Piece(lambda x: on_value(layout(x)), dim, start, stop, written.shape[dim] if dim is not None else 0)


def _place(written: Array) -> tuple[int | None, int, int] | None:
    """The one dimension along which the written part is a run; (None, 0, 0) when everything is written."""
    if written.all():
        return None, 0, 0
    for dim in range(written.ndim):
        other = tuple(d for d in range(written.ndim) if d != dim)
        lines = np.asarray(written.all(axis=other))
        if not np.array_equal(lines, written.any(axis=other)) or not lines.any():
            continue
        start, stop = int(np.argmax(lines)), len(lines) - int(np.argmax(lines[::-1]))
        if lines[start:stop].all():
            return dim, start, stop
    return None


def _layout(order: Array, shape: tuple[int, ...], whole: bool) -> Apply | None:
    """`order` holds, at each place of the result, the element that came there."""
    out, columns = order.shape, shape[-1] if shape else 1
    if len(shape) == 1 and len(out) == 1:
        return lambda x: _reordered(x, order)
    if out and out[-1] == columns:
        rows = order.reshape(-1, columns)
        index = rows[:, 0] // columns
        if np.array_equal(rows, index[:, None] * columns + np.arange(columns)):
            return lambda x: _rows(x, index, out[:-1])
    numbers = np.arange(order.size).reshape(shape)
    for dims in itertools.permutations(range(len(shape))):
        if np.array_equal(numbers.transpose(dims), order):
            return lambda x, dims=dims: permute(x, dims)  # type: ignore[misc]
    if not whole:
        return None
    if np.array_equal(numbers.reshape(-1), order.reshape(-1)):
        return lambda x: reshape(x, out)
    if order.size > _MAX_SCATTERED:
        return None
    return lambda x: reshape(_reordered(reshape(x, (order.size,)), order.reshape(-1)), out)


def _rows(x: Expr, index: Array, lead: tuple[int, ...]) -> Expr:
    """Rows of x in another order, with new leading dimensions."""
    columns = x.shape[-1]
    return reshape(_reordered(reshape(x, (index.size, columns)), index), (*lead, columns))


def _reordered(x: Expr, index: Array) -> Expr:
    """Entries of dimension 0 in another order: two factors of it swapped, where that is the order, else a list."""
    count = index.size
    step = int(index[1]) if count > 1 and index[0] == 0 else 0
    if step > 1 and count % step == 0:
        jumps = np.flatnonzero(np.diff(index) != step)
        length = int(jumps[0]) + 1 if jumps.size else count
        if count % (step * length) == 0:
            grid = (count // (step * length), length, step)
            if np.array_equal(np.arange(count).reshape(grid).swapaxes(1, 2).reshape(-1), index):
                rest = x.shape[1:]
                parts = permute(reshape(x, (*grid, *rest)), [0, 2, 1, *range(3, 3 + len(rest))])
                return reshape(parts, (count, *rest))
    return take(x, 0, index)


def _agrees(process: Process, shape: tuple[int, ...], pieces: dict[str, Piece]) -> bool:
    """Compares the learned pieces with the function on random numbers of either sign."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with np.errstate(all="ignore"):
        made = _try(process, values)
    if made is None or set(made) != set(pieces):
        return False
    for target, piece in pieces.items():
        found = evaluate(piece.apply(tensor("x", "f32", shape)), lambda _: Stored.from_f32(values)).to_f32()
        want = made[target]
        if piece.dim is not None:
            want = np.take(want, range(piece.start, piece.stop), axis=piece.dim)
        if found.shape != want.shape or not np.allclose(found, want, rtol=1e-6, atol=1e-7, equal_nan=True):
            return False
    return True


def _try(process: Process, array: Array) -> dict[str, Array] | None:
    """None where the function does not take such an array."""
    try:
        return process(array)
    except (ValueError, IndexError, TypeError, RuntimeError):
        return None
