"""A measuring round on a GPU: parts of artifacts, each in a process of its own, each leaving a JSON file at once.

A round that was broken off goes on where it stopped: a part whose file is there, and says of no error, is not measured
again. Remove a file to measure that part anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .gpu_report import report as report_part
from .gpu_report import round_table

_LEAST_SECONDS = 5.0  # it takes to measure anything


def run_round(
    out: Path,
    artifacts: Sequence[str],
    parts: Sequence[str],
    flags: Sequence[str] = (),
    budget: float = float("inf"),
    say: Callable[[str], None] = print,
) -> int:
    """Measure what is missing in `out`, within `budget` seconds. The number of parts that are still missing.

    flags: of `autodeploy bench`, for all parts.
    """
    names = [Path(artifact).resolve().name for artifact in artifacts]
    if len(set(names)) < len(names):
        raise ValueError(f"[bench] artifacts: expected folders of different names, found {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    begin, missing = time.monotonic(), 0
    for artifact, name in zip(artifacts, names, strict=True):
        for part in parts:
            target = out / f"{name}.{part}.json"
            if read_part(target, part) is not None:
                continue
            left = budget - (time.monotonic() - begin)
            reason = "no time is left" if left < _LEAST_SECONDS else _measure(artifact, part, target, flags, left)
            missing += reason is not None
            took = time.monotonic() - begin
            say(f"{took:6.1f} s  {target.name}: {'measured' if reason is None else reason}")
    say(round_text(out, names, parts))
    return missing


def round_text(out: Path, names: Sequence[str], parts: Sequence[str]) -> str:
    """The tables of all that was measured."""
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    texts = []
    for name in names:
        for part in parts:
            found = read_part(out / f"{name}.{part}.json", part)
            if found is None:
                continue
            results[name][part] = found
            if part in ("curve", "roofline"):
                texts.append(f"{name}: {report_part({'parts': {part: found}})}")
    return "\n\n".join([round_table(results), *texts])


def read_part(path: Path, part: str) -> dict[str, Any] | None:
    """What was measured; None where there is nothing, or not all of it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return None if found.get("errors") else found.get("parts", {}).get(part)


def _measure(artifact: str, part: str, target: Path, flags: Sequence[str], seconds: float) -> str | None:
    """Why the part could not be measured, or None. What it left behind goes to a file that does not count."""
    partial = target.with_name(f"{target.stem}.unfinished.json")
    partial.unlink(missing_ok=True)
    command = [sys.executable, "-m", "autodeploy", "bench", artifact, "--part", part, "--json", str(partial), *flags]
    timeout = None if seconds == float("inf") else seconds
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s, when the time was up"
    if done.returncode != 0 or read_part(partial, part) is None:
        said = (done.stderr.strip() or done.stdout.strip() or f"it ended with status {done.returncode}").splitlines()
        target.with_name(f"{target.stem}.error.txt").write_text(done.stdout + done.stderr)
        return f"failed: {said[-1]}"
    partial.rename(target)
    target.with_name(f"{target.stem}.error.txt").unlink(missing_ok=True)
    return None
