"""`verify` as users call it, and the printed Programs of tiny models."""

from __future__ import annotations

import dataclasses
import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from e2e_models import DATA, case, gguf_case, workshop

from autodeploy.artifact import read_artifact, write_artifact
from autodeploy.artifact.files import CONSTANTS
from autodeploy.lowering import format_program
from autodeploy.verify import verify

pytestmark = pytest.mark.e2e
GOLDEN = Path(__file__).parents[2] / "data" / "golden"
PROMPTS = [[5, 3, 250, 17, 9], [1], list(range(40, 60))]


@pytest.mark.parametrize("name", DATA["golden"])
def test_printed_program(name: str) -> None:
    """AUTODEPLOY_UPDATE_GOLDEN=1 writes them anew. Other versions of torch and transformers may trace other names."""
    versions = " ".join(f"{p} {version(p).split('+')[0]}" for p in ("torch", "transformers"))
    text = f"{versions}\n{format_program(case(name).artifact.program, sources=False)}"
    path = GOLDEN / f"program_{name}.txt"
    if os.environ.get("AUTODEPLOY_UPDATE_GOLDEN"):
        path.write_text(text)
    wanted = path.read_text()
    if wanted.splitlines()[0] != versions:
        pytest.skip(f"the golden program is of {wanted.splitlines()[0]}")
    assert text == wanted


def test_verify_of_an_artifact() -> None:
    c = case(DATA["golden"][0])
    report = verify(c.artifact.path, PROMPTS, max_new_tokens=4)
    assert report.ok, report.text()
    assert report.exit_status == 0
    assert [check.tokens for check in report.checks] == [3, 12, 3, 12]
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    assert "everything agrees" in report.text()


def test_verify_of_quantized_weights_finds_its_checkpoint() -> None:
    report = verify(gguf_case(0).artifact.path, ["the quick brown"], max_new_tokens=3)
    assert report.ok, report.text()


def test_verify_finds_a_wrong_program() -> None:
    """A program that was compiled wrongly: the interpreter and the runtime agree, and both are wrong."""
    good = case(DATA["golden"][0]).artifact
    program = type(good.program).from_json(good.program.to_json())
    attention = next(i for i in program.instructions if i.op == "attention")
    attention.attrs["scale"] = attention.attrs["scale"] * 1.01
    provenance = dataclasses.replace(good.provenance)
    constants = (good.path / CONSTANTS).read_bytes()
    bad = write_artifact(workshop() / "wrong", program, good.weights, provenance, {CONSTANTS: constants})
    report = verify(read_artifact(bad).path, PROMPTS, max_new_tokens=4)
    assert not report.ok
    assert report.exit_status == 1
    assert report.culprit is None
    assert "the compiled program itself is wrong" in report.text()
    assert "FAIL whole prompts, interpreter" in report.text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[]]}, "expected a prompt of token ids"),
        ({"prompts": [[320]]}, r"token ids below 320, found \[320\]"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[1] * 600]}, "at most 512 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens >= 1"),
        ({"reference": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_bad_input_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(case(DATA["golden"][0]).artifact.path, **arguments)
