"""Measurements of whole processes: cold starts, compile time, memory, idling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .cases import MAX_SEQ_LEN
from .protocol import rss_bytes

_TIMEOUT = 900.0
_DECODED_TOKENS = 256
_COLD_PYTHON = """
import json, sys
from autodeploy import LLM, SamplingParams
with LLM(sys.argv[1], progress=False, **json.loads(sys.argv[2])) as llm:
    for output in llm.stream([1, 2, 3, 4], SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)):
        print("token", flush=True)
"""


def seconds_to_output(command: list[str]) -> float:
    """Seconds from starting a process to the first thing it says. Raises RuntimeError where it says nothing."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = os.read(process.stdout.fileno(), 1)
        elapsed = time.perf_counter() - begin
        process.stdout.read()
        said = process.stderr.read().decode(errors="replace").strip()
    if not found:
        raise RuntimeError(f"{command[0]}: {said.splitlines()[-1] if said else 'it said nothing'}")
    return elapsed


def cold_start_python(artifact: Path, threads: int, **load: Any) -> float:
    """Seconds from starting an interpreter to the first token through `LLM`. load: load_format and dummy_seed."""
    options = {"threads": threads, "max_seq_len": MAX_SEQ_LEN} | load
    return seconds_to_output([sys.executable, "-c", _COLD_PYTHON, str(artifact), json.dumps(options)])


def _load_flags(load: dict[str, Any]) -> list[str]:
    return [part for name, value in load.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def cold_start_tool(tool: Path, artifact: Path, threads: int, **load: Any) -> float:
    """Seconds from starting the C++ tool to its first token. load: load_format and dummy_seed."""
    command = [str(tool), str(artifact), "--tokens", "1,2,3,4", "--max-tokens", "2", "--ignore-eos"]
    command += ["--threads", str(threads), "--max-seq-len", str(MAX_SEQ_LEN), *_load_flags(load)]
    return seconds_to_output(command)


def compile_cold(model: str, *, pack: bool = False, load_format: str = "auto") -> tuple[float, float]:
    """(seconds of the whole process, bytes of the artifact) of compiling a model into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "artifact"
        command = [sys.executable, "-m", "autodeploy", "compile", model, "-o", str(out)]
        command += ["--load-format", load_format]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, *(["--pack"] if pack else [])], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        elapsed = time.perf_counter() - begin
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "compile failed")
        return elapsed, sum(path.stat().st_size for path in out.iterdir())


def tool_memory(tool: Path, artifact: Path, threads: int, **load: Any) -> dict[str, Any]:
    """Resident bytes of the C++ tool while it decodes, the most that was seen from outside, and what it planned.

    All caches are backed with memory at the start, so that the plan can be compared byte by byte. load: load_format and
    dummy_seed.
    """
    command = [str(tool), str(artifact), "--tokens", "1,2,3,4", "--max-tokens", str(_DECODED_TOKENS), "--ignore-eos"]
    command += ["--threads", str(threads), "--max-seq-len", str(MAX_SEQ_LEN), "--prefault", "--stats"]
    command += _load_flags(load)
    seen = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while os.read(process.stdout.fileno(), 1 << 16):
            seen = max(seen, rss_bytes(process.pid))
        stats = process.stderr.read().decode(errors="replace")
    if process.returncode != 0:
        raise RuntimeError(f"{tool}: {' '.join(stats.split())[:400]}")
    report = json.loads(stats)
    plan = {name: report["memory_plan"][name] for name in ("weights", "arena", "caches", "sampler")}
    return {"rss_bytes": seen, "planned_bytes": report["planned_bytes"], "plan": plan}
