"""Judges a bundle on a device: entry by entry, with results that are written as they come, and a summary."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodeploy._load_native import load_native

from .case import load_facts, source_hash
from .device_case import judge_entry
from .device_report import DEVICE_FORMAT, failures, put_section, summary
from .entry import ARTIFACT, FILE, entry_key
from .pool import Job, Result, Show
from .progress import run_shown, seconds_of

_PRELOAD = "autodeploy.conformance.device_warm"


def judge_bundle(
    bundle: Path,
    device: str,
    only: Sequence[str] = (),
    *,
    jobs: int = 1,
    timeout: float = 600.0,
    again: bool = False,
    file: Path | None = None,
    show_json: bool = False,
) -> int:
    """Judges all entries of a bundle, or those `only` names; returns 1 where one does not pass.

    file: results are kept there as they come, and found again by the next run with the same entries and libraries.

    Raises:
        ValueError: there are no such entries, or no such device.
    """
    machine = _machine(device)
    folders = {p.name: p for p in bundle.glob("*") if (p / FILE).exists() or (p / ARTIFACT).exists()}
    every = sorted(folders)
    names = [n for n in every if not only or any(fnmatch.fnmatchcase(n, pattern) for pattern in only)]
    if not names:
        what = f" like {', '.join(only)}" if only else ""
        raise ValueError(f"[bundle] expected entries{what} in {bundle}, found none; write them with --bundle")
    built = f"{source_hash()} {_device_hash()}"
    keys = {name: f"{entry_key(folders[name])} {device} {built}" for name in names}
    data: dict[str, Any] = {"format": DEVICE_FORMAT, "device": device, "machine": machine, "entries": every}
    kept = {} if again or file is None else _stored(file)
    results = {name: kept[name] for name in names if name in kept and kept[name].get("key") == keys[name]}
    if results:
        print(f"{len(results)} results found in {file}", file=sys.stderr)

    def done(job: Job, result: Result) -> str:
        results[job.name] = result
        _save(file, data | {"results": kept | results})
        text = "" if result["status"] == "pass" else f": {result.get('reason', '')}"
        return f"{result['status']:7} {seconds_of(result):5.1f} s  {job.name}{text[:300]}"

    todo = [_job(folders[n], device, keys[n]) for n in names if n not in results]
    work = Path(tempfile.mkdtemp(prefix="autodeploy-conformance-"))
    # A driver maps far more memory than it uses, so there is no limit on it.
    limits: dict[str, Any] = {"jobs": jobs, "timeout": timeout, "memory": None, "preload": _PRELOAD}
    run_shown(todo, work, len(results), done, **limits)
    found = {name: results[name] for name in names}
    if any(r["status"] == "crash" for r in found.values()):
        print(f"what processes said that ended: {work / 'logs'}", file=sys.stderr)
    else:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{summary(found)}\n{failures(found)}", file=sys.stderr)
    if show_json:
        print(json.dumps(data | {"results": found}, indent=1))
    return 0 if all(r["status"] == "pass" for r in found.values()) else 1


def report(file: Path, page: Path | None) -> int:
    """Puts the results of a whole run on a GPU into the page of conformance."""
    from .run import DOC

    put_section(_read(file), page or DOC, load_facts()["listed"])
    print(f"written: {page or DOC}", file=sys.stderr)
    return 0


def _job(folder: Path, device: str, key: str) -> Job:
    broken = {"name": folder.name, "key": key, "device": device, "checks": {}}
    return Job(folder.name, folder.name, functools.partial(_judge, folder, device, key), broken)


def _judge(folder: Path, device: str, key: str, show: Show) -> Result:
    return judge_entry(folder, device, key, show)


def _machine(device: str) -> dict[str, Any]:
    """What the device is; raises ValueError where it is not there."""
    if device.partition(":")[1]:
        raise ValueError(f"[conformance] expected cuda, cuda-emulated or cpu, found {device}; use CUDA_VISIBLE_DEVICES")
    described: dict[str, Any] = load_native().describe_device(device)
    return described


def _device_hash() -> str:
    """A hash of the libraries of devices that are there."""
    folders = [os.environ.get("AUTODEPLOY_DEVICE_LIBRARIES"), str(Path(load_native().__file__ or "").parent)]
    digest = hashlib.sha256()
    for folder in filter(None, folders):
        for path in sorted(Path(folder).glob("libautodeploy_cuda*.so")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != DEVICE_FORMAT:
            raise ValueError(f"another format than {DEVICE_FORMAT}")
        return {**data, "results": dict(data["results"]), "entries": list(data["entries"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"[conformance] expected results of --from-bundle in {file}, found {e}; run it again") from e


def _stored(file: Path) -> dict[str, Result]:
    if not file.exists():
        return {}
    results: dict[str, Result] = _read(file)["results"]
    return results


def _save(file: Path | None, data: dict[str, Any]) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(file)
