"""Values that are linear in the places of tokens, as models make them for masks and biases.

`positions`, arange(T) and the running count of ones are places, whatever they start from; sums, differences, products
with factors that know no token, and views of such are linear in them. `slope` follows a value back to how fast it grows
along one of its dims, and `places` to the whole linear form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .nodes import aten
from .rewrite import Rewriter

Slope = float | Node
"""A number, or a value [N] of numbers for the one other dim that is not 1."""


def constant_number(ir: ModelIR, x: Any) -> float | None:
    """The number that an argument is: itself, a filled tensor, or a constant of one element."""
    if not isinstance(x, Node) or not n.is_tensor(x):
        return n.number(x)
    while n.is_cast(x) or n.is_view(x):
        x = x.args[0]
    if n.is_op(x, "aten.full", "aten.new_full", "aten.full_like"):
        return n.number(n.bound(x)["fill_value"])
    if n.is_op(x, "aten.zeros", "aten.new_zeros", "aten.zeros_like"):
        return 0.0
    if n.is_op(x, "aten.ones", "aten.new_ones", "aten.ones_like"):
        return 1.0
    constant = ir.constants.get(str(x.target)) if x.op == "placeholder" else None
    return float(constant.value.item()) if constant is not None and constant.value.numel() == 1 else None


def moved_dim(x: Node, dim: int) -> int | None:
    """The dim of a view's operand that its dim `dim` is; None where that is a new one, or not a whole one."""
    before, after = n.shape_of(x.args[0]), n.shape_of(x)
    match n.op_name(x):
        case "aten.permute":
            order = n.permutation(x)
            return None if order is None else order[dim]
        case "aten.unsqueeze":
            new = n.normal_dim(x.args[1], len(after))
            return None if dim == new else dim - (dim > new)
        case "aten.squeeze":
            gone = {n.normal_dim(d, len(before)) for d in n.as_list(n.bound(x)["dim"])}
            gone = {d for d in gone if n.same_size(before[d], 1)}
            return [d for d in range(len(before)) if d not in gone][dim]
        case "aten.select":
            taken = n.normal_dim(x.args[1], len(before))
            return dim + (dim >= taken)
        case "aten.slice":
            return dim if n.bound(x)["step"] == 1 else None
        case "aten.expand":
            old = dim - (len(after) - len(before))
            return old if old >= 0 else None
        case "aten.reshape" | "aten.view":
            place = (_product(after[:dim]), _product(after[dim : dim + 1]), _product(after[dim + 1 :]))
            for d in range(len(before)):
                if place == (_product(before[:d]), _product(before[d : d + 1]), _product(before[d + 1 :])):
                    return d
    return None


def _product(shape: Any) -> tuple[int, int]:
    """A product of sizes as (number, power of T)."""
    number, power = 1, 0
    for size in shape:
        number *= n.tokens_in(size) if n.is_symbolic(size) else int(size)
        power += n.is_symbolic(size)
    return number, power


_VIEWS = (*n.VIEWS, "aten.view")


def slope(r: Rewriter, x: Any, dim: int, before: Node) -> Slope | None:
    """What x grows by from one token to the next along `dim`, the same everywhere; None when that cannot be told.

    Nothing else is asked of x: what does not depend on `dim` is passed over.
    """
    if not isinstance(x, Node) or not n.is_tensor(x) or n.same_size(n.shape_of(x)[dim], 1):
        return 0.0
    if constant_number(r.ir, x) is not None:
        return 0.0
    if n.is_cast(x):
        return slope(r, x.args[0], dim, before)
    if x is r.ir.input("positions"):
        return 1.0
    a = n.bound(x) if hasattr(x.target, "_schema") else {}
    match n.op_name(x):
        case "aten.arange" if a.get("step", 1) != 0:
            return n.number(a.get("step", 1))
        case "aten.cumsum":
            ones = constant_number(r.ir, a["self"]) if n.normal_dim(a["dim"], n.rank(x)) == dim else None
            return ones
        case "aten.neg":
            return _times(r, slope(r, x.args[0], dim, before), -1.0, before)
        case "aten.add" | "aten.sub":
            return _sum(r, x, a, dim, before)
        case "aten.mul":
            for value, factor in (x.args[:2], x.args[1::-1]):
                if (by := _factor(r, factor, before)) is not None:
                    return _times(r, _along(r, x, value, dim, before), by, before)
        case "aten.div":
            by = _factor(r, x.args[1], before)
            if isinstance(by, float) and by and a.get("rounding_mode") is None:
                return _times(r, _along(r, x, x.args[0], dim, before), 1 / by, before)
        case name if name in _VIEWS:
            old = moved_dim(x, dim)
            return None if old is None else slope(r, x.args[0], old, before)
    return None


def _along(r: Rewriter, x: Node, operand: Any, dim: int, before: Node) -> Slope | None:
    """The slope of an operand that was broadcast to x."""
    if not isinstance(operand, Node) or not n.is_tensor(operand):
        return 0.0
    old = dim - n.rank(x) + n.rank(operand)
    return slope(r, operand, old, before) if old >= 0 else 0.0


def _sum(r: Rewriter, x: Node, a: dict[str, Any], dim: int, before: Node) -> Slope | None:
    sign = float(a.get("alpha", 1)) * (-1.0 if n.op_name(x) == "aten.sub" else 1.0)
    first = _along(r, x, x.args[0], dim, before)
    second = _times(r, _along(r, x, x.args[1], dim, before), sign, before)
    if first is None or second is None or not (isinstance(first, Node) or isinstance(second, Node)):
        return None if first is None or second is None else first + second
    if 0.0 in (first, second):
        return second if first == 0.0 else first
    like = first if isinstance(first, Node) else second
    return r.call(aten.add.Tensor, like, second if like is first else first, like=before, before=before)


def _factor(r: Rewriter, x: Any, before: Node) -> Slope | None:
    """A factor that is the same for all tokens, as a number or flat."""
    number = constant_number(r.ir, x)
    if number is not None:
        return float(number)
    if not isinstance(x, Node) or n.has_tokens(x) or sum(not n.same_size(s, 1) for s in n.shape_of(x)) > 1:
        return None
    return r.call(aten.reshape.default, x, [-1], like=x, before=before)


def _times(r: Rewriter, x: Slope | None, by: Slope, before: Node) -> Slope | None:
    if x is None or x == 0.0 or by == 1.0:
        return x
    if x == 1.0:
        return by
    if isinstance(x, Node):
        return r.call(aten.mul.Tensor, x, by, like=before, before=before)
    return r.call(aten.mul.Tensor, by, x, like=before, before=before) if isinstance(by, Node) else x * by


@dataclass(frozen=True)
class Places:
    """by[d] * (place along dim d), summed, + constant; dims not in `by` have no part in it."""

    by: dict[int, float]
    constant: float

    def scaled(self, factor: float) -> Places:
        return Places({d: c * factor for d, c in self.by.items()}, self.constant * factor)

    def plus(self, other: Places) -> Places:
        by = {d: self.by.get(d, 0.0) + other.by.get(d, 0.0) for d in {*self.by, *other.by}}
        return Places({d: c for d, c in by.items() if c}, self.constant + other.constant)


def places(ir: ModelIR, x: Any) -> Places | None:
    """x as a linear form of token places, with numbers alone; None where it is not one."""
    number = constant_number(ir, x)
    if number is not None:
        return Places({}, float(number))
    if not isinstance(x, Node) or not n.is_tensor(x):
        return None
    if x is ir.input("positions"):
        return Places({0: 1.0}, 0.0)
    if n.is_cast(x):
        return places(ir, x.args[0])
    a = n.bound(x) if hasattr(x.target, "_schema") else {}
    match n.op_name(x):
        case "aten.cumsum":
            one = constant_number(ir, a["self"])
            dim = n.normal_dim(a["dim"], n.rank(x))
            return None if one is None else Places({dim: one}, one)
        case "aten.neg":
            form = places(ir, x.args[0])
            return None if form is None else form.scaled(-1.0)
        case "aten.add" | "aten.sub":
            sign = float(a.get("alpha", 1)) * (-1.0 if n.op_name(x) == "aten.sub" else 1.0)
            first, second = (_spread(ir, x, y) for y in x.args[:2])
            return None if first is None or second is None else first.plus(second.scaled(sign))
        case "aten.mul":
            for value, factor in (x.args[:2], x.args[1::-1]):
                number, form = constant_number(ir, factor), _spread(ir, x, value)
                if number is not None and form is not None:
                    return form.scaled(float(number))
        case name if name in _VIEWS:
            return _viewed(ir, x)
    return None


def _spread(ir: ModelIR, x: Node, operand: Any) -> Places | None:
    """The form of an operand in the dims of x, to which it was broadcast."""
    form = places(ir, operand)
    if form is None or not isinstance(operand, Node):
        return form
    shift = n.rank(x) - n.rank(operand)
    return Places({d + shift: c for d, c in form.by.items()}, form.constant)


def _viewed(ir: ModelIR, x: Node) -> Places | None:
    form = places(ir, x.args[0])
    if form is None:
        return None
    if n.op_name(x) == "aten.slice" and not n.is_whole_slice(x):
        return None
    if n.op_name(x) == "aten.select" and n.normal_dim(x.args[1], n.rank(x.args[0])) in form.by:
        return None
    by: dict[int, float] = {}
    for dim in range(n.rank(x)):
        old = moved_dim(x, dim)
        if old is not None and old in form.by:
            by[dim] = form.by[old]
    return Places(by, form.constant) if len(by) == len(form.by) else None


def is_whole(x: float) -> bool:
    return math.isfinite(x) and x == int(x)
