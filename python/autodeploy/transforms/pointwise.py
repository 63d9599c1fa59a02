"""Pointwise ATen ops, and the region program (docs/program.md, Region) that each of them is.

`POINTWISE` maps the name of an op to a function `(builder, arguments, dtype) -> register`. Arguments are by schema
name: a register (`Reg`) for a tensor, a Python number otherwise; `dtype` is the result's. Type promotion is PyTorch's:
floating arithmetic is float32 rounded to the result's dtype, integers stay integers, comparisons compare in the wider
type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..artifact import Region, RegionNode

FLOATS = ("act", "f32")


@dataclass(frozen=True)
class Reg:
    """A register of the region being built, and the dtype of what it holds."""

    index: int
    dtype: str


class RegionBuilder:
    """Collects the nodes of a region; equal nodes are one."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self._nodes: list[RegionNode] = []  # args are provisional: inputs are ~0, ~1, ...; nodes 0, 1, ...
        self._known: dict[tuple[object, ...], int] = {}

    def input(self, dtype: str) -> Reg:
        self.inputs.append(dtype)
        return Reg(~(len(self.inputs) - 1), dtype)

    def const(self, value: float | int | bool, dtype: str) -> Reg:
        plain = bool(value) if dtype == "bool" else int(value) if dtype == "i64" else float(value)
        return self._add(RegionNode("const", dtype, (), plain))

    def op(self, name: str, *args: Reg, dtype: str) -> Reg:
        return self._add(RegionNode(name, dtype, tuple(a.index for a in args)))

    def cast(self, x: Reg, dtype: str) -> Reg:
        return x if x.dtype == dtype else self.op("cast", x, dtype=dtype)

    def _add(self, node: RegionNode) -> Reg:
        key = (node.op, node.dtype, node.args, repr(node.value))  # repr: 0.0 and -0.0 differ, nan equals itself
        if key not in self._known:
            self._known[key] = len(self._nodes)
            self._nodes.append(node)
        return Reg(self._known[key], node.dtype)

    def finish(self, outputs: list[Reg]) -> Region:
        """The region with these results; what no result needs is dropped."""
        needed: set[int] = set()
        stack = [r.index for r in outputs]
        while stack:
            index = stack.pop()
            if index >= 0 and index not in needed:
                needed.add(index)
                stack.extend(self._nodes[index].args)
        order = sorted(needed)
        place = {index: len(self.inputs) + i for i, index in enumerate(order)}
        place.update({~i: i for i in range(len(self.inputs))})
        nodes = tuple(
            RegionNode(n.op, n.dtype, tuple(place[a] for a in n.args), n.value) for n in (self._nodes[i] for i in order)
        )
        return Region(tuple(self.inputs), nodes, tuple(place[r.index] for r in outputs))


Arguments = dict[str, Any]
Emit = Callable[[RegionBuilder, Arguments, str], Reg]


def _wide(b: RegionBuilder, x: Any, dtype: str) -> Reg:
    """An argument of arithmetic with a result of `dtype`: floats stay (they compute in float32), others convert."""
    if not isinstance(x, Reg):
        return b.const(x, "f32" if dtype in FLOATS else dtype)
    if dtype in FLOATS:
        return x if x.dtype in FLOATS else b.cast(x, "f32")
    return b.cast(x, dtype)


def _common(*xs: Any) -> str:
    """The dtype in which operands of a comparison meet."""
    plain = {bool: "bool", int: "i64", float: "f32"}
    kinds = [x.dtype if isinstance(x, Reg) else plain[type(x)] for x in xs]
    if any(k in FLOATS for k in kinds):
        return "f32"
    return "i64" if "i64" in kinds else "bool"


def _arith(op: str, *names: str) -> Emit:
    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        return b.op(op, *(_wide(b, a[n], dtype) for n in names), dtype=dtype)

    return emit


def _unary(op: str) -> Emit:
    return lambda b, a, dtype: b.op(op, _wide(b, a["self"], dtype), dtype=dtype)


def _add_like(op: str, swapped: bool = False) -> Emit:
    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        x, y = _wide(b, a["self"], dtype), _wide(b, a["other"], dtype)
        if swapped:
            x, y = y, x
        alpha = a.get("alpha", 1)
        if alpha != 1:
            y = b.op("mul", y, _wide(b, alpha, dtype), dtype="f32" if dtype in FLOATS else dtype)
        return b.op(op, x, y, dtype=dtype)

    return emit


def _div(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x, y = _wide(b, a["self"], dtype), _wide(b, a["other"], dtype)
    mode = a.get("rounding_mode")
    if mode == "floor":
        return b.op("floor_div", x, y, dtype=dtype)
    if mode == "trunc":
        if dtype == "i64":  # (x - fmod(x, y)) / y is exact in integers
            rest = b.op("fmod", x, y, dtype=dtype)
            return b.op("floor_div", b.op("sub", x, rest, dtype=dtype), y, dtype=dtype)
        return b.op("trunc", b.op("div", x, y, dtype="f32"), dtype=dtype)
    return b.op("div", x, y, dtype=dtype)


def _floor_divide(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    return b.op("floor_div", _wide(b, a["self"], dtype), _wide(b, a["other"], dtype), dtype=dtype)


def _remainder(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x, y = _wide(b, a["self"], dtype), _wide(b, a["other"], dtype)
    wide = "f32" if dtype in FLOATS else dtype
    whole = b.op("mul", b.op("floor_div", x, y, dtype=wide), y, dtype=wide)
    return b.op("sub", x, whole, dtype=dtype)


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _pow(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x, y = a["self"], a["exponent"]
    if isinstance(x, Reg) and not isinstance(y, Reg):
        base = _wide(b, x, dtype)
        if y == 1:
            return b.cast(base, dtype)
        if y in _POWERS and (dtype in FLOATS or y == 2):
            return b.op(_POWERS[y], base, dtype=dtype)
        if y == 3:
            wide = "f32" if dtype in FLOATS else dtype
            return b.op("mul", b.op("square", base, dtype=wide), base, dtype=dtype)
    return b.op("pow", _wide(b, x, dtype), _wide(b, y, dtype), dtype=dtype)


def _compare(op: str) -> Emit:
    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        x, y = a["self"], a["other"]
        common = _common(x, y)
        return b.op(op, _wide(b, x, common), _wide(b, y, common), dtype="bool")

    return emit


def _truth(b: RegionBuilder, x: Any) -> Reg:
    if not isinstance(x, Reg):
        return b.const(bool(x), "bool")
    if x.dtype == "bool":
        return x
    zero = b.const(0, "f32" if x.dtype in FLOATS else x.dtype)
    return b.op("ne", x, zero, dtype="bool")


def _logical(op: str) -> Emit:
    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        xs = [_truth(b, a[n]) for n in ("self", "other") if n in a]
        return b.op(op, *xs, dtype="bool")

    return emit


def _bitwise(logical: str, bits: str) -> Emit:
    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        xs = [_wide(b, a[n], dtype) for n in ("self", "other")]
        return b.op(logical if dtype == "bool" else bits, *xs, dtype=dtype)

    return emit


def _bitwise_not(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    if dtype == "bool":
        return b.op("not", a["self"], dtype=dtype)
    return b.op("bit_xor", a["self"], b.const(-1, dtype), dtype=dtype)


def _where(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x, y = _wide(b, a["self"], dtype), _wide(b, a["other"], dtype)
    return b.op("where", _truth(b, a["condition"]), x, y, dtype=dtype)


def _masked_fill(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    return b.op("where", _truth(b, a["mask"]), _wide(b, a["value"], dtype), _wide(b, a["self"], dtype), dtype=dtype)


def _clamp(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = _wide(b, a["self"], dtype)
    if a.get("min") is not None:
        x = b.op("max", x, _wide(b, a["min"], dtype), dtype=dtype)
    if a.get("max") is not None:
        x = b.op("min", x, _wide(b, a["max"], dtype), dtype=dtype)
    return b.cast(x, dtype)


def _cast(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = a["self"]
    return _truth(b, x) if dtype == "bool" else b.cast(x, dtype)


def _gelu(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    return b.op("gelu_tanh" if a.get("approximate") == "tanh" else "gelu", _wide(b, a["self"], dtype), dtype=dtype)


def _softplus(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x, beta, threshold = _wide(b, a["self"], dtype), a.get("beta", 1), a.get("threshold", 20)
    if beta == 1 and threshold == 20:
        return b.op("softplus", x, dtype=dtype)
    scaled = b.op("mul", x, b.const(beta, "f32"), dtype="f32")
    soft = b.op("div", b.op("log1p", b.op("exp", scaled, dtype="f32"), dtype="f32"), b.const(beta, "f32"), dtype="f32")
    large = b.op("gt", scaled, b.const(threshold, "f32"), dtype="bool")
    return b.op("where", large, x, soft, dtype=dtype)


def _log_sigmoid(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    # -softplus(-x); min(x, 0) - log1p(exp(-|x|)) is the same without a threshold.
    x = _wide(b, a["self"], dtype)
    tail = b.op("log1p", b.op("exp", b.op("neg", b.op("abs", x, dtype="f32"), dtype="f32"), dtype="f32"), dtype="f32")
    return b.op("sub", b.op("min", x, b.const(0, "f32"), dtype="f32"), tail, dtype=dtype)


def _scaled(op: str, scale: float) -> Emit:
    """op(x * scale)."""

    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        return b.op(op, b.op("mul", _wide(b, a["self"], dtype), b.const(scale, "f32"), dtype="f32"), dtype=dtype)

    return emit


def _log_scaled(scale: float) -> Emit:
    """log(x) * scale."""

    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        return b.op("mul", b.op("log", _wide(b, a["self"], dtype), dtype="f32"), b.const(scale, "f32"), dtype=dtype)

    return emit


def _leaky_relu(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = _wide(b, a["self"], dtype)
    low = b.op("mul", x, b.const(a.get("negative_slope", 0.01), "f32"), dtype="f32")
    return b.op("where", b.op("gt", x, b.const(0, "f32"), dtype="bool"), x, low, dtype=dtype)


def _elu(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = _wide(b, a["self"], dtype)
    scale, inner = a.get("scale", 1), a.get("input_scale", 1)
    high = b.op("mul", x, b.const(scale, "f32"), dtype="f32")
    grown = b.op("expm1", b.op("mul", x, b.const(inner, "f32"), dtype="f32"), dtype="f32")
    low = b.op("mul", grown, b.const(a.get("alpha", 1) * scale, "f32"), dtype="f32")
    return b.op("where", b.op("gt", x, b.const(0, "f32"), dtype="bool"), high, low, dtype=dtype)


def _hard_sigmoid(b: RegionBuilder, x: Reg, dtype: str) -> Reg:
    shifted = b.op("add", b.op("div", x, b.const(6, "f32"), dtype="f32"), b.const(0.5, "f32"), dtype="f32")
    low = b.op("max", shifted, b.const(0, "f32"), dtype="f32")
    return b.op("min", low, b.const(1, "f32"), dtype=dtype)


def _hardswish(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = _wide(b, a["self"], dtype)
    return b.op("mul", x, _hard_sigmoid(b, x, "f32"), dtype=dtype)


def _mish(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = _wide(b, a["self"], dtype)
    return b.op("mul", x, b.op("tanh", b.op("softplus", x, dtype="f32"), dtype="f32"), dtype=dtype)


def _relu6(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    return b.op("min", b.op("relu", _wide(b, a["self"], dtype), dtype=dtype), _wide(b, 6, dtype), dtype=dtype)


def _addc(op: str) -> Emit:
    def emit(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
        wide = "f32" if dtype in FLOATS else dtype
        part = b.op(op, _wide(b, a["tensor1"], dtype), _wide(b, a["tensor2"], dtype), dtype=wide)
        if a.get("value", 1) != 1:
            part = b.op("mul", part, _wide(b, a["value"], dtype), dtype=wide)
        return b.op("add", _wide(b, a["self"], dtype), part, dtype=dtype)

    return emit


def _lerp(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x, y, w = (_wide(b, a[n], dtype) for n in ("self", "end", "weight"))
    step = b.op("mul", w, b.op("sub", y, x, dtype="f32"), dtype="f32")
    return b.op("add", x, step, dtype=dtype)


def _isnan(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    return b.op("ne", a["self"], a["self"], dtype="bool")


def _isinf(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    size = b.op("abs", _wide(b, a["self"], "f32"), dtype="f32")
    return b.op("eq", size, b.const(math.inf, "f32"), dtype="bool")


def _threshold(b: RegionBuilder, a: Arguments, dtype: str) -> Reg:
    x = _wide(b, a["self"], dtype)
    return b.op("where", b.op("gt", x, _wide(b, a["threshold"], dtype), dtype="bool"), x, _wide(b, a["value"], dtype),
                dtype=dtype)


POINTWISE: dict[str, Emit] = {
    "aten.add": _add_like("add"), "aten.sub": _add_like("sub"), "aten.rsub": _add_like("sub", swapped=True),
    "aten.mul": _arith("mul", "self", "other"), "aten.div": _div, "aten.true_divide": _div, "aten.divide": _div,
    "aten.multiply": _arith("mul", "self", "other"), "aten.subtract": _add_like("sub"),
    "aten.floor_divide": _floor_divide, "aten.remainder": _remainder, "aten.fmod": _arith("fmod", "self", "other"),
    "aten.pow": _pow, "aten.square": _unary("square"),
    "aten.minimum": _arith("min", "self", "other"), "aten.maximum": _arith("max", "self", "other"),
    "aten.clamp": _clamp, "aten.clip": _clamp, "aten.clamp_min": _clamp, "aten.clamp_max": _clamp,
    "aten.relu6": _relu6,
    "aten.hardtanh": lambda b, a, d: _clamp(b, {**a, "min": a["min_val"], "max": a["max_val"]}, d),
    "aten.neg": _unary("neg"), "aten.negative": _unary("neg"), "aten.abs": _unary("abs"), "aten.exp": _unary("exp"),
    "aten.exp2": _scaled("exp", math.log(2)), "aten.expm1": _unary("expm1"), "aten.log": _unary("log"),
    "aten.log2": _log_scaled(1 / math.log(2)), "aten.log10": _log_scaled(1 / math.log(10)),
    "aten.log1p": _unary("log1p"), "aten.sqrt": _unary("sqrt"), "aten.rsqrt": _unary("rsqrt"),
    "aten.reciprocal": _unary("reciprocal"), "aten.sin": _unary("sin"), "aten.cos": _unary("cos"),
    "aten.tanh": _unary("tanh"), "aten.sigmoid": _unary("sigmoid"), "aten.silu": _unary("silu"),
    "aten.relu": _unary("relu"), "aten.gelu": _gelu, "aten.softplus": _softplus, "aten.log_sigmoid": _log_sigmoid,
    "aten.erf": _unary("erf"), "aten.floor": _unary("floor"), "aten.ceil": _unary("ceil"),
    "aten.round": _unary("round"), "aten.trunc": _unary("trunc"), "aten.sign": _unary("sign"),
    "aten.leaky_relu": _leaky_relu, "aten.elu": _elu, "aten.hardswish": _hardswish, "aten.mish": _mish,
    "aten.hardsigmoid": lambda b, a, d: _hard_sigmoid(b, _wide(b, a["self"], d), d),
    "aten.threshold": _threshold, "aten.addcmul": _addc("mul"), "aten.addcdiv": _addc("div"), "aten.lerp": _lerp,
    "aten.where": _where, "aten.masked_fill": _masked_fill, "aten.isnan": _isnan, "aten.isinf": _isinf,
    "aten.eq": _compare("eq"), "aten.ne": _compare("ne"), "aten.lt": _compare("lt"), "aten.le": _compare("le"),
    "aten.gt": _compare("gt"), "aten.ge": _compare("ge"),
    "aten.logical_and": _logical("and"), "aten.logical_or": _logical("or"), "aten.logical_not": _logical("not"),
    "aten.logical_xor": lambda b, a, d: b.op("ne", _truth(b, a["self"]), _truth(b, a["other"]), dtype="bool"),
    "aten.bitwise_and": _bitwise("and", "bit_and"), "aten.bitwise_or": _bitwise("or", "bit_or"),
    "aten.bitwise_xor": _bitwise("ne", "bit_xor"), "aten.bitwise_not": _bitwise_not,
    "aten.__and__": _bitwise("and", "bit_and"), "aten.__or__": _bitwise("or", "bit_or"),
    "aten.__xor__": _bitwise("ne", "bit_xor"),
    "aten.to": _cast, "aten._to_copy": _cast,
}  # fmt: skip
