"""Times of the stages of a case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Seconds of each stage, and which one is running; `show` is told its name."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.current = ""
        self._show = show

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.current = name
        self._show(name)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - wall, 3)
            self.seconds[f"{name} cpu"] = round(time.process_time() - cpu, 3)
