"""Dimensions of a Program: products of an integer and powers of the step's symbols T (tokens) and R (rows).

A dimension that leaves the compiler is an integer or a multiple of one symbol (docs/program.md). Products of several
symbols only occur inside the view algebra (the number of elements of a value, say): they are carried but never written.
"""

from __future__ import annotations

from dataclasses import dataclass

SYMBOLS = ("T", "R")


@dataclass(frozen=True)
class Dim:
    """`factor * T**t * R**r`, a number >= 0 that is known once a step's T and R are."""

    factor: int
    t: int = 0
    r: int = 0

    def __post_init__(self) -> None:
        if self.factor < 0:
            raise ValueError(f"[dim] expected a number >= 0, found {self.factor}")
        if self.factor == 0 and (self.t or self.r):
            object.__setattr__(self, "t", 0)
            object.__setattr__(self, "r", 0)

    @property
    def is_static(self) -> bool:
        """Whether the dimension depends on neither T nor R."""
        return self.t == 0 and self.r == 0

    @property
    def degree(self) -> int:
        """How many symbols are multiplied; at most 1 in a Program."""
        return self.t + self.r

    def __mul__(self, other: Dim | int) -> Dim:
        other = as_dim(other)
        return Dim(self.factor * other.factor, self.t + other.t, self.r + other.r)

    __rmul__ = __mul__

    def add(self, other: Dim | int) -> Dim | None:
        """The sum where it is a single product again, else None."""
        other = as_dim(other)
        if other.factor == 0:
            return self
        if self.factor == 0:
            return other
        if (self.t, self.r) == (other.t, other.r):
            return Dim(self.factor + other.factor, self.t, self.r)
        return None

    def divide(self, other: Dim | int) -> Dim | None:
        """The exact quotient for every T and R, else None."""
        other = as_dim(other)
        if other.factor == 0 or self.factor % other.factor or self.t < other.t or self.r < other.r:
            return None
        return Dim(self.factor // other.factor, self.t - other.t, self.r - other.r)

    def evaluate(self, tokens: int, rows: int) -> int:
        """The number it is in a step of `tokens` tokens and `rows` rows."""
        return int(self.factor * tokens**self.t * rows**self.r)

    def to_json(self, symbols: tuple[str, str] = SYMBOLS) -> int | str:
        """The form written in program.json; ValueError where it is no multiple of at most one symbol.

        Within a body `symbols` are N and S, and one of each may be multiplied.
        """
        if self.is_static:
            return self.factor
        if self.degree > 1 and (symbols == SYMBOLS or max(self.t, self.r) > 1):
            raise ValueError(f"[dim] expected an integer or a multiple of {' or '.join(symbols)}, found {self}")
        factors = [] if self.factor == 1 else [str(self.factor)]
        return "*".join(factors + [symbols[0]] * self.t + [symbols[1]] * self.r)

    def __str__(self) -> str:
        factors = [str(self.factor)] if self.factor != 1 or self.is_static else []
        return "*".join(factors + ["T"] * self.t + ["R"] * self.r)


T = Dim(1, t=1)
R = Dim(1, r=1)
ZERO = Dim(0)
ONE = Dim(1)


def as_dim(value: Dim | int | str) -> Dim:
    """The Dim of an integer, of the JSON form of a dimension, or of a Dim itself.

    Raises:
        ValueError: the text is no dimension of a Program.
    """
    if isinstance(value, Dim):
        return value
    if isinstance(value, int):
        return Dim(value)
    factor, times, symbol = value.rpartition("*")
    if symbol not in SYMBOLS or (times and not (factor.isascii() and factor.isdigit())):
        raise ValueError(f"[dim] expected an integer, T, R or a multiple of them, found {value!r}")
    number = int(factor) if factor else 1
    return Dim(number, t=1) if symbol == "T" else Dim(number, r=1)


def numel(shape: tuple[Dim, ...]) -> Dim:
    """The number of elements of a shape."""
    total = ONE
    for dim in shape:
        total = total * dim
    return total


def contiguous_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Row-major strides of a shape, in elements."""
    strides: list[Dim] = []
    step = ONE
    for dim in reversed(shape):
        strides.append(step)
        step = step * dim
    return tuple(reversed(strides))
