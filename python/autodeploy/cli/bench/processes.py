"""Engines in processes of their own, and the rounds in which they take turns."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import autodeploy

from . import cases

_FOLDER = Path(__file__).parent
OWN_SCRIPT = _FOLDER / "own_engine.py"
TRANSFORMERS_SCRIPT = _FOLDER / "transformers_engine.py"
_START_SECONDS = 600.0
_CASE_SECONDS = 600.0


@dataclass(frozen=True)
class EngineSpec:
    """An engine to measure: its name, the interpreter and script of its process, and the options for it."""

    name: str
    python: str
    script: Path
    options: dict[str, Any] = field(default_factory=dict)


class EngineProcess:
    """A running engine. `facts` is what it says of itself; `unavailable` is the reason where it cannot be had."""

    def __init__(self, spec: EngineSpec, threads: int):
        self.spec = spec
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        # Another interpreter may not have this package; the protocol needs its sources only.
        environment["PYTHONPATH"] = str(Path(autodeploy.__file__).parents[1])
        self._process = subprocess.Popen(
            [spec.python, str(spec.script), json.dumps(spec.options | {"threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        hello = self._receive(_START_SECONDS)
        self.facts: dict[str, Any] = hello.get("ready", {})
        self.unavailable: str | None = None if "ready" in hello else hello.get("unavailable", hello.get("error", "?"))

    def ask(self, request: dict[str, Any], timeout: float = _CASE_SECONDS) -> dict[str, Any]:
        """Send a request and wait for its answer; {"error": text} where the process fails."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._receive(timeout)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                return {"error": f"no answer in {timeout:.0f} s"}
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with status {self._process.wait()}"}


def run_rounds(
    engines: Sequence[EngineProcess],
    chosen: Sequence[cases.Case],
    rounds: int,
    report: Callable[[str], None],
) -> dict[tuple[str, str], list[float]]:
    """Measure every case on every engine, `rounds` times: (engine, case) -> tokens per second, one for each round.

    Within a round the engines take turns case by case; each round begins with another engine, so that none always
    runs first. A short run of each case warms up. A case that an engine cannot do is left out.
    """
    found: dict[tuple[str, str], list[float]] = {}
    failed: set[tuple[str, str]] = set()
    for round_index in range(-1, rounds):  # -1 warms up
        shift = max(round_index, 0) % len(engines) if engines else 0
        for case in chosen:
            for engine in [*engines[shift:], *engines[:shift]]:
                key = (engine.spec.name, case.name)
                if key in failed:
                    continue
                request = case.to_request()
                if round_index < 0:
                    request["num_tokens"] = min(request["num_tokens"], cases.WARM_UP_TOKENS)
                report(f"round {round_index + 1} of {rounds}: {case.name}, {engine.spec.name}")
                answer = engine.ask(request)
                if "tokens_per_second" not in answer:
                    failed.add(key)
                    report(f"{engine.spec.name} cannot do {case.name}: {answer.get('error', answer)}")
                elif round_index >= 0:
                    found.setdefault(key, []).append(answer["tokens_per_second"])
    return found


def own_engine(name: str, model: str, **options: Any) -> EngineSpec:
    """Our engine on a checkpoint or an artifact."""
    return EngineSpec(name, sys.executable, OWN_SCRIPT, {"model": model, **options})
