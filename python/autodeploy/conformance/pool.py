"""Runs jobs in processes of their own: one that is killed, hangs or eats memory is a row of the report, not its end.

A server process imports and warms up everything once and is forked for each job, so that it starts at once, and
finds transformers as fresh as a new process would.
"""

from __future__ import annotations

import functools
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

from .case import Case, facts_of

Result = dict[str, Any]
Show = Callable[[str], None]

WARM = "autodeploy.conformance.warm"
_GIB = 1 << 30


@dataclass(frozen=True)
class Job:
    """One process: `run` is called in it with a function that is told the stage, and returns the result as JSON can
    hold it. `log` names the file of what it prints; `broken` is the result, but for the reason, where none comes."""

    name: str
    log: str
    run: Callable[[Show], Result]
    broken: Result = field(default_factory=dict)


@dataclass
class _Running:
    job: Job
    process: Any
    pipe: Connection
    log: Path
    begin: float = field(default_factory=time.monotonic)
    stage: str = "start"


def case_job(case: Case, work: Path) -> Job:
    """The job of `run_case`."""
    return Job(case.name, log_name(case), functools.partial(_run, case, work), facts_of(case))


def log_name(case: Case) -> str:
    """The name of a case's job, of which there is one."""
    return case.file_name.removesuffix(".json")


def _run(case: Case, work: Path, show: Show) -> Result:
    from .run_case import run_case

    return run_case(case, work, show)


def run_jobs(
    todo: Sequence[Job],
    work: Path,
    *,
    jobs: int,
    timeout: float,
    memory: int | None = 4 * _GIB,
    preload: str | None = WARM,
    show: Show = lambda text: None,
) -> Iterator[tuple[Job, Result]]:
    """Yields each job with its result as it ends.

    timeout: seconds of wall time. memory: bytes per job, None: as much as there is. preload: the module that the server
    imports before it is forked; None forks this process itself.
    """
    context: Any = mp.get_context("forkserver" if preload else "fork")
    if preload:
        context.set_forkserver_preload([preload])
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, ended = list(todo), list[_Running](), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(context, waiting.pop(0), logs, memory))
            wait([r.pipe for r in running], timeout=1.0)
            for r in list(running):
                result = _look(r, timeout)
                if result is not None:
                    running.remove(r)
                    ended.append(r)
                    yield r.job, result
            show(", ".join(f"{r.job.name} ({r.stage})" for r in running))
    finally:
        for r in running:
            r.process.kill()
        for r in ended:  # giving a device back takes a process a while, for which nobody waits before
            r.process.join(5)
            if r.process.is_alive():
                r.process.kill()


def _start(context: Any, job: Job, logs: Path, memory: int | None) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    log = logs / f"{job.log}.log"
    process = context.Process(target=_child, args=(theirs, job, log, memory), daemon=False)
    process.start()
    theirs.close()
    return _Running(job, process, ours, log)


def _look(r: _Running, timeout: float) -> Result | None:
    """The result of a case that has ended; kills one whose time is over."""
    try:
        while r.pipe.poll():
            kind, value = r.pipe.recv()
            if kind == "stage":
                r.stage = value
            else:
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
    return {**r.job.broken, "status": "crash", "stage": r.stage, "reason": reason, "seconds": {}}


def _child(pipe: Connection, job: Job, log: Path, memory: int | None) -> None:
    """In the forked process: everything that is printed goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with log.open("w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        result = job.run(lambda stage: pipe.send(("stage", stage)))
        pipe.send(("result", json.loads(json.dumps(result, default=str))))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        pipe.close()
