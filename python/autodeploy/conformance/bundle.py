"""Writes a bundle: the listed cases as entries that are judged on another machine (see `entry`)."""

from __future__ import annotations

import fnmatch
import functools
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .bundle_case import Asked, make_entry
from .case import Case, load_facts, make_case
from .entry import FORMAT, WORK, entry_key
from .pool import Job, Result, Show
from .progress import run_shown, seconds_of


def write_bundle(
    bundle: Path,
    only: Sequence[str] = (),
    *,
    jobs: int = 1,
    timeout: float = 600.0,
    again: bool = False,
    keep: bool = False,
    asked: Asked | None = None,
) -> int:
    """Makes the entries that are missing; returns 1 where one could not be made.

    keep: entries of other sources count too. asked: as in `make_entry`.
    """
    names = [n for n in load_facts()["listed"] if not only or any(fnmatch.fnmatchcase(n, p) for p in only)]
    if not names:
        raise ValueError(f"[bundle] expected listed cases, found none like {', '.join(only)}; look into the data file")
    bundle.mkdir(parents=True, exist_ok=True)
    todo: list[Job] = []
    for case in map(make_case, names):
        key = f"{FORMAT} {case.key(native=False)}"
        found = entry_key(bundle / case.name)
        if again or found is None or (found != key and not keep):
            run = functools.partial(_make, case, key, bundle, asked)
            todo.append(Job(case.name, case.name, run, {"name": case.name}))
    random.Random(0).shuffle(todo)  # what a run that was ended has made is a sample of all kinds
    failed: list[Result] = []

    def done(job: Job, result: Result) -> str:
        if result["status"] != "made":
            failed.append(result)
            return f"{result['status']:7} {job.name}: {result.get('stage', '')}: {result.get('reason', '')}"
        return f"{'made':7} {seconds_of(result):5.1f} s {result['bytes'] / 1024:7.0f} KiB  {job.name}"

    work = bundle / WORK
    run_shown(todo, work, len(names) - len(todo), done, jobs=jobs, timeout=timeout)
    if not failed:
        shutil.rmtree(work, ignore_errors=True)
    files = [f for name in names for f in (bundle / name).rglob("*") if f.is_file()]
    size = f"{sum(f.stat().st_size for f in files) / 2**20:.1f} MiB"
    print(f"{len(names) - len(failed)} of {len(names)} entries in {bundle}, {size}", file=sys.stderr)
    for result in failed:
        print(f"not made: {result['name']}: {result.get('reason', '')}", file=sys.stderr)
    return 1 if failed else 0


def _make(case: Case, key: str, bundle: Path, asked: Asked | None, show: Show) -> Result:
    return make_entry(case, key, bundle, asked, show)
