"""Comparison of tensors that says where the first wrong element is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Difference:
    """How `found` differs from `expected`: the first wrong element, and the worst error over all."""

    coordinate: tuple[int, ...]
    found: float
    expected: float
    error: float  # largest |found - expected| / largest |expected|, inf where one of them is not finite
    wrong: int  # elements beyond the tolerance
    total: int

    def __str__(self) -> str:
        return (
            f"first wrong at {list(self.coordinate)}: expected {self.expected:.9g}, found {self.found:.9g}; "
            f"{self.wrong} of {self.total} wrong, largest error {self.error:.3g} of the largest value"
        )


def relative_error(found: ArrayLike, expected: ArrayLike) -> float:
    """The largest |found - expected|, as a part of the largest |expected|; inf where only one of them is finite."""
    found, expected = _wide(found), _wide(expected)
    return float(_errors(found, expected).max(initial=0.0))


def first_difference(found: ArrayLike, expected: ArrayLike, tolerance: float) -> Difference | None:
    """Where `found` is further from `expected` than `tolerance` times the largest |expected|, or None.

    Equal infinities are equal, and so are two NaNs.

    Raises:
        ValueError: the shapes differ.
    """
    found, expected = _wide(found), _wide(expected)
    if found.shape != expected.shape:
        raise ValueError(f"[compare] expected shape {list(expected.shape)}, found {list(found.shape)}")
    errors = _errors(found, expected)
    wrong = errors > tolerance
    if not wrong.any():
        return None
    first = int(np.flatnonzero(wrong)[0])
    coordinate = tuple(int(i) for i in np.unravel_index(first, expected.shape))
    return Difference(
        coordinate,
        float(found[coordinate]),
        float(expected[coordinate]),
        float(errors.max()),
        int(wrong.sum()),
        int(expected.size),
    )


def assert_close(found: ArrayLike, expected: ArrayLike, tolerance: float, what: str = "result") -> None:
    """Fails with the first wrong coordinate."""
    difference = first_difference(found, expected, tolerance)
    assert difference is None, f"{what}: {difference}"


def _wide(x: ArrayLike) -> NDArray[np.float64]:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float().numpy() if x.dtype.is_floating_point else x.numpy()
    return np.asarray(x, dtype=np.float64)


def _errors(found: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        errors = np.abs(found - expected) / scale
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return np.where(same, 0.0, np.where(np.isfinite(errors), errors, np.inf))
