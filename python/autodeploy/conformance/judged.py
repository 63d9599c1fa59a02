"""A check's result without the rows for which the reference itself leaves room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autodeploy.verify.report import Check, Wrong


@dataclass
class Judged:
    """A check's result without the rows that are not to be judged: `selections` of them lie behind a tie within the
    reference's own selections, `roundings` have the right token, and logits within the reference's own rounding."""

    check: Check
    selections: int = 0
    roundings: int = 0

    @property
    def ok(self) -> bool:
        return self.check.ok

    def to_json(self) -> dict[str, Any]:
        """The result as a row of the report needs it."""
        c = self.check
        return {
            "ok": self.ok,
            "rows": c.rows,
            "tokens": c.tokens,
            "ties": c.ties,
            "selection_ties": self.selections,
            "roundings": self.roundings,
            "worst_error": float(min(c.worst_error, 1e30)),
            "wrong": len(c.wrong),
            "first_wrong": [[w.request, w.position, w.what] for w in c.wrong[:3]],
        }


def leave_room(
    check: Check, tokens_only: bool, first_tie: Callable[[int], int | None], rounding: Callable[[int], float]
) -> Judged:
    """Takes out of `check` what is not wrong for certain.

    tokens_only: its logits need not agree within the tolerance where the reference's own do not either. A check of
    which fewer than half of the rows are left says too little, and stays wrong.

    Args:
        first_tie: of a request, its first token with a tie in a selection of the reference, or None.
        rounding: of a request, how far the reference's logits may be off by rounding.
    """
    selections, roundings, left = set(), set(), []
    for w in check.wrong:
        tie = first_tie(w.request)
        if tie is not None and w.position >= tie:
            selections.add((w.request, w.position))
        elif tokens_only and w.error is not None and w.error <= rounding(w.request):
            roundings.add((w.request, w.position))
        else:
            left.append(w)
    if len(selections) > check.rows // 2:
        found = f"{len(selections)} of {check.rows} rows differ behind a tie in the model's own selections"
        left.append(Wrong(0, 0, f"{found}: take another seed"))
    check.wrong[:] = left
    return Judged(check, len(selections), len(roundings))
