"""A tiny model for tests that run whole processes, and a shell with the command line in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MAKE = """
import json, sys
from autodeploy.testing.tiny import make_tiny
make_tiny(sys.argv[1], sys.argv[2], overrides=json.loads(sys.argv[3]))
"""


def has_engine() -> bool:
    """Whether the C++ engine was built."""
    from autodeploy._load_native import load_native

    try:
        return hasattr(load_native(), "Engine")
    except ImportError:
        return False


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint of the first model of the end-to-end tests, for prompts of up to 1023 tokens."""
    entry = json.loads((ROOT / "tests" / "data" / "e2e.json").read_text())["models"][0]
    overrides = entry.get("overrides", {}) | {"max_position_embeddings": 1024}
    command = [sys.executable, "-c", _MAKE, entry["name"], str(folder), json.dumps(overrides)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def environment(cache: Path) -> dict[str, str]:
    """For child processes: a cache of their own, one thread, this source tree."""
    paths = [str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"AUTODEPLOY_CACHE_DIR": str(cache), "AUTODEPLOY_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def run_shell(script: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run lines of shell; `autodeploy` is the command of this source tree."""
    prelude = f'set -euo pipefail\nautodeploy() {{ "{sys.executable}" -m autodeploy "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", prelude + script], cwd=cwd, env=environment(cache), capture_output=True, text=True, timeout=600
    )


def run_python(script: str, cwd: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(cache), capture_output=True, text=True, timeout=600)
