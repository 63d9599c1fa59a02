"""The compiler's child, played by little scripts."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from autodeploy.llm import CompileError
from autodeploy.llm.compile_client import run_worker


def run(script: str, request: dict | None = None) -> tuple[dict, list[str]]:
    lines: list[str] = []
    result = run_worker(request or {}, lines.append, [sys.executable, "-c", script])
    return result, lines


def test_progress_and_result():
    script = """
import json, sys
request = json.load(sys.stdin)
print(json.dumps({"progress": "one"}), flush=True)
print("a library's own words")
print(json.dumps({"progress": "two"}))
print(json.dumps({"result": {"echo": request["x"]}}))
"""
    assert run(script, {"x": 5}) == ({"echo": 5}, ["one", "two"])


def test_a_users_mistake_is_a_value_error():
    with pytest.raises(ValueError, match=r"^no such model$"):
        run("""print('{"error": "no such model", "user_mistake": true}')""")


def test_an_error_of_ours_carries_its_details():
    with pytest.raises(CompileError, match=r"^lost$") as caught:
        run("""print('{"error": "lost", "user_mistake": false, "details": "Traceback ..."}')""")
    assert caught.value.details == "Traceback ..."


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('why', file=sys.stderr); sys.exit(3)", "with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "out of memory"),
        ("import os; os.abort()", "by signal 6"),
    ],
)
def test_a_child_that_dies(script, words):
    with pytest.raises(CompileError, match=words) as caught:
        run(script)
    if "status" in words:
        assert caught.value.details == "why\n"


def test_ctrl_c_ends_the_child(tmp_path):
    pid_file = tmp_path / "pid"
    script = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open({str(pid_file)!r}, "w").write(str(os.getpid()))
print('{{"progress": "up"}}', flush=True)
time.sleep(60)
"""

    def interrupt(text: str) -> None:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_worker({}, interrupt, [sys.executable, "-c", script])
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_worker_itself(tmp_path, monkeypatch):
    """Errors come back in one line each, and nothing but answers reaches stdout."""
    from autodeploy.llm.compile_client import compile_in_child, resolve_in_child

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"^\[source\] .* does not exist"):
        resolve_in_child(str(tmp_path / "missing"), revision=None, trust_remote_code=False, report=print)
    with pytest.raises(ValueError, match=r"^\[hub\] cannot fetch nobody/nothing"):
        resolve_in_child("nobody/nothing", revision=None, trust_remote_code=False, report=lambda text: None)
    (tmp_path / "config.json").write_text("{}")
    path, revision = resolve_in_child(str(tmp_path), revision=None, trust_remote_code=False, report=print)
    assert (path, revision) == (tmp_path, None)
    with pytest.raises(CompileError, match=r"^\[compile\] KeyError"):
        run_worker({"task": "compile", "model": "x"}, print)
    with pytest.raises(ValueError, match="will not be overwritten"):
        compile_in_child("x", tmp_path, revision=None, trust_remote_code=False, report=print)
