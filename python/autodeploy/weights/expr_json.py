"""Expressions as JSON, strict in both directions."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import WeightError
from .expr import (
    MAX_DEPTH,
    Expr,
    binary,
    cast,
    cat,
    data,
    join,
    on_values,
    permute,
    reshape,
    slice_,
    stack,
    take,
    unary,
)
from .formats import FORMATS, Array, check_format, is_block

MAX_INT = 2**53

# Turns a leaf, {"op": op, "name": name}, into an expression.
Resolve = Callable[[str, str], Expr]


def to_json(x: Expr) -> dict[str, Any]:
    """The object of weights.json."""
    out: dict[str, Any] = {"op": x.op}
    if x.op in ("cat", "stack"):
        out["xs"] = [to_json(y) for y in x.xs]
    elif x.xs:
        out["x"] = to_json(x.xs[0])
    if x.op == "take":
        return out | {"dim": x.attrs["dim"], "index": {"data": _encode(x.attrs["index"])}}
    if x.op == "data":
        return out | {"format": x.format, "shape": list(x.shape), "data": _encode(x.attrs["values"])}
    if x.op == "reshape":
        return out | {"shape": list(x.shape)}
    out |= x.attrs
    if x.op == "binary" and len(x.xs) == 2:
        out["y"] = to_json(x.xs[1])
    return out


def parse_expr(raw: object, resolve: Resolve, where: str, dequantize: bool = False) -> Expr:
    """Builds an expression from its object. `resolve` makes leaves ("tensor", and "constant" before linking).

    With `dequantize`, blocks that an operation cannot keep are dequantized; without, that is an error.
    """
    return _Parser(resolve, dequantize).expr(raw, where, MAX_DEPTH)


class _Parser:
    def __init__(self, resolve: Resolve, dequantize: bool) -> None:
        self._resolve = resolve
        self._dequantize = dequantize

    def expr(self, raw: object, where: str, depth: int) -> Expr:
        if depth == 0:
            raise WeightError(f"[{where}] expected at most {MAX_DEPTH} nested operations, found more")
        if not isinstance(raw, dict):
            raise WeightError(f"[{where}] expected an expression, found {_show(raw)}")
        op = raw.get("op")
        fields = _FIELDS.get(op) if isinstance(op, str) else None
        if fields is None:
            raise WeightError(f"[{where}] expected an operation of {' '.join(_FIELDS)}, found {_show(op)}")
        if set(raw) != fields | {"op"}:
            raise WeightError(
                f"[{where}] expected the fields {sorted(fields)} of {op}, found {sorted(set(raw) - {'op'})}"
            )
        try:
            return self._build(str(op), raw, where, depth - 1)
        except WeightError as e:
            if str(e).startswith(f"[{where}"):
                raise
            raise WeightError(f"[{where}] {e}") from None

    def _build(self, op: str, raw: dict[str, Any], where: str, depth: int) -> Expr:
        if op in ("tensor", "constant"):
            return self._resolve(op, _text(raw["name"], where))
        if op == "data":
            fmt = check_format(_text(raw["format"], where), where)
            if is_block(fmt):
                raise WeightError(f"[{where}] expected a plain format, found {fmt}")
            shape = _ints(raw["shape"], where)
            values = _decode(raw["data"], FORMATS[fmt].dtype, where)
            if values.size != math.prod(shape):
                raise WeightError(f"[{where}] expected {math.prod(shape)} elements, found {values.size}")
            return data(values.reshape(shape), fmt)
        if op in ("cat", "stack"):
            if not isinstance(raw["xs"], list):
                raise WeightError(f"[{where}] expected a list of expressions")
            xs = [self.expr(y, f"{where}.xs[{i}]", depth) for i, y in enumerate(raw["xs"])]
            f, dim = cat if op == "cat" else stack, _int(raw["dim"], where)
            return join(f, xs, dim) if self._dequantize else f(xs, dim)
        x = self.expr(raw["x"], f"{where}.x", depth)
        if op == "slice":
            dim, start, stop, step = (_int(raw[k], where) for k in ("dim", "start", "stop", "step"))
            return self._keep(lambda v: slice_(v, dim, start, stop, step), x)
        if op == "take":
            if not isinstance(raw["index"], dict) or set(raw["index"]) != {"data"}:
                raise WeightError(f'[{where}] expected an index {{"data": base64}}')
            index, dim = _decode(raw["index"]["data"], "<i4", where), _int(raw["dim"], where)
            return self._keep(lambda v: take(v, dim, index), x)
        if op == "permute":
            dims = _ints(raw["dims"], where)
            return self._keep(lambda v: permute(v, dims), x)
        if op == "reshape":
            shape = _ints(raw["shape"], where)
            return self._keep(lambda v: reshape(v, shape), x)
        if op == "unary":
            return unary(_text(raw["f"], where), x)
        if op == "binary":
            y = raw["y"]
            if isinstance(y, (int, float)) and not isinstance(y, bool):
                return binary(_text(raw["f"], where), x, float(y))
            return binary(_text(raw["f"], where), x, self.expr(y, f"{where}.y", depth))
        return cast(x, _text(raw["format"], where))

    def _keep(self, f: Callable[[Expr], Expr], x: Expr) -> Expr:
        return on_values(f, x) if self._dequantize else f(x)


_FIELDS: dict[str, set[str]] = {
    "tensor": {"name"},
    "constant": {"name"},
    "slice": {"x", "dim", "start", "stop", "step"},
    "cat": {"xs", "dim"},
    "stack": {"xs", "dim"},
    "permute": {"x", "dims"},
    "reshape": {"x", "shape"},
    "take": {"x", "dim", "index"},
    "unary": {"f", "x"},
    "binary": {"f", "x", "y"},
    "cast": {"x", "format"},
    "data": {"format", "shape", "data"},
}


def _encode(values: Array) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _decode(raw: object, dtype: str, where: str) -> Array:
    try:
        content = base64.b64decode(_text(raw, where), validate=True)
        return np.frombuffer(content, dtype=dtype)
    except (binascii.Error, ValueError) as e:
        raise WeightError(f"[{where}] expected base64 of whole {dtype} elements: {e}") from None


def _text(raw: object, where: str) -> str:
    if not isinstance(raw, str):
        raise WeightError(f"[{where}] expected a string, found {_show(raw)}")
    return raw


def _int(raw: object, where: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 <= raw <= MAX_INT:
        raise WeightError(f"[{where}] expected an integer from 0 to 2^53, found {_show(raw)}")
    return raw


def _ints(raw: object, where: str) -> tuple[int, ...]:
    if not isinstance(raw, list):
        raise WeightError(f"[{where}] expected a list of integers, found {_show(raw)}")
    return tuple(_int(x, where) for x in raw)


def _show(x: object) -> str:
    text = repr(x)
    return text if len(text) <= 60 else text[:57] + "..."
