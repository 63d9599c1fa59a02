"""Evaluates expressions with NumPy: the reference of the loader, and what `--pack` runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .errors import WeightError
from .expr import Expr, binary, cast, cat, permute, reshape, slice_, stack, take, unary
from .formats import Array, Stored, is_block

# Gives a stored tensor by name; its `data` may be a view of a mapped file.
Read = Callable[[str], Stored]


def evaluate(x: Expr, read: Read) -> Stored:
    """The tensor that an expression stands for, in its format."""
    if x.op == "tensor":
        found = read(x.attrs["name"])
        if found.format != x.format or found.shape != x.shape:
            raise WeightError(
                f"[{x.attrs['name']}] expected {x.format} {list(x.shape)}, found {found.format} {list(found.shape)}"
            )
        return found
    if x.op == "data":
        return Stored(x.format, x.shape, x.attrs["values"])
    xs = [evaluate(y, read) for y in x.xs]
    if x.op in ("unary", "binary"):
        values = _elementwise(x, [y.to_f32() for y in xs])
        return Stored.from_f32(values.reshape(x.shape))
    if x.op == "cast":
        return xs[0].cast(x.format)
    return Stored(x.format, x.shape, _move(x, [y.data for y in xs]))


def _move(x: Expr, arrays: list[Array]) -> Array:
    """Operations on layout. Block formats have a last dimension of bytes, which stays whole."""
    a, attrs = arrays[0], x.attrs
    if x.op == "slice":
        where = [slice(None)] * a.ndim
        where[attrs["dim"]] = slice(attrs["start"], attrs["stop"], attrs["step"])
        return a[tuple(where)]
    if x.op == "cat":
        return np.concatenate(arrays, axis=attrs["dim"])
    if x.op == "stack":
        return np.stack(arrays, axis=attrs["dim"])
    if x.op == "permute":
        return a.transpose(attrs["dims"])
    if x.op == "take":
        picked: Array = a.take(attrs["index"], axis=attrs["dim"])
        return picked
    if x.op == "reshape":
        return a.reshape((*x.shape[:-1], a.shape[-1]) if is_block(x.format) else x.shape)
    raise WeightError(f"[{x.op}] unknown operation")


_UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "reciprocal": np.reciprocal,
    "abs": np.abs,
    "square": np.square,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "rsub": lambda a, b: np.subtract(b, a),
    "mul": np.multiply,
    "div": np.divide,
    "rdiv": lambda a, b: np.divide(b, a),
    "pow": np.power,
}


def _elementwise(x: Expr, values: list[Array]) -> Array:
    with np.errstate(all="ignore"):
        if x.op == "unary":
            return _UNARY[x.attrs["f"]](values[0])
        y = values[1] if len(values) == 2 else np.float32(x.attrs["y"])
        return _BINARY[x.attrs["f"]](values[0], np.asarray(y))


def rows(x: Expr, start: int, stop: int) -> Expr:
    """x[start:stop] with the slice pushed down to the leaves, so that little more than the result is ever in memory."""
    if start == 0 and stop == x.shape[0]:
        return x
    if x.op == "cat":
        if x.attrs["dim"]:
            return cat([rows(y, start, stop) for y in x.xs], x.attrs["dim"])
        pieces, at = [], 0
        for y in x.xs:
            low, high = max(start - at, 0), min(stop - at, y.shape[0])
            if low < high:
                pieces.append(rows(y, low, high))
            at += y.shape[0]
        return cat(pieces, 0)
    if x.op == "stack":
        if x.attrs["dim"]:
            return stack([rows(y, start, stop) for y in x.xs], x.attrs["dim"])
        return stack(x.xs[start:stop], 0)
    if x.op == "permute" and x.attrs["dims"][0] == 0:
        return permute(rows(x.xs[0], start, stop), x.attrs["dims"])
    if x.op == "reshape":
        return _reshaped_rows(x, start, stop)
    if x.op == "slice" and x.attrs["dim"]:
        a = x.attrs
        return slice_(rows(x.xs[0], start, stop), a["dim"], a["start"], a["stop"], a["step"])
    if x.op == "take" and x.attrs["dim"]:
        return take(rows(x.xs[0], start, stop), x.attrs["dim"], x.attrs["index"])
    if x.op == "unary":
        return unary(x.attrs["f"], rows(x.xs[0], start, stop))
    if x.op == "binary":
        first, *rest = (_broadcast_rows(y, len(x.shape), start, stop) for y in x.xs)
        return binary(x.attrs["f"], first, rest[0] if rest else x.attrs["y"])
    if x.op == "cast":
        return cast(rows(x.xs[0], start, stop), x.format)
    return slice_(x, 0, start, stop)


def _broadcast_rows(y: Expr, rank: int, start: int, stop: int) -> Expr:
    return rows(y, start, stop) if len(y.shape) == rank and y.shape[0] != 1 else y


def _reshaped_rows(x: Expr, start: int, stop: int) -> Expr:
    """Whole rows of the operand that cover the wanted elements, when there are any such."""
    (inner,) = x.xs
    size, unit = math.prod(x.shape[1:]), math.prod(inner.shape[1:])
    if not inner.shape or unit == 0 or (start * size) % unit or (stop * size) % unit:
        return slice_(x, 0, start, stop)
    return reshape(rows(inner, start * size // unit, stop * size // unit), (stop - start, *x.shape[1:]))
