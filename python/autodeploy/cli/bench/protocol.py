"""How an engine's process talks to the bench: a JSON object per line, requests in, answers out. Standard library only.

First the process says {"ready": facts} or {"unavailable": reason}. To a case it answers {"tokens_per_second": x}, to
{"kind": "memory"} with {"rss_bytes": n}, to {"kind": "idle", "seconds": s} with {"cpu_share": x}, or {"error": text}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Engine = Callable[[dict[str, Any]], float]


def serve(make_engine: Callable[[dict[str, Any]], tuple[Engine, dict[str, Any]]]) -> None:
    """Make the engine from the options (JSON, the first argument) and answer requests until stdin ends.

    make_engine: options -> (a function from a case to tokens per second, facts about the engine). It raises ImportError
    or ValueError where the engine cannot be had.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    begin = time.monotonic()
    try:
        measure, facts = make_engine(json.loads(sys.argv[1]))
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        answer(unavailable=" ".join(str(error).split()))
        return
    answer(ready=facts | {"load_seconds": time.monotonic() - begin, "pid": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["kind"] == "memory":
                answer(rss_bytes=rss_bytes(os.getpid()))
            elif request["kind"] == "idle":
                answer(cpu_share=_idle_share(request["seconds"]))
            else:
                answer(tokens_per_second=measure(request))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process: shared pages of mapped files included."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have used."""
    total = 0.0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as stat:
            total += int(stat.read().split()[0]) / 1e9
    return total


def _idle_share(seconds: float) -> float:
    """Part of one core that this process uses while it waits."""
    before, begin = cpu_seconds(os.getpid()), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(os.getpid()) - before) / (time.monotonic() - begin)
