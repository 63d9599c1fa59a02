"""The iteration pattern of a region instruction: what of its views has to be known when its kernel is compiled.

A region walks one iteration shape; its results are contiguous, its inputs views with strides. The pattern keeps sizes
and strides that are integers, turns those that hang on the step (multiples of T, R, N or S) into run-time numbers, and
leaves the outermost size to the number of elements. Neighbouring dims that every input walks as one are joined, so most
instructions of a model have one of a few patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd

from autodeploy.artifact.dims import Dim, Poly
from autodeploy.artifact.kernels import Expr
from autodeploy.artifact.program import Instruction, Operand, Param, Value

MAX_GRANULE = 16
"""Sizes, strides and offsets are only ever said to be multiples of powers of two up to this."""
MAX_VECTOR = 8
"""Neighbouring elements that one thread works on: 16 bytes of a 2-byte type."""


@dataclass(frozen=True)
class RuntimeNumber:
    """A size or stride that is an argument of the kernel; a multiple of `granule` in every step."""

    name: str
    is_size: bool
    granule: int


@dataclass(frozen=True)
class Access:
    """How an input is read: a stride per dim of the pattern, an integer or the name of a run-time number.

    `granule` divides the view's offset in its storage, in elements; `is_flat` says that its elements lie in the order
    of the iteration, without gaps.
    """

    dtype: str
    strides: tuple[int | str, ...]
    granule: int
    is_flat: bool

    @property
    def is_uniform(self) -> bool:
        """Whether the same element is read everywhere."""
        return all(s == 0 for s in self.strides)


@dataclass(frozen=True)
class Iteration:
    """Dims stand from the outermost to the innermost; `inner` has the sizes of all but the outermost.

    `granule` divides the number of elements.
    """

    inner: tuple[int | str, ...]
    accesses: tuple[Access, ...]
    numbers: tuple[RuntimeNumber, ...]
    granule: int

    @property
    def vector(self) -> int:
        """How many neighbouring elements are worked on as one: a power of two that divides the innermost dim."""
        last = self.inner[-1] if self.inner else self.granule
        known = next(n.granule for n in self.numbers if n.name == last) if isinstance(last, str) else last
        return gcd(known, MAX_VECTOR)


@dataclass(frozen=True)
class Walk:
    """A pattern, and what its run-time numbers are in one instruction, over the instruction's own views."""

    iteration: Iteration
    numbers: tuple[Expr, ...]


@dataclass(frozen=True)
class _View:
    dtype: str
    strides: tuple[Poly, ...]
    offset: Poly


@dataclass(frozen=True)
class _Dims:
    """Dims first..last of an instruction that are walked as one, with the inputs' strides."""

    first: int
    last: int
    size: Poly
    strides: tuple[Poly, ...]


_ONE = Poly({(0, 0): 1})


def walk_of(instruction: Instruction, values: Sequence[Value], params: Sequence[Param]) -> Walk:
    """The pattern of a region instruction whose operands are among these values and params."""
    shape = [Poly.of(d) for d in values[instruction.outputs[0]].shape]
    views = [_view(o, values, params) for o in instruction.inputs if o is not None]
    dims = _joined(shape, views)
    numbers: dict[tuple[Poly, bool], tuple[RuntimeNumber, Expr]] = {}

    def number(poly: Poly, is_size: bool, expr: Callable[[], Expr]) -> int | str:
        if all(powers == (0, 0) for powers in poly.terms):
            return poly.terms.get((0, 0), 0)
        # A size and an equal stride are two numbers: they are arguments of different types.
        if (poly, is_size) not in numbers:
            kind = "size" if is_size else "stride"
            name = f"{kind}{sum(size == is_size for _, size in numbers)}"
            numbers[poly, is_size] = RuntimeNumber(name, is_size, _granule(poly)), expr()
        return numbers[poly, is_size][0].name

    inner = tuple(number(d.size, True, lambda d=d: _product(d)) for d in dims[1:])
    accesses = tuple(
        Access(
            view.dtype,
            tuple(number(d.strides[i], False, lambda d=d, i=i: {"stride": ["in", i, d.last]}) for d in dims),
            _granule(view.offset),
            _is_flat(dims, i),
        )
        for i, view in enumerate(views)
    )
    total = _ONE
    for size in shape:
        total = total * size
    found = list(numbers.values())
    iteration = Iteration(inner, accesses, tuple(n for n, _ in found), _granule(total))
    return Walk(iteration, tuple(e for _, e in found))


def _is_flat(dims: Sequence[_Dims], i: int) -> bool:
    expected = _ONE
    for d in reversed(dims):
        if d.strides[i] != expected:
            return False
        expected = expected * d.size
    return True


def _product(dims: _Dims) -> Expr:
    sizes: list[Expr] = [{"size": ["out", 0, d]} for d in range(dims.first, dims.last + 1)]
    product = sizes[0]
    for size in sizes[1:]:
        product = {"mul": [product, size]}
    return product


def _view(operand: Operand, values: Sequence[Value], params: Sequence[Param]) -> _View:
    storage: Value | Param = values[operand.value] if operand.value is not None else params[operand.param or 0]
    if operand.strides is not None:
        return _View(storage.dtype, tuple(Poly.of(s) for s in operand.strides), Poly.of(operand.offset))
    strides, step = [], _ONE
    dims: Sequence[Dim] = storage.shape
    for size in reversed(dims):
        strides.append(step)
        step = step * Poly.of(size)
    return _View(storage.dtype, tuple(reversed(strides)), Poly({}))


def _joined(shape: Sequence[Poly], views: Sequence[_View]) -> list[_Dims]:
    """The dims without those of size 1, neighbours joined where every input walks them as one."""
    if any(not size.terms for size in shape):  # nothing to walk: any pattern will do
        return [_Dims(0, len(shape) - 1, Poly({}), tuple(Poly({}) for _ in views))]
    dims: list[_Dims] = []
    for d, size in enumerate(shape):
        if size == _ONE:
            continue
        strides = tuple(v.strides[d] for v in views)
        before = dims[-1] if dims else None
        if before is not None and all(a == b * size for a, b in zip(before.strides, strides, strict=True)):
            dims[-1] = _Dims(before.first, d, before.size * size, strides)
        else:
            dims.append(_Dims(d, d, size, strides))
    return dims or [_Dims(0, 0, _ONE, tuple(Poly({}) for _ in views))]


def _granule(poly: Poly) -> int:
    """The greatest power of two up to MAX_GRANULE that divides it whatever the step's sizes are."""
    return gcd(MAX_GRANULE, *poly.terms.values())
