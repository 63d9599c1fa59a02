"""When a row of logits is wrong: far from the reference, or another best token without a tie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autodeploy.testing.compare import relative_error
from autodeploy.testing.tolerances import TIE_TOLERANCE

from .report import Check, Wrong

Logits = NDArray[np.float32]


def judge(
    check: Check, request: int, position: int, found: Logits, expected: Logits, predicts: bool, token: int | None = None
) -> None:
    """Adds one row of logits [V] to a check.

    `predicts`: the row's best token is one that generation takes; `token` is the one that the reference took, where
    rounding in its cache made that another than the best of `expected`.
    """
    judge_logits(check, request, position, found, expected)
    if predicts:
        right = int(expected.argmax())
        both = [right, right if token is None else token]
        judge_token(check, request, position, int(found.argmax()), both, lambda: gap_of(expected))


def judge_logits(check: Check, request: int, position: int, found: Logits, expected: Logits) -> None:
    """Adds one row of logits [V] to a check: wrong where they are further from `expected` than its tolerance."""
    check.rows += 1
    error = relative_error(found, expected)
    check.worst_error = max(check.worst_error, error)
    if error > check.tolerance:
        worst = int(np.argmax(np.nan_to_num(np.abs(found - expected), nan=np.inf)))
        what = f"logits differ by {error:.3g} of the largest, most that of token {worst}: "
        what += f"expected {expected[worst]:.6g}, found {found[worst]:.6g}"
        check.wrong.append(Wrong(request, position, what, error))


def judge_token(
    check: Check, request: int, position: int, best: int, right: Sequence[int], gap: Callable[[], float]
) -> None:
    """Adds the best token of one row to a check.

    One that is not among `right` is wrong where the reference's `gap_of` exceeds the tie tolerance (or the check's own,
    where that is larger); a nearer tie is counted.
    """
    check.tokens += 1
    if best in right:
        return
    distance = gap()
    if distance > max(TIE_TOLERANCE, check.tolerance):
        what = f"expected token {right[0]}, found {best}; the reference's gap is {distance:.3g}"
        check.wrong.append(Wrong(request, position, what))
    else:
        check.ties += 1


def gap_of(logits: Logits) -> float:
    """How far apart the two best of logits [V] are, as a part of the largest."""
    second, first = np.sort(logits)[-2:]
    return float(first - second) / (float(np.abs(logits).max()) or 1.0)
