"""The parts of a bench on a GPU, one after the other, each written down as soon as it is there."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import gpu_engine
from .gpu_roofline import roofline
from .gpu_setting import GpuSetting

_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "start": gpu_engine.start,
    "latency": gpu_engine.latency,
    "throughput": gpu_engine.throughput,
    "gap": gpu_engine.gap,
    "curve": gpu_engine.curve,
    "roofline": roofline,
}


def run_parts(
    setting: GpuSetting, parts: Sequence[str], model: str, out: Path | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the parts: {"parts": {name: found}, "errors": {name: reason}, ...}, in `out` after each step as well.

    A part that fails is recorded with its reason, with what it had found by then, and the next one is measured.
    """
    from autodeploy._load_native import load_native

    found: dict[str, Any] = {
        "model": model,
        "device": load_native().describe_device(setting.device),
        "system": platform.platform(),
        "setting": asdict(setting) | {"max_seq_len": setting.max_seq_len},
        "parts": {},
        "errors": {},
    }

    def write() -> None:
        if out is not None:
            write_json(out, found)

    for name in parts:
        report(f"measuring {name}")

        def save(partial: dict[str, Any], name: str = name) -> None:
            found["parts"][name] = partial
            write()

        try:
            save(_MEASURES[name](setting, save))
        except (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
            found["errors"][name] = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
            write()
    return found


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Writes a file as a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, path)
