"""Progress lines on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from . import env

Progress = Callable[[str], None]

_SECONDS_BETWEEN_LINES = 0.1


def wants_progress(choice: bool | None = None) -> bool:
    """Whether to show progress: the caller's choice, else AUTODEPLOY_PROGRESS, else where stderr is a terminal."""
    if choice is not None:
        return choice
    setting = env.PROGRESS.get()
    return setting == "on" or (setting == "auto" and sys.stderr is not None and sys.stderr.isatty())


class ProgressLine:
    """One line on stderr that is rewritten in place on a terminal, and printed anew elsewhere where it changed."""

    def __init__(self, *, enabled: bool):
        self._enabled = enabled
        self._in_place = enabled and sys.stderr.isatty()
        self._last_time = 0.0
        self._width = 0

    def show(self, text: str, *, force: bool = False) -> None:
        """Replace the line; on a terminal at most ten times a second unless forced."""
        now = time.monotonic()
        if not self._enabled or (self._in_place and not force and now - self._last_time < _SECONDS_BETWEEN_LINES):
            return
        self._last_time = now
        if self._in_place:
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away (on a terminal)."""
        if self._in_place and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
