"""Tiny models, compiled once per test run, with what transformers says about them."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from e2e_gguf import write_gguf

from autodeploy.artifact import Artifact, read_artifact
from autodeploy.interpreter import Interpreter
from autodeploy.llm.compile_client import compile_in_child
from autodeploy.verify import Report
from autodeploy.verify.backends import Backend, InterpreterBackend, RuntimeBackend, limits_of
from autodeploy.verify.checks import expectations, random_prompts, run_check
from autodeploy.verify.params import load_params
from autodeploy.verify.reference import Expected
from autodeploy.verify.schedule import Feed, PlannedStep, ragged, whole_prompts

DATA = json.loads((Path(__file__).parents[2] / "data" / "e2e.json").read_text())
NEW_TOKENS = 8
PROMPT_LENGTHS = (1, 7, 16, 33, 2)


@dataclass(frozen=True)
class Case:
    """A compiled model, the checkpoint that transformers loads, and its answers to some prompts."""

    name: str
    checkpoint: Path
    artifact: Artifact
    expected: tuple[Expected, ...]

    @property
    def feeds(self) -> list[Feed]:
        return [e.feed for e in self.expected]

    def interpreter(self) -> Backend:
        return InterpreterBackend(Interpreter(self.artifact.program, load_params(self.artifact)))

    def runtime(
        self, steps: Sequence[PlannedStep], threads: int = 1, exact: bool = True, poison: bool = False
    ) -> RuntimeBackend:
        return RuntimeBackend(self.artifact.path, limits_of(steps), threads, exact, poison)


# What is fed in which steps: name -> planned steps.
PLANS: dict[str, Callable[[Sequence[Feed]], list[PlannedStep]]] = {
    "whole prompts": lambda feeds: list(whole_prompts(feeds)),
    "ragged": lambda feeds: list(ragged(feeds)),
    "single tokens": lambda feeds: list(ragged(feeds, max_seqs=2, chunks=[1])),
    "odd chunks": lambda feeds: list(ragged(feeds, max_seqs=5, chunks=[5, 3, 9])),
}


@functools.cache
def workshop() -> Path:
    """A folder for this test run."""
    folder = tempfile.TemporaryDirectory(prefix="autodeploy-e2e-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def names(group: str) -> list[str]:
    """Models of a test file."""
    return [m["name"] for m in DATA["models"] if m["group"] == group]


@functools.cache
def case(name: str) -> Case:
    """A tiny model of this type, compiled."""
    entry = next(m for m in DATA["models"] if m["name"] == name)
    checkpoint = _checkpoint(json.dumps(entry))
    return _compiled(name, checkpoint, checkpoint)


@functools.cache
def gguf_case(index: int) -> Case:
    """A tiny model from a GGUF file; the reference is its dequantized twin."""
    entry = DATA["gguf"][index]
    checkpoint = _checkpoint(json.dumps({"name": entry["name"], "overrides": entry["overrides"]}))
    path = write_gguf(checkpoint, workshop() / f"gguf-{index}", entry["types"], entry["pairs"])
    return _compiled(f"gguf {entry['name']}", path, path.parent / "twin")


@functools.cache
def _checkpoint(text: str) -> Path:
    from autodeploy.testing.tiny import make_tiny

    entry = json.loads(text)
    folder = tempfile.mkdtemp(prefix=f"{entry['name']}-", dir=workshop())
    return make_tiny(entry["name"], folder, overrides=entry.get("overrides"), **entry.get("checkpoint", {}))


def _compiled(name: str, checkpoint: Path, reference: Path) -> Case:
    out = workshop() / f"artifact-{name.replace(' ', '-')}"
    compile_in_child(str(checkpoint), out, revision=None, trust_remote_code=False, report=lambda text: None)
    artifact = read_artifact(out)
    prompts = random_prompts(int(artifact.program.metadata["vocab_size"]), PROMPT_LENGTHS)
    return Case(name, checkpoint, artifact, tuple(expectations(reference, prompts, NEW_TOKENS)))


def check_plan(c: Case, backend: Backend, steps: Sequence[PlannedStep]) -> None:
    """Fails with the report where a row of logits or a greedy token is wrong."""
    report = Report(c.name, str(c.artifact.path))
    run_check(report, backend.name, backend, steps, c.expected)
    assert report.ok, report.text()


def run_steps(backend: Backend, steps: Sequence[PlannedStep]) -> list[np.ndarray]:
    """Logits of every step."""
    return [backend.step(s).copy() for s in steps]


def check_greedy(c: Case) -> None:
    """All prompts together through the engine give the tokens that transformers gives for each alone.

    There are more requests than run together, in steps that hold no whole prompt, and they end at different lengths.
    """
    from autodeploy.llm import LLM, SamplingParams

    lengths = [NEW_TOKENS - i % 4 for i in range(len(c.feeds))]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in lengths]
    with LLM(c.artifact.path, max_num_seqs=3, max_batch_tokens=16, threads=1, exact=True) as llm:
        outputs = llm.generate([list(f.prompt) for f in c.feeds], params)
    for feed, count, output in zip(c.feeds, lengths, outputs, strict=True):
        assert tuple(output.outputs[0].token_ids) == feed.following[:count], f"prompt {feed.prompt}"
