"""When a row of logits is wrong: far from the reference, or another best token without a tie."""

from __future__ import annotations

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
    rounding in its cache made that another than the best of `expected`. A different best token is wrong where the gap
    between the reference's two best logits exceeds the tie tolerance (or the check's own, where that is larger); a
    nearer tie is counted.
    """
    check.rows += 1
    error = relative_error(found, expected)
    check.worst_error = max(check.worst_error, error)
    if error > check.tolerance:
        worst = int(np.argmax(np.nan_to_num(np.abs(found - expected), nan=np.inf)))
        what = f"logits differ by {error:.3g} of the largest, most that of token {worst}: "
        what += f"expected {expected[worst]:.6g}, found {found[worst]:.6g}"
        check.wrong.append(Wrong(request, position, what, error))
    if not predicts:
        return
    check.tokens += 1
    best, right = int(found.argmax()), int(expected.argmax())
    if best in (right, token):
        return
    second, first = np.sort(expected)[-2:]
    gap = float(first - second) / (float(np.abs(expected).max()) or 1.0)
    if gap > max(TIE_TOLERANCE, check.tolerance):
        check.wrong.append(
            Wrong(request, position, f"expected token {right}, found {best}; the reference's gap is {gap:.3g}")
        )
    else:
        check.ties += 1
