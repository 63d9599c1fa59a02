"""The checks of one entry of a bundle on a device, against the reference's tokens and the CPU runtime's logits.

Nothing here needs transformers: what is asked of the reference, the entry holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autodeploy.testing.tolerances import LOGITS_TOLERANCE
from autodeploy.verify.backends import Backend, Logits, RuntimeBackend, limits_of
from autodeploy.verify.judge import judge_logits, judge_token
from autodeploy.verify.report import Check, Wrong

from .checks import NAMES as CPU_NAMES
from .checks import compare_tokens, engine_tokens, plans
from .entry import Entry, error_of
from .judged import Judged, leave_room

NAMES = {
    "cpu": "the CPU runtime, by the reference's tokens and largest logits",
    **CPU_NAMES,
    "f": "bfloat16: error of all logits, at most that of transformers in bfloat16",
    "g": "float32: replayed decode steps equal launched ones bit for bit",
    "h": "bfloat16: the same",
}
FLOAT32, BFLOAT16 = "float32", "bfloat16"
# Plans whose rows are all tokens of all requests once, and those with steps that only decode.
_ALL_TOKENS = ("a", "b")
_DECODES = {FLOAT32: ("b", "d"), BFLOAT16: ("b",)}

# JSON has no infinity.
_MOST = 1e30


@dataclass
class Bench:
    """An entry's artifact with the steps of its checks, and the logits of plans that were run."""

    entry: Entry
    artifact: Path
    device: str
    prefix: Sequence[int] = ()
    kernels: set[str] = field(default_factory=set)
    _open: dict[tuple[str, str], Backend] = field(default_factory=dict)
    _rows: dict[tuple[str, str, str], list[Logits]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.feeds = [r.feed(self.prefix) for r in self.entry.requests]
        self.steps = plans(self.feeds)

    def rows(self, device: str, act: str, letter: str) -> list[Logits]:
        """Logits by step of a plan; one runtime runs the plans one after the other, a new one after an error."""
        if (device, act, letter) not in self._rows:
            if (device, act) not in self._open:
                self._open[device, act] = self.backend(device, act)
            backend = self._open.pop((device, act))
            self._rows[device, act, letter] = [backend.step(s) for s in self.steps[letter]]
            self._open[device, act] = backend
        return self._rows[device, act, letter]

    def backend(self, device: str, act: str, replay: bool = False) -> Backend:
        """The artifact on a device, for the steps of all plans."""
        limits = limits_of([s for steps in self.steps.values() for s in steps])
        backend = RuntimeBackend(self.artifact, limits, device=device, act=act, replay=replay)
        if device != "cpu":
            self.kernels |= {i["kernel"] for i in backend.runner.plan()["instructions"] if i.get("kernel")}
        return backend

    def judge_cpu(self) -> dict[str, Any]:
        """The CPU runtime's own tokens in all plans, and the size of its logits."""
        check = Check(NAMES["cpu"], tolerance=LOGITS_TOLERANCE)
        for letter, steps in self.steps.items():
            for planned, logits in zip(steps, self.rows("cpu", FLOAT32, letter), strict=True):
                for (request, position), row in zip(planned.wanted, logits, strict=True):
                    check.rows += 1
                    self._judge_token(check, request, position, row)
                    expected = self.entry.requests[request].largest[position]
                    error = abs(float(np.abs(row).max()) - expected) / (expected or 1.0)
                    check.worst_error = max(check.worst_error, error)
                    if not error <= LOGITS_TOLERANCE:
                        what = f"expected a largest logit of {expected:.6g}, found one that is off by {error:.3g} of it"
                        check.wrong.append(Wrong(request, position, what, error))
        return self._leave_room(check, tokens_only=True).to_json()

    def judge_plan(self, letter: str) -> dict[str, Any]:
        """Checks a to d in float32: logits by those of the CPU runtime, tokens by the reference's.

        As on the CPU, logits of a must be within the tolerance; in the others tokens count.
        """
        check = Check(NAMES[letter], tolerance=LOGITS_TOLERANCE)
        found, right = self.rows(self.device, FLOAT32, letter), self.rows("cpu", FLOAT32, letter)
        for planned, logits, expected in zip(self.steps[letter], found, right, strict=True):
            for (request, position), row, other in zip(planned.wanted, logits, expected, strict=True):
                judge_logits(check, request, position, row, other)
                self._judge_token(check, request, position, row)
        return self._leave_room(check, tokens_only=letter != "a").to_json()

    def judge_engine(self) -> dict[str, Any]:
        """Check e: greedy tokens of the engine, in float32."""
        requests = self.entry.requests
        made = engine_tokens(self.artifact, self.feeds, self.device)
        check = compare_tokens(made, self.feeds, lambda request, position: requests[request].gap[position])
        return self._leave_room(check, tokens_only=True).to_json()

    def judge_bfloat16(self) -> dict[str, Any]:
        """Check f: the error against the CPU runtime's float32 logits beside that of transformers.

        It is judged by the model that was loaded as bfloat16; the ratios to one that was cast are said too. Where
        transformers runs neither, only that logits are finite where they should be.
        """
        largest, total, count = 0.0, 0.0, 0
        for letter in _ALL_TOKENS:
            found, right = self.rows(self.device, BFLOAT16, letter), self.rows("cpu", FLOAT32, letter)
            for planned, logits, expected in zip(self.steps[letter], found, right, strict=True):
                for (request, position), row, other in zip(planned.wanted, logits, expected, strict=True):
                    last = len(self.entry.requests[request].prompt) - 1
                    if letter == "b" and position == last:  # which plan a has as well
                        continue
                    worst, errors = error_of(row, other)
                    largest, total, count = max(largest, worst), total + errors, count + row.size
        mean = total / max(count, 1)
        result: dict[str, Any] = {
            "ok": False,
            "logits": count,
            "max": min(largest, _MOST),
            "mean": min(mean, _MOST),
            "ratios": {},
        }
        for way, eager in self.entry.eager.items():
            if "error" not in eager:
                ratios = {"max": _ratio(largest, eager["max"]), "mean": _ratio(mean, eager["mean"])}
                result["ratios"][way] = ratios
        judged = result["ratios"].get("loaded") or result["ratios"].get("cast")
        if judged is None:
            said = "; ".join(f"{way}: {eager['error']}" for way, eager in self.entry.eager.items())
            return result | {"ok": largest < _MOST, "unjudged": f"transformers does not run it in bfloat16: {said}"}
        return result | {"ok": count > 0 and judged["max"] <= 1 and judged["mean"] <= 1}

    def judge_replay(self, act: str) -> dict[str, Any]:
        """Checks g and h: a runtime that replays its decode-only steps beside one that launches them."""
        replaying = self.backend(self.device, act, replay=True)
        steps = rows = different = 0
        first: list[Any] = []
        for letter in _DECODES[act]:
            plain = self.rows(self.device, act, letter)
            for i, (planned, right) in enumerate(zip(self.steps[letter], plain, strict=True)):
                found = replaying.step(planned)
                batch = planned.batch
                steps += batch.num_tokens == batch.num_seqs and all(batch.has_state)
                for (request, position), row, other in zip(planned.wanted, found, right, strict=True):
                    rows += 1
                    if not np.array_equal(row.view(np.uint32), other.view(np.uint32)):
                        different += 1
                        first = first or [letter, i, request, position, min(error_of(row, other)[0], _MOST)]
        return {"ok": steps > 0 and not different, "steps": steps, "rows": rows, "wrong": different, "first": first}

    def _judge_token(self, check: Check, request: int, position: int, row: Logits) -> None:
        known = self.entry.requests[request]
        place = position - (len(known.prompt) - 1)
        if place >= 0:
            right = [known.following[place], known.best[position]]
            judge_token(check, request, position, int(row.argmax()), right, lambda: known.gap[position])

    def _leave_room(self, check: Check, tokens_only: bool) -> Judged:
        requests = self.entry.requests
        return leave_room(check, tokens_only, lambda i: requests[i].tie, lambda i: requests[i].rounding)


def _ratio(ours: float, theirs: float) -> float:
    if theirs > 0:
        return min(ours / theirs, _MOST)
    return 0.0 if ours == 0 else _MOST
