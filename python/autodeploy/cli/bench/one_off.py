"""Measurements of whole processes: cold starts, compile time, memory, idling."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .cases import MAX_BATCH_TOKENS, MAX_NUM_SEQS, MAX_SEQ_LEN
from .protocol import rss_bytes

_TIMEOUT = 900.0
_COLD_PYTHON = """
import sys, time
from autodeploy import LLM, SamplingParams
with LLM(sys.argv[1], threads=int(sys.argv[2]), max_seq_len=int(sys.argv[3]), progress=False) as llm:
    for output in llm.stream([1, 2, 3, 4], SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)):
        print("token", flush=True)
"""


def seconds_to_first_line(command: list[str], pattern: str) -> float:
    """Seconds from starting a process to its first line of output that matches. Raises RuntimeError where none does."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.search(pattern, line):
                elapsed = time.perf_counter() - begin
                process.stdout.read()
                return elapsed
        assert process.stderr is not None
        tail = process.stderr.read().strip().splitlines()[-1:] or ["it said nothing"]
    raise RuntimeError(f"{command[0]}: {tail[0]}")


def cold_start_python(artifact: Path, threads: int) -> float:
    """Seconds from starting an interpreter to the first token through `LLM`."""
    command = [sys.executable, "-c", _COLD_PYTHON, str(artifact), str(threads), str(MAX_SEQ_LEN)]
    return seconds_to_first_line(command, "^token$")


def cold_start_tool(tool: Path, artifact: Path, threads: int) -> float:
    """Seconds from starting the C++ tool to its first token."""
    command = [str(tool), str(artifact), "--tokens", "1,2,3,4", "--max-tokens", "2", "--threads", str(threads)]
    return seconds_to_first_line([*command, "--max-seq-len", str(MAX_SEQ_LEN)], r"\d")


def compile_cold(model: str, *, pack: bool = False) -> tuple[float, float]:
    """(seconds of the whole process, bytes of the artifact) of compiling a model into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "artifact"
        command = [sys.executable, "-m", "autodeploy", "compile", model, "-o", str(out)]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, *(["--pack"] if pack else [])], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        elapsed = time.perf_counter() - begin
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "compile failed")
        return elapsed, sum(path.stat().st_size for path in out.iterdir())


def tool_memory(tool: Path, artifact: Path, threads: int) -> dict[str, Any]:
    """Resident bytes of the C++ tool while it decodes (the largest seen), and the plan that it prints."""
    limits = ["--max-seq-len", str(MAX_SEQ_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)]
    limits += ["--max-batch-tokens", str(MAX_BATCH_TOKENS), "--threads", str(threads)]
    plan = subprocess.run(
        [str(tool), str(artifact), "--plan", *limits], capture_output=True, text=True, timeout=_TIMEOUT, check=True
    )
    command = [str(tool), str(artifact), "--tokens", "1,2,3,4", "--max-tokens", "256", "--ignore-eos", *limits]
    largest = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            try:
                largest = max(largest, rss_bytes(process.pid))
            except OSError:
                break
    return {"rss_bytes": largest, "plan": json.loads(plan.stdout)["memory"]}
