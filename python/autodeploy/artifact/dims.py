"""Dims of a Program: an integer, or a multiple of `T` (tokens of the step) or `R` (rows whose logits are wanted).

A dim is kept as JSON keeps it: `7`, `"T"`, `"8*T"`, `"R"`. Sizes and extents of views are products of dims; they are
`Poly`s, so that bounds can be proved for every T and R at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import ArtifactError

Dim = int | str

# Integers in a Program stay below this, so that any reader can hold them in a double or an int64 and multiply a few.
MAX_INT = 2**53

_SYMBOLIC = re.compile(r"(?:([1-9][0-9]{0,15})\*)?([TR])")


def parse_dim(dim: Dim) -> tuple[int, str]:
    """Splits a dim into (factor, symbol); the symbol of an integer is `""`."""
    if isinstance(dim, int) and not isinstance(dim, bool):
        if not 0 <= dim <= MAX_INT:
            raise ArtifactError(f"[dim] expected an integer from 0 to 2^53, found {dim}")
        return dim, ""
    match = _SYMBOLIC.fullmatch(dim) if isinstance(dim, str) else None
    if match is None:
        raise ArtifactError(f'[dim] expected an integer >= 0, "T", "R", "n*T" or "n*R", found {dim!r}')
    return int(match[1] or 1), match[2]


def format_dim(factor: int, symbol: str = "") -> Dim:
    """The dim `factor * symbol` in its one canonical spelling."""
    if symbol not in ("", "T", "R"):
        raise ArtifactError(f'[dim] expected the symbol "", "T" or "R", found {symbol!r}')
    if factor == 0 or not symbol:
        return factor
    return symbol if factor == 1 else f"{factor}*{symbol}"


def eval_dim(dim: Dim, num_tokens: int, num_rows: int) -> int:
    """The integer that a dim stands for in a step of `num_tokens` tokens and `num_rows` wanted rows."""
    factor, symbol = parse_dim(dim)
    return factor * {"": 1, "T": num_tokens, "R": num_rows}[symbol]


def mul_dims(dims: Iterable[Dim]) -> Dim:
    """The product of dims, at most one of which may be symbolic."""
    factor, symbol = 1, ""
    for dim in dims:
        f, s = parse_dim(dim)
        if s and symbol:
            raise ArtifactError(f"[dim] expected at most one symbol in a product, found {symbol} and {s}")
        factor, symbol = factor * f, symbol or s
    return format_dim(factor, symbol)


class Poly:
    """A polynomial in T and R with integer coefficients: {(power of T, power of R): coefficient}."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[tuple[int, int], int]) -> None:
        self.terms = {powers: c for powers, c in terms.items() if c}

    @classmethod
    def of(cls, dim: Dim) -> Poly:
        factor, symbol = parse_dim(dim)
        return cls({(int(symbol == "T"), int(symbol == "R")): factor})

    def __add__(self, other: Poly) -> Poly:
        terms = dict(self.terms)
        for powers, c in other.terms.items():
            terms[powers] = terms.get(powers, 0) + c
        return Poly(terms)

    def __mul__(self, other: Poly) -> Poly:
        terms: dict[tuple[int, int], int] = {}
        for (t1, r1), c1 in self.terms.items():
            for (t2, r2), c2 in other.terms.items():
                powers = (t1 + t2, r1 + r2)
                terms[powers] = terms.get(powers, 0) + c1 * c2
        return Poly(terms)

    def __sub__(self, other: Poly) -> Poly:
        return self + other * Poly({(0, 0): -1})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def is_never_negative(self) -> bool:
        """Whether it is shown to be >= 0 for all T >= R >= 1.

        Substitutes R = 1 + r and T = 1 + r + s with r, s >= 0; then no coefficient may be negative. For the linear and
        quadratic forms that views give this loses nothing.
        """
        one = Poly({(0, 0): 1})
        rows = one + Poly({(0, 1): 1})
        tokens = rows + Poly({(1, 0): 1})
        total = Poly({})
        for (t, r), c in self.terms.items():
            term = Poly({(0, 0): c})
            for _ in range(t):
                term = term * tokens
            for _ in range(r):
                term = term * rows
            total = total + term
        return all(c >= 0 for c in total.terms.values())

    def __repr__(self) -> str:
        def one(powers: tuple[int, int], c: int) -> str:
            return "*".join([str(c), *["T"] * powers[0], *["R"] * powers[1]])

        return " + ".join(one(p, c) for p, c in sorted(self.terms.items(), reverse=True)) or "0"


def numel_poly(shape: Iterable[Dim]) -> Poly:
    """Number of elements of a shape."""
    total = Poly({(0, 0): 1})
    for dim in shape:
        total = total * Poly.of(dim)
    return total
