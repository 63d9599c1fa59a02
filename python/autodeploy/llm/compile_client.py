"""Runs the compiler in a fresh child interpreter: serving imports neither torch nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .errors import CompileError

_WORKER = "autodeploy.cli.compile_worker"
_STDERR_TAIL = 8192
_TERMINATE_SECONDS = 5.0


def resolve_in_child(
    model: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    weights: bool = True,
    report: Callable[[str], None],
) -> tuple[Path, str | None]:
    """The local checkpoint (folder or .gguf file) that a hub id or an alias stands for, and the hub commit it was found
    at; fetches it where needed, with or without its weights.

    Raises ValueError where there is no such model, CompileError where the child fails otherwise.
    """
    request = {"task": "resolve", "model": model, "revision": revision, "trust_remote_code": trust_remote_code}
    request |= {} if weights else {"weights": False}
    result = run_worker(request, report)
    return Path(result["path"]), result["revision"]


def compile_in_child(
    model: str,
    out: Path,
    *,
    revision: str | None,
    trust_remote_code: bool,
    report: Callable[[str], None],
    **options: Any,
) -> None:
    """Compile a model into the artifact folder `out`. Raises as `resolve_in_child`."""
    request = {"task": "compile", "model": model, "out": str(out), "revision": revision}
    run_worker(request | {"trust_remote_code": trust_remote_code} | options, report)


def run_worker(
    request: dict[str, Any], report: Callable[[str], None], command: list[str] | None = None
) -> dict[str, Any]:
    """Run one task in a child and return its result.

    The child writes a JSON object per line: {"progress": text}, and at the end {"result": object} or
    {"error": text, "user_mistake": bool, "details": text}. Leaving early, by Ctrl-C say, ends the child.
    """
    command = [sys.executable, "-m", _WORKER] if command is None else command
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
            except BrokenPipeError:
                pass  # it died at once; its exit status is reported below
            answer = _read_answer(child.stdout, report)
            status = child.wait()
        finally:
            _end(child)
        if answer is None:
            raise CompileError(
                f"[compile] the compiler's process ended {_exit_words(status)} without an answer; "
                "run `autodeploy compile --debug` on the model to see more",
                _tail(stderr),
            )
    if "error" in answer:
        if answer.get("user_mistake"):
            raise ValueError(answer["error"])
        raise CompileError(answer["error"], answer.get("details", ""))
    return answer["result"]


def _read_answer(stdout: IO[bytes], report: Callable[[str], None]) -> dict[str, Any] | None:
    """The last line's object, with progress reported on the way."""
    answer = None
    for line in stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "progress" in message:
            report(message["progress"])
        elif "result" in message or "error" in message:
            answer = message
    return answer


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _exit_words(status: int) -> str:
    if status == -9:
        return "by SIGKILL (the system may be out of memory)"
    return f"by signal {-status}" if status < 0 else f"with status {status}"


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, 2)
    stderr.seek(max(0, size - _STDERR_TAIL))
    return stderr.read().decode(errors="replace")
