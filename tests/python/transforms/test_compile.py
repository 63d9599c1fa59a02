"""compile.py: artifacts with and without packed weights, and what a user's mistake leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autodeploy import compile as compiler
from autodeploy.artifact import read_artifact
from autodeploy.capture.source import Source
from autodeploy.verify.params import load_params

# Capture hooks transformers before its models are imported, so the compiler runs in a process of its own.
_BOTH = """
import sys
from autodeploy.testing.tiny import make_tiny
from autodeploy.compile import build, resolve_source, write
name, folder = sys.argv[1:]
make_tiny(name, folder + "/checkpoint")
lines = []
compiled = build(resolve_source(folder + "/checkpoint"), dump=folder + "/dump", report=lines.append)
write(compiled, folder + "/plain", report=lines.append)
write(compiled, folder + "/packed", pack=True, report=lines.append)
assert compiled.explain and compiled.steps.seconds > 0
assert lines[0] == "building the model without its weights" and lines[-1] == "packing weights: 100 %", lines
"""


@pytest.mark.e2e
def test_plain_and_packed(tmp_path, data_dir):
    name = json.loads((data_dir / "e2e.json").read_text())["models"][0]["name"]
    command = [sys.executable, "-c", _BOTH, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    plain, packed = read_artifact(tmp_path / "plain"), read_artifact(tmp_path / "packed")
    assert plain.program == packed.program
    assert (tmp_path / "dump" / "00-captured.txt").exists()
    before = load_params(plain)
    (tmp_path / "checkpoint" / "model.safetensors").unlink()  # the packed artifact needs it no more
    after = load_params(packed)
    assert before.keys() == after.keys() == {p.name for p in plain.program.params}
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_no_model_there(tmp_path, capsys):
    out = tmp_path / "artifact"
    assert compiler.main([str(tmp_path / "nothing"), "-o", str(out)]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not out.exists()


def test_artifacts_are_compiled_already():
    with pytest.raises(ValueError, match="it is compiled already"):
        compiler.build(Source("artifact", Path("/some/artifact"), "artifact"))
