"""A program that was compiled wrongly does not pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autodeploy import compile as compiler
from autodeploy.artifact import Artifact, read_artifact
from autodeploy.artifact.files import CONSTANTS
from autodeploy.artifact.writer import write_artifact
from autodeploy.capture.source import resolve_source
from autodeploy.conformance.case import load_facts
from autodeploy.conformance.checks import expectations, judge_engine, judge_steps
from autodeploy.conformance.doubts import Doubts
from autodeploy.testing.tiny import make_tiny
from autodeploy.verify.reference import load_reference
from autodeploy.verify.report import Check, Wrong
from tiny_workshop import has_engine

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the engine was not built")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Path]:
    """A good artifact, the same with another scale in its first attention, and their checkpoint."""
    folder = tmp_path_factory.mktemp("judging")
    checkpoint = make_tiny(load_facts()["sample"][0], folder / "checkpoint", tokenizer=False)
    good = read_artifact(compiler.write(compiler.build(resolve_source(checkpoint)), folder / "good"))
    program = type(good.program).from_json(good.program.to_json())
    attention = next(i for i in program.instructions if i.op == "attention")
    attention.attrs["scale"] = attention.attrs["scale"] * 2
    constants = (good.path / CONSTANTS).read_bytes()
    provenance = dataclasses.replace(good.provenance)
    bad = write_artifact(folder / "bad", program, good.weights, provenance, {CONSTANTS: constants})
    return good, read_artifact(bad), checkpoint


def test_a_wrong_program_is_told_from_a_right_one(made: tuple[Artifact, Artifact, Path]) -> None:
    good, bad, checkpoint = made
    model = load_reference(checkpoint)
    expected, wrong = expectations(model, [([9, 8, 30, 12, 11], 12), ([70], 12)], "generate")
    assert not wrong
    doubts = Doubts(model, expected)
    judged, blame = judge_steps(good, doubts)
    assert all(j.ok for j in judged.values())
    assert not blame
    assert judge_engine(good, doubts).ok
    judged, blame = judge_steps(bad, doubts)
    assert not any(j.ok for j in judged.values())
    assert any("the interpreter is wrong too" in line for line in blame)
    assert not judge_engine(bad, doubts).ok


def test_a_mismatch_of_the_reference_with_itself_is_said(made: tuple[Artifact, Artifact, Path]) -> None:
    model = load_reference(made[2])
    whole, calls = model.forward, [0]

    def drifting(*args: object, **kwargs: object) -> object:
        out = whole(*args, **kwargs)
        calls[0] += 1
        out.logits = out.logits * (1 + 0.01 * (calls[0] % 2))
        return out

    model.forward = drifting
    _, wrong = expectations(model, [([9, 8, 30, 12, 11], 5)], "generate")
    assert len(wrong) == 1
    assert "a prompt of 5 tokens" in wrong[0]


def test_what_the_reference_leaves_room_for(made: tuple[Artifact, Artifact, Path]) -> None:
    model = load_reference(made[2])
    expected, _ = expectations(model, [([9, 8, 30, 12, 11], 5)], "generate")
    rounding = Doubts(model, expected).rounding(0)
    assert 0 < rounding < 1e-5

    def judged(error: float | None, tokens_only: bool) -> tuple[bool, int]:
        check = Check("x", rows=9, wrong=[Wrong(0, 3, "differs", error)])
        found = Doubts(model, expected).judge(check, tokens_only)
        return found.ok, found.roundings

    assert judged(0.9 * rounding, tokens_only=True) == (True, 1)
    assert judged(0.9 * rounding, tokens_only=False) == (False, 0)
    assert judged(1.1 * rounding, tokens_only=True) == (False, 0)
    assert judged(None, tokens_only=True) == (False, 0)  # another token
