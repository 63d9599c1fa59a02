"""Runs cases in processes of their own: one that is killed, hangs or eats memory is a row of the report, not its end.

A server process imports and warms up everything once and is forked for each case, so that a case starts at once, and
finds transformers as fresh as a new process would.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .case import Case, class_names, source_hash, versions

Result = dict[str, Any]

_GIB = 1 << 30


@dataclass
class _Running:
    case: Case
    process: Any
    pipe: Connection
    log: Path
    begin: float = field(default_factory=time.monotonic)
    stage: str = "start"


def run_cases(
    cases: Sequence[Case],
    work: Path,
    *,
    jobs: int,
    timeout: float,
    memory: int = 4 * _GIB,
    warm: bool = True,
    show: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Case, Result]]:
    """Yields each case with its result as it ends.

    timeout: seconds of wall time. memory: bytes per case. warm: False forks this process itself.
    """
    context: Any = mp.get_context("forkserver" if warm else "fork")
    if warm:
        context.set_forkserver_preload(["autodeploy.conformance.warm"])
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = list(cases), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(context, waiting.pop(0), work, logs, memory))
            wait([r.pipe for r in running], timeout=1.0)
            for r in list(running):
                result = _look(r, timeout)
                if result is not None:
                    running.remove(r)
                    yield r.case, result
            show(", ".join(f"{r.case.name} ({r.stage})" for r in running))
    finally:
        for r in running:
            r.process.kill()


def _start(context: Any, case: Case, work: Path, logs: Path, memory: int) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    log = logs / f"{case.file_name.removesuffix('.json')}.log"
    process = context.Process(target=_child, args=(theirs, case, work, log, memory), daemon=False)
    process.start()
    theirs.close()
    return _Running(case, process, ours, log)


def _look(r: _Running, timeout: float) -> Result | None:
    """The result of a case that has ended; kills one whose time is over."""
    try:
        while r.pipe.poll():
            kind, value = r.pipe.recv()
            if kind == "stage":
                r.stage = value
            else:
                r.process.join(5)
                if r.process.is_alive():
                    r.process.kill()
                return dict(value)
    except (EOFError, OSError):
        r.process.join(5)
        return _broken(r, f"the process ended {_how(r.process.exitcode)}; its last words are in {r.log}")
    if time.monotonic() - r.begin > timeout:
        r.process.kill()
        r.process.join()
        return _broken(r, f"no result after {timeout:.0f} s")
    return None


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with the code {code}"


def _broken(r: _Running, reason: str) -> Result:
    return {
        "name": r.case.name,
        "class": class_names().get(r.case.model_type, ""),
        "case": vars(r.case),
        "key": r.case.key(),
        "source": source_hash(),
        "versions": versions(),
        "status": "crash",
        "stage": r.stage,
        "reason": reason,
        "seconds": {},
    }


def _child(pipe: Connection, case: Case, work: Path, log: Path, memory: int) -> None:
    """In the forked process: everything that is printed goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with log.open("w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        from .run_case import run_case

        result = run_case(case, work, lambda stage: pipe.send(("stage", stage)))
        pipe.send(("result", json.loads(json.dumps(result, default=str))))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        pipe.close()
