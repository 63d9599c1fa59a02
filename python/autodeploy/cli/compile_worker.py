"""The compiler's process: `python -m autodeploy.cli.compile_worker`, started by `autodeploy.llm.compile_client`.

Reads a request as JSON from stdin and answers with a JSON object per line on stdout, as that module describes. Nothing
else reaches stdout: what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .compile_task import compile_artifact, resolve_model
from .main import EXIT_USER, exit_code_of


def main() -> int:
    """Serve one request; always exits with 0 when an answer was given."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        answer(result=perform(json.load(sys.stdin), lambda text: answer(progress=text)))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        text = " ".join(str(error).split())
        users = exit_code_of(error) == EXIT_USER and text != ""
        answer(
            error=text if users else f"[compile] {type(error).__name__}: {text}",
            user_mistake=users,
            details=traceback.format_exc(),
        )
    return 0


def perform(request: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """Carry out a request: {"task": "resolve" or "compile", "model": ..., ...}."""
    if request["task"] == "resolve":
        path, revision = resolve_model(
            request["model"],
            request["revision"],
            request["trust_remote_code"],
            report,
            weights=request.get("weights", True),
        )
        return {"path": str(path), "revision": revision}
    options = {name: request[name] for name in request.keys() - {"task", "model", "out"}}
    compile_artifact(request["model"], Path(request["out"]), report=report, **options)
    return {}


if __name__ == "__main__":
    raise SystemExit(main())
