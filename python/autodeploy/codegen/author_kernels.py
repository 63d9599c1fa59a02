"""Triton kernels of a model's author: what their launch says of one instruction, as data (docs/kernels.md).

The author's `launch` (autodeploy.custom_ops) is called with stand-ins for the operator's tensors. Sizes and strides
that are known are integers; the others are `Number`s, expressions that the runtime evaluates in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, isfinite
from typing import Any, NoReturn

from autodeploy.artifact.dims import Dim, Poly
from autodeploy.artifact.kernels import Expr
from autodeploy.artifact.program import Instruction, Operand, Param, Value
from autodeploy.custom_ops import CustomOp, TritonLaunch

from .iteration import MAX_GRANULE

_INT32 = range(-(2**31), 2**31)
_DTYPES = {"f32": "float32", "i64": "int64", "bool": "bool"}
_POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "int64": "*i64", "bool": "*u8"}
_ITEM_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "int64": 8, "bool": 1}


class Number:
    """An integer that each step has its own of: `expr + offset`, a multiple of `granule`."""

    def __init__(self, expr: Expr, granule: int, offset: int = 0) -> None:
        self._expr, self._base, self._offset = expr, granule, offset

    @property
    def granule(self) -> int:
        """The greatest power of two known to divide it, up to MAX_GRANULE."""
        return gcd(self._base, self._offset, MAX_GRANULE)

    @property
    def expr(self) -> Expr:
        return self._expr if self._offset == 0 else {"add": [self._expr, self._offset]}

    def __add__(self, other: Any) -> Number:
        if isinstance(other, Number):
            return Number({"add": [self.expr, other.expr]}, gcd(self.granule, other.granule))
        return Number(self._expr, self._base, self._offset + _integer(other))

    def __sub__(self, other: Any) -> Number:
        return self + -_integer(other)

    def __mul__(self, other: Any) -> Number:
        if not isinstance(other, Number) and _integer(other) == 1:
            return self
        factor = other.expr if isinstance(other, Number) else _integer(other)
        granule = self.granule * (other.granule if isinstance(other, Number) else max(1, abs(int(factor))))
        return Number({"mul": [self.expr, factor]}, gcd(granule, MAX_GRANULE))

    def __floordiv__(self, other: Any) -> Number:
        # floor(a / b) = ceil((a - b + 1) / b): a quotient rounded up, (a + b - 1) // b, is written as what it means.
        divisor = _integer(other)
        if divisor < 1:
            raise ValueError(f"[custom op] expected a positive divisor, found {divisor}")
        return Number({"cdiv": [(self + (1 - divisor)).expr, divisor]}, 1)

    __radd__, __rmul__ = __add__, __mul__

    def __refuse(self, *_: Any) -> NoReturn:
        raise ValueError(
            "[custom op] expected a launch that is the same in every step, found a decision or an operation on a size "
            "that hangs on the number of tokens: sizes can be added, multiplied and divided by known integers"
        )

    __bool__ = __int__ = __index__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = __refuse
    __rsub__ = __mod__ = __rmod__ = __truediv__ = __rtruediv__ = __rfloordiv__ = __pow__ = __rpow__ = __neg__ = __refuse


def _integer(x: Any) -> int:
    if isinstance(x, bool) or not isinstance(x, int):
        raise ValueError(f"[custom op] expected integers to compute sizes with, found {x!r}")
    return int(x)


class Tensor:
    """A stand-in for an operand or a result."""

    def __init__(self, place: tuple[str, int], dtype: str, shape: Sequence[Dim], strides: Sequence[Poly], offset: Poly):
        self.place, self.dtype = place, dtype
        self.shape = tuple(_size(Poly.of(d), {"size": [*place, i]}) for i, d in enumerate(shape))
        self._strides = tuple(_size(s, {"stride": [*place, i]}) for i, s in enumerate(strides))
        self._offset = offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def alignment(self) -> int:
        """What its address is a multiple of, in bytes."""
        elements = gcd(MAX_GRANULE, *self._offset.terms.values())
        return min(MAX_GRANULE, elements * _ITEM_SIZES[self.dtype])

    def stride(self, dim: int) -> Any:
        """The stride of a dim, in elements."""
        return self._strides[dim]

    def numel(self) -> Any:
        """The number of elements."""
        total: Any = 1
        for size in self.shape:
            total = size * total
        return total


def _size(poly: Poly, expr: Expr) -> Any:
    if all(powers == (0, 0) for powers in poly.terms):
        return poly.terms.get((0, 0), 0)
    return Number(expr, gcd(MAX_GRANULE, *poly.terms.values()))


class _Integer(int):
    """An integer argument of the operator, passed on."""


class _Real(float):
    """A real argument of the operator, passed on."""


@dataclass(frozen=True)
class AuthorLaunch:
    """A launch as data: parameters of the function with Triton's type and what they are multiples of, in the order of
    `args`; constexpr parameters; how it is compiled."""

    params: tuple[tuple[str, str, int], ...]
    constexprs: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]
    args: tuple[Expr, ...]
    grid: tuple[Expr, Expr, Expr]


def author_launch(
    op: CustomOp,
    order: Sequence[tuple[str, bool]],
    instruction: Instruction,
    values: Sequence[Value],
    params: Sequence[Param],
    act: str,
) -> AuthorLaunch:
    """What the author's launch says of an instruction in an activation type.

    `order` lists the operator's arguments as (name, whether it is a tensor). Raises ValueError where the launch does
    not fit the function, or cannot be written down.
    """
    where = f"[custom op] {op.name}"
    names = getattr(op.triton, "arg_names", None)
    if names is None or not hasattr(op.triton, "cache_key"):
        raise ValueError(f"{where}: expected a function of @triton.jit, found {type(op.triton).__name__}")
    tensors = iter(instruction.inputs)
    arguments: list[Any] = []
    position = 0
    for name, is_tensor in order:
        if is_tensor:
            operand = next(tensors)
            arguments.append(None if operand is None else _operand(operand, position, values, params, act))
            position += 1
        else:
            arguments.append(_named(name, instruction.attrs.get(name)))
    results = [
        _whole(("out", o), values[v].dtype, values[v].shape, act) for o, v in enumerate(instruction.outputs)
    ]
    assert op.launch is not None
    said = op.launch(*arguments, *results)
    if not isinstance(said, TritonLaunch):
        raise ValueError(f"{where}: expected its launch to return a TritonLaunch, found {type(said).__name__}")
    if sorted(said.args) != sorted(names):
        raise ValueError(f"{where}: expected a launch with {', '.join(names)}, found {', '.join(said.args) or 'none'}")
    return _written(where, op.triton, said)


def _named(name: str, value: Any) -> Any:
    """An argument that is no tensor; numbers remember which they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    kept: Any = _Integer(value) if isinstance(value, int) else _Real(value)
    kept.attribute = name
    return kept


def _operand(operand: Operand, i: int, values: Sequence[Value], params: Sequence[Param], act: str) -> Tensor:
    storage: Value | Param = values[operand.value] if operand.value is not None else params[operand.param or 0]
    if operand.shape is None or operand.strides is None:
        return _whole(("in", i), storage.dtype, storage.shape, act)
    strides = [Poly.of(s) for s in operand.strides]
    return Tensor(("in", i), _dtype(storage.dtype, act), operand.shape, strides, Poly.of(operand.offset))


def _whole(place: tuple[str, int], dtype: str, shape: Sequence[Dim], act: str) -> Tensor:
    strides, step = [], Poly({(0, 0): 1})
    for size in reversed(shape):
        strides.append(step)
        step = step * Poly.of(size)
    return Tensor(place, _dtype(dtype, act), shape, list(reversed(strides)), Poly({}))


def _dtype(dtype: str, act: str) -> str:
    return act if dtype == "act" else _DTYPES[dtype]


def _written(where: str, function: Any, said: TritonLaunch) -> AuthorLaunch:
    params: list[tuple[str, str, int]] = []
    constexprs: list[tuple[str, Any]] = []
    args: list[Expr] = []
    for parameter in function.params:
        name, x = parameter.name, said.args[parameter.name]
        if parameter.is_constexpr or x is None or (type(x) in (int, _Integer) and x == 1):
            # A known 1 is compiled in: it is a stride mostly, and then that of neighbours.
            if isinstance(x, (Number, Tensor)):
                raise ValueError(f"{where}: expected a known value as the constexpr {name}, found what steps decide")
            constexprs.append((name, _plain(x)))
            continue
        kind, by, expr = _argument(where, name, x)
        params.append((name, kind, by))
        args.append(expr)
    grid = [x.expr if isinstance(x, Number) else _integer(x) for x in said.grid]
    if not 1 <= len(grid) <= 3:
        raise ValueError(f"{where}: expected a grid of one to three dims, found {len(grid)}")
    grid += [1] * (3 - len(grid))
    options = (("num_warps", _integer(said.num_warps)), ("num_stages", _integer(said.num_stages)))
    return AuthorLaunch(tuple(params), tuple(constexprs), options, tuple(args), (grid[0], grid[1], grid[2]))


def _plain(x: Any) -> Any:
    return int(x) if isinstance(x, _Integer) else float(x) if isinstance(x, _Real) else x


def _argument(where: str, name: str, x: Any) -> tuple[str, str, Expr]:
    """Triton's type, what it is a multiple of, and where it comes from."""
    if isinstance(x, Tensor):
        return _POINTERS[x.dtype], x.alignment, {x.place[0]: x.place[1]}
    if isinstance(x, Number):
        return "i32", 16 if x.granule == 16 else 1, x.expr
    if isinstance(x, _Real):
        return "fp32", 1, {"attr": x.attribute}  # type: ignore[attr-defined]
    if isinstance(x, _Integer):
        return ("i32" if x in _INT32 else "i64"), 1, {"attr": x.attribute}  # type: ignore[attr-defined]
    if isinstance(x, (bool, int)) and int(x) in _INT32:
        return "i32", 16 if int(x) % 16 == 0 else 1, int(x)
    if isinstance(x, int) and abs(x) <= 2**53:
        return "i64", 16 if x % 16 == 0 else 1, x
    if isinstance(x, float) and isfinite(x):
        return "fp32", 1, x
    raise ValueError(f"{where}: expected a tensor or a number as {name}, found {x!r}")
