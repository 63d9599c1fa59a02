"""Expressions over stored tensors (docs/weight_program.md): constructors, inference and simplification.

Every node knows its shape and format. Constructors check their arguments, raise WeightError, and simplify what is
plainly redundant: identities, chains of slices, reshapes, permutations and takes, nested concatenations.

Block formats: a row (last dimension) of blocks can only be moved as a whole. `slice_`, `cat`, `stack`, `take`,
`permute` and `reshape` that leave the last dimension as and where it is keep the format; anything else needs
`cast(x, "f32")` first, which `on_values` and `join` insert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import WeightError
from .formats import FORMATS, Array, check_blocks, check_format, is_block, is_float

UNARY = ("neg", "exp", "log", "log1p", "expm1", "sqrt", "reciprocal", "abs", "square")
BINARY = ("add", "sub", "rsub", "mul", "div", "rdiv", "pow")
MAX_RANK = 8
MAX_DEPTH = 64

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Expr:
    """A node. `op` names it as in weights.json; `attrs` are its other fields; `xs` its operands."""

    op: str
    shape: Shape
    format: str
    xs: tuple[Expr, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    depth: int = 0

    def __repr__(self) -> str:
        inner = [*map(repr, self.xs), *(f"{k}={v!r}" for k, v in self.attrs.items() if not isinstance(v, np.ndarray))]
        return f"{self.op}({', '.join(inner)})"


def _node(op: str, shape: Shape, fmt: str, xs: Sequence[Expr] = (), **attrs: Any) -> Expr:
    if len(shape) > MAX_RANK:
        raise WeightError(f"[{op}] expected at most {MAX_RANK} dimensions, found {len(shape)}")
    depth = 1 + max((x.depth for x in xs), default=0)
    if depth > MAX_DEPTH:
        raise WeightError(f"[{op}] expected at most {MAX_DEPTH} nested operations, found more")
    return Expr(op, shape, fmt, tuple(xs), attrs, depth)


def tensor(name: str, fmt: str, shape: Shape) -> Expr:
    """A checkpoint tensor in its own format."""
    check_format(fmt, f"tensor {name}")
    check_blocks(fmt, shape, f"tensor {name}")
    return _node("tensor", shape, fmt, name=name)


def data(values: Array, fmt: str) -> Expr:
    """A small constant; `values` has the dtype that FORMATS gives for `fmt` (bfloat16 as its 16 bits)."""
    check_format(fmt, "data")
    if is_block(fmt) or values.dtype != np.dtype(FORMATS[fmt].dtype):
        raise WeightError(f"[data] expected values of a plain format, found {values.dtype} for {fmt}")
    return _node("data", values.shape, fmt, values=np.ascontiguousarray(values))


def slice_(x: Expr, dim: int, start: int, stop: int, step: int = 1) -> Expr:
    """x[..., start:stop:step, ...]; bounds already clipped: 0 <= start <= stop <= size, step >= 1."""
    _dim(x, dim, "slice")
    size = x.shape[dim]
    if not 0 <= start <= stop <= size or step < 1:
        raise WeightError(f"[slice] expected 0 <= start <= stop <= {size} and step >= 1, found {start}:{stop}:{step}")
    _keeps_rows(x, dim, "slice")
    count = -(-(stop - start) // step)
    if count == size:
        return x
    if x.op == "slice" and x.attrs["dim"] == dim:
        inner = x.attrs["step"]
        first = x.attrs["start"] + start * inner
        return slice_(x.xs[0], dim, first, first + ((count - 1) * inner * step + 1 if count else 0), inner * step)
    if x.op == "take" and x.attrs["dim"] == dim:
        return take(x.xs[0], dim, x.attrs["index"][start:stop:step])
    if x.op == "cat" and x.attrs["dim"] == dim and step == 1:
        return _slice_cat(x, dim, start, stop)
    shape = (*x.shape[:dim], count, *x.shape[dim + 1 :])
    return _node("slice", shape, x.format, [x], dim=dim, start=start, stop=stop, step=step)


def _slice_cat(x: Expr, dim: int, start: int, stop: int) -> Expr:
    pieces, at = [], 0
    for part in x.xs:
        low, high = max(start - at, 0), min(stop - at, part.shape[dim])
        if low < high:
            pieces.append(slice_(part, dim, low, high))
        at += part.shape[dim]
    return cat(pieces, dim) if pieces else slice_(x.xs[0], dim, 0, 0)


def cat(xs: Sequence[Expr], dim: int) -> Expr:
    """Joins along `dim`; all formats must be the same."""
    if not xs:
        raise WeightError("[cat] expected at least one operand")
    first = xs[0]
    _dim(first, dim, "cat")
    flat: list[Expr] = []
    for x in xs:
        same = len(x.shape) == len(first.shape) and _without(x.shape, dim) == _without(first.shape, dim)
        if not same or x.format != first.format:
            raise WeightError(
                f"[cat] expected {first.format} {list(first.shape)} but for dim {dim}, found {x.format} {list(x.shape)}"
            )
        flat += x.xs if x.op == "cat" and x.attrs["dim"] == dim else [x]
    if len(xs) > 1:
        _keeps_rows(first, dim, "cat")
    flat = _merge_slices(flat, dim)
    if len(flat) == 1:
        return flat[0]
    total = sum(x.shape[dim] for x in flat)
    return _node("cat", (*first.shape[:dim], total, *first.shape[dim + 1 :]), first.format, flat, dim=dim)


def _merge_slices(xs: Sequence[Expr], dim: int) -> list[Expr]:
    """Joins neighbours that are consecutive slices of one node."""
    out: list[Expr] = []
    for x in xs:
        prev = out[-1] if out else None
        if (
            prev is not None
            and prev.op == x.op == "slice"
            and _same(prev.xs[0], x.xs[0])
            and prev.attrs["dim"] == x.attrs["dim"] == dim
            and prev.attrs["step"] == x.attrs["step"] == 1
            and prev.attrs["stop"] == x.attrs["start"]
        ):
            out[-1] = slice_(x.xs[0], dim, prev.attrs["start"], x.attrs["stop"])
        else:
            out.append(x)
    return out


def stack(xs: Sequence[Expr], dim: int) -> Expr:
    """Joins along a new dimension; shapes and formats must be the same."""
    if not xs:
        raise WeightError("[stack] expected at least one operand")
    first = xs[0]
    if not 0 <= dim <= len(first.shape):
        raise WeightError(f"[stack] expected a dim from 0 to {len(first.shape)}, found {dim}")
    for x in xs:
        if x.shape != first.shape or x.format != first.format:
            raise WeightError(f"[stack] expected {first.format} {list(first.shape)}, found {x.format} {list(x.shape)}")
    if is_block(first.format) and dim == len(first.shape):
        raise WeightError(f"[stack] {first.format} cannot be split into elements: cast to f32 first")
    return _node("stack", (*first.shape[:dim], len(xs), *first.shape[dim:]), first.format, xs, dim=dim)


def permute(x: Expr, dims: Sequence[int]) -> Expr:
    """Dimension i of the result is dimension dims[i] of x."""
    dims = list(dims)
    if sorted(dims) != list(range(len(x.shape))):
        raise WeightError(f"[permute] expected a permutation of {len(x.shape)} dimensions, found {dims}")
    if dims == sorted(dims):
        return x
    if x.op == "permute":
        return permute(x.xs[0], [x.attrs["dims"][d] for d in dims])
    if is_block(x.format) and dims[-1] != len(dims) - 1:
        raise WeightError(f"[permute] {x.format} keeps its last dimension where it is: cast to f32 first")
    return _node("permute", tuple(x.shape[d] for d in dims), x.format, [x], dims=dims)


def reshape(x: Expr, shape: Sequence[int]) -> Expr:
    """The same elements, row-major, in another shape."""
    new = tuple(shape)
    if any(d < 0 for d in new) or math.prod(new) != math.prod(x.shape):
        raise WeightError(f"[reshape] expected {math.prod(x.shape)} elements, found {list(new)}")
    if new == x.shape:
        return x
    if x.op == "reshape":
        return reshape(x.xs[0], new)
    if is_block(x.format) and (not new or new[-1] != x.shape[-1]):
        raise WeightError(f"[reshape] {x.format} keeps its last dimension {x.shape[-1]}: cast to f32 first")
    return _node("reshape", new, x.format, [x])


def take(x: Expr, dim: int, index: Sequence[int] | Array) -> Expr:
    """Picks entries of `dim` by an index list."""
    _dim(x, dim, "take")
    idx = np.asarray(index, dtype=np.int64)
    if idx.ndim != 1 or (idx.size and (idx.min() < 0 or idx.max() >= x.shape[dim])):
        raise WeightError(f"[take] expected a list of indices below {x.shape[dim]}")
    if idx.size and (idx.size == 1 or np.all(np.diff(idx) == idx[1] - idx[0])):
        step = int(idx[1] - idx[0]) if idx.size > 1 else 1
        if step >= 1:
            return slice_(x, dim, int(idx[0]), int(idx[-1]) + 1, step)
    _keeps_rows(x, dim, "take")
    if x.op == "take" and x.attrs["dim"] == dim:
        return take(x.xs[0], dim, x.attrs["index"][idx])
    shape = (*x.shape[:dim], int(idx.size), *x.shape[dim + 1 :])
    return _node("take", shape, x.format, [x], dim=dim, index=idx.astype("<i4"))


def unary(f: str, x: Expr) -> Expr:
    """An elementwise function of one operand, in float32."""
    if f not in UNARY:
        raise WeightError(f"[unary] expected a function of {' '.join(UNARY)}, found {f!r}")
    return _node("unary", x.shape, "f32", [_values(x)], f=f)


def binary(f: str, x: Expr, y: Expr | float) -> Expr:
    """An elementwise function of two operands (the second may be a number), in float32; shapes broadcast."""
    if f not in BINARY:
        raise WeightError(f"[binary] expected a function of {' '.join(BINARY)}, found {f!r}")
    if isinstance(y, Expr):
        return _node("binary", broadcast_shapes(x.shape, y.shape), "f32", [_values(x), _values(y)], f=f)
    if not math.isfinite(y):
        raise WeightError(f"[binary] expected a finite number, found {y}")
    if (f in ("add", "sub") and y == 0) or (f in ("mul", "div", "pow") and y == 1):
        return cast(x, "f32")
    return _node("binary", x.shape, "f32", [_values(x)], f=f, y=float(y))


def cast(x: Expr, fmt: str) -> Expr:
    """Converts to a plain format; `f32` of a block format dequantizes."""
    check_format(fmt, "cast")
    if fmt == x.format:
        return x
    if is_block(fmt):
        raise WeightError(f"[cast] expected a plain format, found {fmt}: nothing here quantizes")
    return _node("cast", x.shape, fmt, [x], format=fmt)


def _values(x: Expr) -> Expr:
    """Operands of elementwise functions are written as they are, blocks dequantized explicitly."""
    return cast(x, "f32") if is_block(x.format) else x


def on_values(f: Callable[[Expr], Expr], x: Expr) -> Expr:
    """Applies `f`; where blocks stand in its way they are dequantized first."""
    if not is_block(x.format):
        return f(x)
    try:
        return f(x)
    except WeightError:
        return f(cast(x, "f32"))


def join(f: Callable[[Sequence[Expr], int], Expr], xs: Sequence[Expr], dim: int) -> Expr:
    """`cat` or `stack`; different float formats, and blocks that would be cut, become float32."""
    try:
        return f(xs, dim)
    except WeightError:
        formats = sorted({x.format for x in xs})
        if not all(is_float(x.format) for x in xs) or formats == ["f32"]:
            raise
        return f([cast(x, "f32") for x in xs], dim)


def keep_stored(x: Expr) -> Expr:
    """The same numbers in the format in which they are stored, where moving them is all that is done to them.

    Drops casts that lose nothing (blocks, f16 and bf16 to f32) from below layout operations.
    """
    if x.op == "cast" and x.format == "f32" and (is_block(x.xs[0].format) or x.xs[0].format in ("f16", "bf16")):
        return keep_stored(x.xs[0])
    if x.op not in _LAYOUT:
        return x
    ys = [keep_stored(y) for y in x.xs]
    if all(y is z for y, z in zip(ys, x.xs, strict=True)):
        return x
    try:
        return _LAYOUT[x.op](x, ys)
    except WeightError:
        return x


_LAYOUT: dict[str, Callable[[Expr, list[Expr]], Expr]] = {
    "slice": lambda x, ys: slice_(ys[0], x.attrs["dim"], x.attrs["start"], x.attrs["stop"], x.attrs["step"]),
    "take": lambda x, ys: take(ys[0], x.attrs["dim"], x.attrs["index"]),
    "permute": lambda x, ys: permute(ys[0], x.attrs["dims"]),
    "reshape": lambda x, ys: reshape(ys[0], x.shape),
    "cat": lambda x, ys: cat(ys, x.attrs["dim"]),
    "stack": lambda x, ys: stack(ys, x.attrs["dim"]),
}


def broadcast_shapes(a: Shape, b: Shape) -> Shape:
    """NumPy's rule."""
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise WeightError(f"[binary] expected shapes that broadcast, found {list(a)} and {list(b)}") from None


def nodes(x: Expr) -> Iterator[Expr]:
    """A node and all below it, each once."""
    seen: set[int] = set()
    todo = [x]
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            todo += node.xs


def tensor_names(x: Expr) -> set[str]:
    """The names of all stored tensors below a node."""
    return {node.attrs["name"] for node in nodes(x) if node.op == "tensor"}


def dequantized_tensors(x: Expr) -> dict[str, str]:
    """Stored tensors of blocks below a node that are turned into plain numbers, with their formats."""
    turned = [node for node in nodes(x) if node.op == "cast" and is_block(node.xs[0].format)]
    return {name: node.xs[0].format for node in turned for name in tensor_names(node)}


def _same(a: Expr, b: Expr) -> bool:
    return a is b or (a.op == b.op == "tensor" and a.attrs["name"] == b.attrs["name"])


def _dim(x: Expr, dim: int, op: str) -> None:
    if not 0 <= dim < len(x.shape):
        raise WeightError(f"[{op}] expected a dim below {len(x.shape)}, found {dim}")


def _keeps_rows(x: Expr, dim: int, op: str) -> None:
    if is_block(x.format) and dim == len(x.shape) - 1:
        raise WeightError(f"[{op}] {x.format} cannot be cut along its last dimension: cast to f32 first")


def _without(shape: Shape, dim: int) -> Shape:
    return shape[:dim] + shape[dim + 1 :]
