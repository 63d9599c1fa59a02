"""Dims of a Program: an integer, or a multiple of `T` (tokens of the step) or `R` (rows whose logits are wanted).

A dim is kept as JSON keeps it: `7`, `"T"`, `"8*T"`, `"R"`. Inside a body (docs/program.md, Body) the symbols are `N`
(query tokens of a tile), `S` (key blocks) and their product, as in `"4*N*S"`. Sizes and extents of views are products
of dims; they are `Poly`s, so that bounds can be proved for every size of the symbols at once. A `Scope` says which
symbols may stand in a list of instructions, and what is known of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ArtifactError

Dim = int | str

# Integers in a Program stay below this, so that any reader can hold them in a double or an int64 and multiply a few.
MAX_INT = 2**53

_SYMBOLIC = re.compile(r"(?:([1-9][0-9]{0,15})\*)?(T|R|N\*S|N|S)")
SYMBOLS = ("T", "R", "N", "S", "N*S")


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
    if symbol and symbol not in SYMBOLS:
        raise ArtifactError(f"[dim] expected no symbol or one of {', '.join(SYMBOLS)}, found {symbol!r}")
    if factor == 0 or not symbol:
        return factor
    return symbol if factor == 1 else f"{factor}*{symbol}"


def eval_dim(dim: Dim, num_tokens: int, num_rows: int) -> int:
    """The integer that a dim stands for in a step of `num_tokens` tokens and `num_rows` wanted rows.

    Inside a body they are the query tokens of the tile and the key blocks.
    """
    factor, symbol = parse_dim(dim)
    powers = _POWERS[symbol]
    return factor * int(num_tokens ** powers[0]) * int(num_rows ** powers[1])


def mul_dims(dims: Iterable[Dim]) -> Dim:
    """The product of dims, at most one of which may be symbolic; inside a body, one N and one S."""
    factor, symbol = 1, ""
    for dim in dims:
        f, s = parse_dim(dim)
        if {s, symbol} == {"N", "S"}:
            s, symbol = "N*S", ""
        if s and symbol:
            raise ArtifactError(f"[dim] expected at most one symbol in a product, found {symbol} and {s}")
        factor, symbol = factor * f, symbol or s
    return format_dim(factor, symbol)


# Powers of the step's two sizes: tokens (T, in a body N) and rows (R, in a body S).
_POWERS = {"": (0, 0), "T": (1, 0), "R": (0, 1), "N": (1, 0), "S": (0, 1), "N*S": (1, 1)}


class Poly:
    """A polynomial in T and R (in a body: N and S) with integer coefficients: {(power of T, of R): coefficient}."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[tuple[int, int], int]) -> None:
        self.terms = {powers: c for powers, c in terms.items() if c}

    @classmethod
    def of(cls, dim: Dim) -> Poly:
        factor, symbol = parse_dim(dim)
        return cls({_POWERS[symbol]: factor})

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

    def is_never_negative(self, scope: Scope | None = None) -> bool:
        """Whether it is shown to be >= 0 for all sizes of a scope; without one, for all T >= R >= 1.

        Substitutes sizes that start at 0: R = 1 + r and T = 1 + r + s, in a body S = least + s and N = 1 + n. Then no
        coefficient may be negative. For the linear and quadratic forms that views give this loses nothing.
        """
        scope = scope or PROGRAM_SCOPE
        rows = Poly({(0, 0): scope.least_rows, (0, 1): 1})
        tokens = Poly({(0, 0): 1, (1, 0): 1})
        if not scope.in_body:
            tokens = tokens + Poly({(0, 1): 1})
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


@dataclass(frozen=True)
class Scope:
    """Where dims stand: the symbols that are legal there, and the least R (in a body: S) that can come."""

    symbols: tuple[str, ...]
    in_body: bool = False
    least_rows: int = 1

    def check(self, dims: Iterable[Dim], where: str) -> None:
        """Raises ArtifactError where a dim's symbol does not belong here."""
        for dim in dims:
            symbol = parse_dim(dim)[1]
            if symbol and symbol not in self.symbols:
                legal = ", ".join(self.symbols)
                raise ArtifactError(f"[{where}] expected integers or multiples of {legal}, found {dim}")

    def least(self, dim: Dim) -> int:
        """The smallest integer that a dim can be."""
        return eval_dim(dim, 1, self.least_rows)


PROGRAM_SCOPE = Scope(("T", "R"))


def body_scope(block: int, min_keys: int) -> Scope:
    """The scope of a body that sees keys in blocks of `block`, never fewer than `min_keys`."""
    return Scope(("N", "S", "N*S"), True, max(1, -(-min_keys // block)))
