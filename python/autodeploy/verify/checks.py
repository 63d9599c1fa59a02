"""verify: an artifact against transformers, and the runtime against the interpreter."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Sequence
from pathlib import Path

from autodeploy._load_native import load_native
from autodeploy.artifact import Artifact, read_artifact
from autodeploy.interpreter import Interpreter
from autodeploy.testing.tolerances import INT8_LOGITS_TOLERANCE, INT8_OP_TOLERANCE, LOGITS_TOLERANCE

from .backends import Backend, InterpreterBackend, RuntimeBackend, limits_of
from .bisect import find_culprit
from .judge import judge
from .params import load_params
from .reference import Expected, expect, load_reference
from .report import Check, Report
from .schedule import PlannedStep, ragged, whole_prompts

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8,",
    "Once upon a time, in a village at the foot of a mountain, there lived",
)


def verify(
    model: str | os.PathLike[str],
    prompts: Sequence[str | Sequence[int]] | None = None,
    *,
    max_new_tokens: int = 16,
    num_threads: int = 1,
    exact: bool = True,
    reference: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    plugins: Sequence[str] = (),
) -> Report:
    """Compares what an artifact computes with transformers in float32, and the C++ runtime with the interpreter.

    The checks: logits of whole prompts (all tokens), and logits and greedy tokens of ragged batches, whose requests
    join and leave and prefill in odd chunks, each by the interpreter and by the runtime. A different token is wrong
    where the reference's two best logits are further apart than 1e-4 of the largest; a nearer tie is followed and
    counted. Where the runtime is wrong, the first instruction that differs from its reference is named.

    Args:
        model: a checkpoint folder, a .gguf file, or an artifact whose checkpoint is still there.
        prompts: texts, or lists of token ids; by default a few short texts, or random ids where there is no tokenizer.
        max_new_tokens: greedy tokens per prompt, at least 1.
        exact: multiply quantized weights with float32 activations (as the reference does); otherwise with the 8-bit
            ones of the fast paths, whose errors are judged by wider bounds.
        plugins: libraries with kernels for operators of the model's author.
        reference: the checkpoint that transformers loads instead of the artifact's own.

    Raises:
        ValueError: no checkpoint to compare with, or an empty or too long prompt.
    """
    from autodeploy.llm.model_source import prepare_artifact

    load_native()  # what is missing is said before transformers has worked for a minute
    if max_new_tokens < 1:
        raise ValueError(f"[verify] expected max_new_tokens >= 1, found {max_new_tokens}")
    artifact = read_artifact(prepare_artifact(model, trust_remote_code=trust_remote_code, plugins=plugins))
    checkpoint = checkpoint_of(artifact) if reference is None else _existing(Path(reference).expanduser())
    ids = prompt_ids(artifact, prompts, max_new_tokens)
    trusted = trusted_way(artifact)
    expected = expectations(checkpoint, ids, max_new_tokens, artifact.provenance.remote_code, trusted)
    report = Report(str(model), str(artifact.path))
    drift = max(e.drift for e in expected)
    if drift > LOGITS_TOLERANCE and trusted == "generate":
        report.notes.append(f"transformers' logits with its cache differ from those without by {drift:.2g}")
    return verify_artifact(artifact, expected, report, num_threads=num_threads, exact=exact, plugins=plugins)


def verify_artifact(
    artifact: Artifact,
    expected: Sequence[Expected],
    report: Report,
    *,
    num_threads: int = 1,
    exact: bool = True,
    plugins: Sequence[str] = (),
) -> Report:
    """The checks of `verify` for prompts whose reference is known already; adds to `report` and returns it."""
    prefix = tuple(artifact.program.metadata.get("prefix_tokens", ()))
    feeds = [dataclasses.replace(e.feed, prefix=prefix) for e in expected]
    plans = {"whole prompts": list(whole_prompts(feeds)), "ragged batches": list(ragged(feeds))}
    limits = limits_of([s for steps in plans.values() for s in steps])
    interpreter = Interpreter(artifact.program, load_params(artifact))
    for what, steps in plans.items():
        interpreter.reset()
        run_check(report, f"{what}, interpreter", InterpreterBackend(interpreter), steps, expected)
    for what, steps in plans.items():
        runtime = RuntimeBackend(artifact.path, limits, num_threads, exact, plugins=plugins)
        tolerance = LOGITS_TOLERANCE if exact else INT8_LOGITS_TOLERANCE
        check = run_check(report, f"{what}, {runtime.name}", runtime, steps, expected, tolerance)
        if not check.ok and report.culprit is None:
            fresh = RuntimeBackend(artifact.path, limits, num_threads, exact, plugins=plugins)
            report.culprit = find_culprit(interpreter, fresh, steps, None if exact else INT8_OP_TOLERANCE)
            if report.culprit is None:
                blame = "their errors add up" if report.checks[0].ok else "the compiled program itself is wrong"
                report.notes.append(f"{what}: every instruction agrees with its reference; {blame}")
    return report


def run_check(
    report: Report,
    name: str,
    backend: Backend,
    steps: Sequence[PlannedStep],
    expected: Sequence[Expected],
    tolerance: float = LOGITS_TOLERANCE,
) -> Check:
    """Runs all steps on a backend and judges every wanted row; the check is added to the report."""
    check = Check(name, tolerance=tolerance)
    report.checks.append(check)
    for planned in steps:
        logits = backend.step(planned)
        for row, (request, position) in zip(logits, planned.wanted, strict=True):
            feed = expected[request].feed
            place = position - (len(feed.prompt) - 1)
            token = feed.following[place] if place >= 0 else None
            judge(check, request, position, row, expected[request].logits[position], place >= 0, token)
    return check


def expectations(
    checkpoint: Path,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    trust_remote_code: bool = False,
    trusted: str = "generate",
) -> list[Expected]:
    """What transformers says about each prompt alone."""
    model = load_reference(checkpoint, trust_remote_code)
    return [expect(model, list(prompt), max_new_tokens, trusted) for prompt in prompts]


def trusted_way(artifact: Artifact) -> str:
    """The way of transformers that counts (see `expect`).

    Where a program asks how long a sequence was when a token was computed, that is generation with the cache: one pass
    over the whole sequence computes its first tokens as if all of it had been known.
    """
    asks = any(i.op == "known_length" for i in artifact.program.instructions)
    return "cache" if asks else "generate"


def checkpoint_of(artifact: Artifact) -> Path:
    """The checkpoint that an artifact was compiled from, where it still is.

    Its weight program names the files; that of a packed artifact does not, but its provenance says what the user named.
    """
    files = [Path(s["path"]) for s in artifact.weights["sources"] if Path(s["path"]).is_absolute()]
    found = files[0] if files else Path(artifact.provenance.source).expanduser()
    if files and found.suffix != ".gguf":
        found = found.parent
    if not found.exists():
        raise ValueError(f"[verify] expected the checkpoint {found} of {artifact.path}; give one with `reference`")
    return found


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"[verify] expected a checkpoint at {path}, found nothing; give another with `reference`")
    return path


def prompt_ids(
    artifact: Artifact, prompts: Sequence[str | Sequence[int]] | None, max_new_tokens: int
) -> list[list[int]]:
    """Prompts as token ids, checked against the model's limits."""
    tokenizer = artifact.path / "tokenizer.json"
    vocab, longest = artifact.program.metadata.get("vocab_size"), artifact.program.metadata.get("max_positions")
    if prompts is None:
        prompts = PROMPTS if tokenizer.is_file() else random_prompts(int(vocab or 2))
    result = []
    for prompt in prompts:
        if isinstance(prompt, str):
            if not tokenizer.is_file():
                raise ValueError(f"[verify] expected token ids: {artifact.path} has no tokenizer.json")
            result.append(_encode(tokenizer, prompt))
        else:
            result.append([int(t) for t in prompt])
        ids = result[-1]
        if not ids or (vocab and not all(0 <= t < vocab for t in ids)):
            raise ValueError(f"[verify] expected a prompt of token ids below {vocab}, found {ids[:8]}")
        if longest and len(ids) + max_new_tokens > longest - len(artifact.program.metadata.get("prefix_tokens", ())):
            found = f"{len(ids)} and {max_new_tokens} new ones"
            raise ValueError(f"[verify] expected at most {longest} tokens in a sequence, found {found}")
    if not result:
        raise ValueError("[verify] expected at least one prompt")
    return result


def random_prompts(vocab_size: int, lengths: Sequence[int] = (1, 7, 16, 33, 2), seed: int = 0) -> list[list[int]]:
    """Prompts of these lengths, a function of the arguments alone."""
    source = random.Random(seed)
    return [[source.randrange(vocab_size) for _ in range(n)] for n in lengths]


def _encode(tokenizer: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer)).encode(text).ids
