"""The checks of one compiled tiny model: which tokens run in which steps, and what the reference says of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from autodeploy.artifact import Artifact
from autodeploy.interpreter import Interpreter
from autodeploy.testing.tolerances import LOGITS_TOLERANCE, TIE_TOLERANCE
from autodeploy.verify.backends import RuntimeBackend, limits_of
from autodeploy.verify.bisect import find_culprit
from autodeploy.verify.checks import InterpreterBackend, run_check
from autodeploy.verify.judge import gap_of
from autodeploy.verify.params import load_params
from autodeploy.verify.reference import Expected, expect
from autodeploy.verify.report import Check, Report, Wrong
from autodeploy.verify.schedule import Feed, PlannedStep, ragged, whole_prompts

from .doubts import Doubts, rounding
from .judged import Judged
from .selections import first_tie

NEW_TOKENS = 48
# Prompts of the ragged batches; a longer one is only prefilled. One token, and lengths around windows and chunks.
LENGTHS = (1, 7, 16, 33, 2)
LONG = 100
# Ids below this one are likely to be special: padding, ends, places of images.
_FIRST_ID = 8
_ODD = (5, 3, 9, 1, 13)
_SEQUENCES = 3

NAMES = {
    "a": "prefill logits of whole prompts",
    "b": "greedy tokens of a ragged batch",
    "c": "prefill in odd chunks",
    "d": "requests join and leave",
    "e": "the engine: scheduler, pages and sampler",
}


def prompts(vocab_size: int, longest: int | None, seed: int) -> list[tuple[list[int], int]]:
    """Prompts of random ids with the number of tokens to generate; all fit into `longest` positions."""
    source = random.Random(seed)
    room = longest or 1 << 30
    wanted = [(n, NEW_TOKENS) for n in LENGTHS] + [(LONG, 1)]
    low = _FIRST_ID if vocab_size > 2 * _FIRST_ID else 0
    made = []
    for length, new in wanted:
        new = min(new, room - 1)
        made.append(([source.randrange(low, vocab_size) for _ in range(max(1, min(length, room - new)))], new))
    return made


def expectations(
    model: torch.nn.Module, asked: Sequence[tuple[list[int], int]], trusted: str
) -> tuple[list[Expected], list[str]]:
    """What transformers says about each prompt alone, and what is wrong with that.

    Its generation with a cache must agree, up to rounding, with its own pass over whole sequences, which is what is
    judged by. Where a tie within the model's selections parts them, both are right, and generation without a cache is
    taken.
    """
    expected, wrong = [], []
    for prompt, new in asked:
        e = expect(model, prompt, new, trusted)
        if trusted == "generate" and e.drift > LOGITS_TOLERANCE and e.drift > rounding(model, e):
            tie = first_tie(model, e.feed.tokens)
            if tie is None:
                wrong.append(f"a prompt of {len(prompt)} tokens: {e.drift:.2g}")
            else:
                e = expect(model, prompt, new, "whole")
        expected.append(e)
    return expected, wrong


def plans(feeds: Sequence[Feed]) -> dict[str, list[PlannedStep]]:
    """The steps of each check that the runtime is stepped through."""
    several = len(feeds)
    return {
        "a": list(whole_prompts(feeds)),
        "b": list(ragged(feeds, several, [1 << 30], stagger=0)),
        "c": list(ragged(feeds, several, _ODD, stagger=0)),
        "d": list(ragged(feeds, _SEQUENCES, [4, *_ODD])),
    }


def judge_steps(artifact: Artifact, doubts: Doubts) -> tuple[dict[str, Judged], list[str]]:
    """Checks a to d on the runtime, and where one fails, what is to blame.

    Logits of a must be within the tolerance; in the others tokens count.
    """
    expected = doubts.expected
    steps = plans([e.feed for e in expected])
    limits = limits_of([s for planned in steps.values() for s in planned])
    report = Report("", str(artifact.path))
    judged = {}
    for letter, planned in steps.items():
        check = run_check(report, NAMES[letter], RuntimeBackend(artifact.path, limits), planned, expected)
        judged[letter] = doubts.judge(check, tokens_only=letter != "a")
    bad = next((letter for letter, j in judged.items() if not j.ok), None)
    return judged, [] if bad is None else _blame(artifact, expected, steps[bad], limits)


def _blame(
    artifact: Artifact, expected: Sequence[Expected], steps: Sequence[PlannedStep], limits: dict[str, int]
) -> list[str]:
    """Whether the program is wrong or the runtime, and by which instruction."""
    interpreter = Interpreter(artifact.program, load_params(artifact))
    check = run_check(Report("", ""), "interpreter", InterpreterBackend(interpreter), steps, expected)
    culprit = find_culprit(interpreter, RuntimeBackend(artifact.path, limits), steps)
    lines = [f"the interpreter is {'right' if check.ok else 'wrong too: ' + check.wrong[0].what}"]
    if culprit is not None:
        lines += culprit.text().splitlines()
    return lines


def judge_engine(artifact: Artifact, doubts: Doubts) -> Judged:
    """Check e: the tokens that the engine makes by itself. Behind a tie it is not followed."""
    expected = doubts.expected
    feeds = [e.feed for e in expected]
    made = engine_tokens(artifact.path, feeds)
    check = compare_tokens(made, feeds, lambda request, position: gap_of(expected[request].logits[position]))
    return doubts.judge(check, tokens_only=True)


def engine_tokens(artifact: Path, feeds: Sequence[Feed], device: str = "cpu") -> list[list[int]]:
    """Greedy tokens of the engine in float32, for all prompts together."""
    from autodeploy.llm import LLM, SamplingParams

    longest = max(len(feed.prompt) + len(feed.following) for feed in feeds)
    params = [
        SamplingParams(temperature=0, max_tokens=len(feed.following), ignore_eos=True, repetition_penalty=1.0)
        for feed in feeds
    ]
    with LLM(
        artifact,
        max_seq_len=longest,
        max_num_seqs=_SEQUENCES,
        max_batch_tokens=16,
        cache_memory="64MiB",
        threads=1,
        device=device,
        dtype="float32",
        exact=True,
        progress=False,
    ) as llm:
        made = llm.generate([list(feed.prompt) for feed in feeds], params, progress=False)
    return [[int(t) for t in output.outputs[0].token_ids] for output in made]


def compare_tokens(made: Sequence[Sequence[int]], feeds: Sequence[Feed], gap: Callable[[int, int], float]) -> Check:
    """The engine's tokens with the reference's; `gap` is told request and position, and is as in `judge_token`."""
    check = Check(NAMES["e"], tolerance=LOGITS_TOLERANCE)
    for request, (tokens, feed) in enumerate(zip(made, feeds, strict=True)):
        check.rows += len(tokens)
        check.tokens += len(tokens)
        if len(tokens) != len(feed.following):
            check.wrong.append(Wrong(request, 0, f"expected {len(feed.following)} tokens, found {len(tokens)}"))
        for place, (token, right) in enumerate(zip(tokens, feed.following, strict=False)):
            if token != right:
                position = len(feed.prompt) - 1 + place
                if gap(request, position) <= TIE_TOLERANCE:
                    check.ties += 1
                else:
                    check.wrong.append(Wrong(request, position, f"expected token {right}, found {token}"))
                break
    return check
