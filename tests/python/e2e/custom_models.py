"""The example models of examples/custom_models as checkpoints, and the plug-in of one of them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples" / "custom_models"
_FOLDER = Path(tempfile.mkdtemp(prefix="autodeploy-custom-"))


@functools.cache
def checkpoint(name: str) -> Path:
    """A tiny random checkpoint, made by the example's own script in a process of its own."""
    out = _FOLDER / name
    command = [sys.executable, str(EXAMPLES / "make_checkpoint.py"), name, str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


@functools.cache
def plugin() -> Path:
    """The shared library of example `own_kernel`, built as its CMakeLists.txt says."""
    build = _FOLDER / "plugin"
    source = EXAMPLES / "own_kernel"
    for command in (["cmake", "-S", str(source), "-B", str(build)], ["cmake", "--build", str(build)]):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return build / "libexample_gated_act.so"


def clean_up() -> None:
    """Removes everything that was made."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
