"""A case of a bundle as a file: what transformers says of it, for a machine that has no transformers.

BUNDLE/NAME/expected.json     prompts, the reference's tokens, and what is needed to judge logits without its own
BUNDLE/NAME/artifact/         the compiled model, weights inside
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autodeploy.verify.judge import gap_of
from autodeploy.verify.reference import Expected
from autodeploy.verify.schedule import Feed

FORMAT = 1
FILE, ARTIFACT = "expected.json", "artifact"
# Beside the entries: what is being made, and logs of what went wrong.
WORK = ".work"


@dataclass(frozen=True)
class Request:
    """A prompt, the tokens that follow it, and what the reference's float32 logits are after each of the n tokens fed:
    `best` token [n], `gap` [n] between the two best (`gap_of`), and `largest` magnitude [n].

    tie: the first token with a tie in a selection of the model. rounding: how far the reference's logits may be off by
    rounding, as a part of the largest (see `doubts.rounding`).
    """

    prompt: tuple[int, ...]
    following: tuple[int, ...]
    best: tuple[int, ...]
    gap: tuple[float, ...]
    largest: tuple[float, ...]
    tie: int | None
    rounding: float

    @classmethod
    def of(cls, expected: Expected, tie: int | None, rounding: float) -> Request:
        """What is kept of the reference's answer."""
        rows = expected.logits
        return cls(
            expected.feed.prompt,
            expected.feed.following,
            tuple(int(row.argmax()) for row in rows),
            tuple(float(f"{gap_of(row):.6g}") for row in rows),
            tuple(float(f"{np.abs(row).max():.9g}") for row in rows),
            tie,
            rounding,
        )

    def feed(self, prefix: Sequence[int] = ()) -> Feed:
        """How it is fed."""
        return Feed(self.prompt, self.following, tuple(prefix))


@dataclass(frozen=True)
class Entry:
    """All of expected.json. `key` says what it was made from; `described` goes into reports as it is.

    eager: by the way of making a bfloat16 model ("loaded" as bfloat16, or "cast": float32 weights and buffers rounded),
    the error of its logits against float32 ({"max", "mean"}: absolute, over all logits of all tokens), or {"error"}.
    """

    name: str
    key: str
    described: dict[str, Any]
    requests: tuple[Request, ...]
    eager: dict[str, dict[str, Any]]

    def write(self, folder: Path) -> None:
        """Writes the file into the entry's folder."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_entry(folder: Path) -> Entry:
    """The entry of a folder; raises ValueError where its file is damaged or absent."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        requests = []
        for r in data.pop("requests"):
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}
            request = Request(**fields)
            count = len(request.feed().tokens)
            if not request.following or any(len(x) != count for x in (request.best, request.gap, request.largest)):
                raise ValueError(f"lists of other lengths than the {count} tokens fed")
            requests.append(request)
        return Entry(requests=tuple(requests), **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"[bundle] expected an entry of format {FORMAT} in {path}, found {e}; make it again") from e


def entry_key(folder: Path) -> str | None:
    """What an entry was made from; None where there is none."""
    try:
        return read_entry(folder).key
    except ValueError:
        return None


def error_of(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[float, float]:
    """Largest and summed |found - expected| of arrays of logits; inf where one of them only is finite."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    errors = np.where(found == expected, 0.0, np.where(np.isfinite(errors), errors, np.inf))
    return float(errors.max(initial=0.0)), float(errors.sum())
