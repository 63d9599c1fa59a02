"""One entry of a bundle judged on a device, in a process of its own. Imports no transformers."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .device_checks import BFLOAT16, FLOAT32, NAMES, Bench
from .entry import ARTIFACT, read_entry
from .stages import Stages

PASS, FAIL, ERROR = "pass", "fail", "error"
# Ops by which a model chooses experts or keys: near a tie, rounding chooses others, and a row differs as a whole.
_SELECTIONS = ("topk", "sort")


def judge_entry(
    folder: Path, device: str, key: str, show: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Judges an entry and returns its result; nothing is raised but Ctrl-C.

    A check that ends with an error is wrong, and the others are still made; an entry that cannot be read has the status
    "error". `key` goes into the result as it is.
    """
    stages = Stages(show)
    result: dict[str, Any] = {"name": folder.name, "key": key, "device": device, "status": ERROR, "checks": {}}
    try:
        with stages("read"):
            bench = _bench(folder, device, result)
        _judge(bench, stages, result["checks"])
        result["kernels"] = sorted(bench.kernels)
        wrong = {letter: why(check) for letter, check in result["checks"].items() if not check["ok"]}
        result["status"] = FAIL if wrong else PASS
        if wrong:
            result["reason"] = "; ".join(f"{letter}: {what}" for letter, what in wrong.items())
    except Exception as e:
        result["reason"] = f"{type(e).__name__}: {' '.join(str(e).split())}"
        result["traceback"] = traceback.format_exc()[-4000:]
    return result | {"stage": stages.current, "seconds": stages.seconds}


def _bench(folder: Path, device: str, result: dict[str, Any]) -> Bench:
    from autodeploy.artifact import read_artifact

    entry = read_entry(folder)
    result |= {name: entry.described[name] for name in ("class", "ops", "states", "versions", "source")}
    artifact = read_artifact(folder / ARTIFACT)
    program = artifact.program
    lists = [program.instructions, *(body.instructions for body in program.bodies)]
    result["selects"] = any(i.op in _SELECTIONS for instructions in lists for i in instructions)
    return Bench(entry, artifact.path, device, program.metadata.get("prefix_tokens", ()))


def _judge(bench: Bench, stages: Stages, checks: dict[str, Any]) -> None:
    todo: dict[str, Callable[[], dict[str, Any]]] = {
        "cpu": bench.judge_cpu,
        "a": lambda: bench.judge_plan("a"),
        "b": lambda: bench.judge_plan("b"),
        "c": lambda: bench.judge_plan("c"),
        "d": lambda: bench.judge_plan("d"),
        "e": bench.judge_engine,
        "f": bench.judge_bfloat16,
        "g": lambda: bench.judge_replay(FLOAT32),
        "h": lambda: bench.judge_replay(BFLOAT16),
    }
    assert list(todo) == list(NAMES), "every check has a name, and every name its check"
    if bench.device == "cpu":  # which knows float32 only, and no graphs
        for letter in "fgh":
            del todo[letter]
    for letter, check in todo.items():
        try:
            with stages(letter):
                checks[letter] = check()
        except Exception as e:
            error = f"{type(e).__name__}: {' '.join(str(e).split())[:600]}"
            checks[letter] = {"ok": False, "error": error, "traceback": traceback.format_exc()[-2000:]}


def why(check: dict[str, Any]) -> str:
    """Why a check is not ok, in a few words."""
    if "error" in check:
        return str(check["error"])
    if "unjudged" in check:
        return "logits that are not finite"
    if "ratios" in check:
        judged = check["ratios"].get("loaded") or check["ratios"].get("cast") or {}
        shown = ", ".join(f"{what} {ratio:.3g}" for what, ratio in judged.items())
        return f"error as a part of that of transformers in bfloat16: {shown}"
    if "steps" in check:
        if not check["steps"]:
            return "no step was replayed"
        letter, step, request, position, error = check["first"]
        where = f"first in plan {letter} step {step}, request {request} token {position}, by up to {error:.3g}"
        return f"{check['wrong']} of {check['rows']} rows differ, {where}"
    if not check["first_wrong"]:
        return "nothing was compared"
    request, position, what = check["first_wrong"][0]
    return f"{check['wrong']} of {check['rows']} rows, first request {request} token {position}: {what}"
