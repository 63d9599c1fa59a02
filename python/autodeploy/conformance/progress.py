"""Runs jobs with a line of progress, and a line for each that has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autodeploy.llm.progress import ProgressLine, wants_progress

from .pool import Job, Result, run_jobs


def run_shown(
    todo: Sequence[Job],
    work: Path,
    known: int,
    done: Callable[[Job, Result], str],
    **limits: Any,
) -> None:
    """Runs jobs; `done` is given each result as it comes, and returns the line that is printed of it.

    known: how many results there were before, which count. limits: those of `run_jobs`.
    """
    begin, count, ended = time.monotonic(), known + len(todo), 0
    with ProgressLine(enabled=wants_progress() and sys.stderr.isatty()) as line:

        def show(running: str) -> None:
            line.show(f"{_bar(known + ended, count)} {_left(begin, ended, len(todo))} {running}"[:150])

        for job, result in run_jobs(todo, work, show=show, **limits):
            ended += 1
            text = done(job, result)
            line.clear()
            print(f"{known + ended:4} of {count}  {text}", file=sys.stderr, flush=True)


def seconds_of(result: Result) -> float:
    """Wall time of all stages."""
    return float(sum(v for k, v in result.get("seconds", {}).items() if not k.endswith("cpu")))


def _bar(number: int, count: int, width: int = 24) -> str:
    full = width * number // max(count, 1)
    return f"[{'=' * full}{' ' * (width - full)}] {number}/{count}"


def _left(begin: float, ended: int, count: int) -> str:
    if not ended:
        return ""
    seconds = (time.monotonic() - begin) / ended * (count - ended)
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
