"""The parts of verify: schedules, the judgement of a row, comparison, and finding the wrong instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowering_graphs import model_of, small_model, small_params

from autodeploy.interpreter import Interpreter
from autodeploy.lowering import lower
from autodeploy.testing.compare import assert_close, first_difference, relative_error
from autodeploy.verify import Check, Report
from autodeploy.verify.backends import InterpreterBackend, limits_of, step_inputs
from autodeploy.verify.bisect import find_culprit
from autodeploy.verify.checks import random_prompts, run_check
from autodeploy.verify.judge import judge
from autodeploy.verify.reference import Expected
from autodeploy.verify.schedule import Feed, PlannedStep, ragged, whole_prompts

PARAMS = small_params()


def feeds_of(lengths: Sequence[int], new: int) -> list[Feed]:
    return [Feed(tuple(p), tuple(range(new))) for p in random_prompts(32, lengths)]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    new=st.integers(1, 5),
    max_seqs=st.integers(1, 4),
    chunks=st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_schedules_feed_every_token_once_in_order(
    lengths: list[int], new: int, max_seqs: int, chunks: list[int]
) -> None:
    feeds = feeds_of(lengths, new)
    fed: dict[int, list[int]] = {i: [] for i in range(len(feeds))}
    owner: dict[int, int] = {}
    predicted: dict[int, list[int]] = {i: [] for i in range(len(feeds))}
    for planned in ragged(feeds, max_seqs, chunks):
        batch = planned.batch
        assert batch.num_seqs <= max_seqs
        assert len(planned.token_ids) == batch.num_tokens == len(planned.positions)
        sizes = [s.length for s in batch.sequences()]
        assert sorted(sizes, key=lambda n: n > 1) == sizes or 1 in sizes
        for seq in batch.sequences():
            tokens = list(planned.token_ids[seq.start : seq.stop])
            assert list(planned.positions[seq.start : seq.stop]) == list(range(seq.past, seq.past + seq.length))
            if not seq.has_state:
                fits = (i for i, f in enumerate(feeds) if not fed[i] and f.tokens[: len(tokens)] == tuple(tokens))
                owner[seq.slot] = next(fits)
            fed[owner[seq.slot]] += tokens
        for request, position in planned.wanted:
            predicted[request].append(position)
    for i, feed in enumerate(feeds):
        assert fed[i] == list(feed.tokens)
        assert predicted[i] == list(range(len(feed.prompt) - 1, len(feed.tokens)))


def test_ragged_batches_mix_decodes_and_prefill_and_reuse_slots() -> None:
    steps = list(ragged(feeds_of([7, 1, 16, 33, 2], 6)))
    kinds = {(any(n == 1 for n in sizes), any(n > 1 for n in sizes)) for sizes in _sizes(steps)}
    assert kinds == {(True, True), (True, False), (False, True)}
    assert max(s.batch.num_seqs for s in steps) == 3
    assert {slot for s in steps for slot in s.batch.slots} == {1, 2, 3}
    assert limits_of(steps)["max_seqs"] == 3


def _sizes(steps: Sequence[PlannedStep]) -> list[list[int]]:
    return [[s.length for s in step.batch.sequences()] for step in steps]


def row(**logits: float) -> np.ndarray:
    made = np.zeros(8, np.float32)
    for name, value in logits.items():
        made[int(name[1:])] = value
    return made


def test_a_different_token_is_wrong_only_beyond_a_tie() -> None:
    check = Check("c", tolerance=1e-4)
    judge(check, 0, 3, row(t2=1.0, t5=0.5), row(t2=1.0, t5=0.5), predicts=True)
    assert (check.rows, check.tokens, check.ties, check.wrong) == (1, 1, 0, [])
    judge(check, 0, 4, row(t2=0.99998, t5=1.0), row(t2=1.0, t5=0.99995), predicts=True)
    assert (check.tokens, check.ties, check.wrong) == (2, 1, [])
    judge(check, 0, 5, row(t2=0.99991, t5=0.99995), row(t2=1.0, t5=0.9998), predicts=True)
    assert [w.position for w in check.wrong] == [5, 5] or "expected token 2, found 5" in check.wrong[-1].what
    assert not check.ok


def test_far_logits_are_wrong_and_named() -> None:
    check = Check("c", tolerance=1e-4)
    judge(check, 1, 7, row(t2=1.0, t6=-0.25), row(t2=1.0, t6=0.25), predicts=False)
    assert "most that of token 6: expected 0.25, found -0.25" in check.wrong[0].what
    judge(check, 1, 8, row(t2=float("nan")), row(t2=1.0), predicts=False)
    assert "inf" in check.wrong[1].what
    assert "request 1 token 7" in check.text()


def test_a_check_of_nothing_is_not_ok() -> None:
    assert not Check("c").ok
    assert not Report("m", "a").ok
    assert Report("m", "a").exit_status == 1


def test_comparison_names_the_first_wrong_element() -> None:
    expected = np.array([[1.0, 2.0], [np.inf, 4.0]])
    found = expected.copy()
    assert first_difference(found, expected, 0.0) is None
    found[1, 1] += 0.1
    difference = first_difference(found, expected, 1e-3)
    assert difference is not None
    assert difference.coordinate == (1, 1)
    assert (difference.wrong, difference.total) == (1, 4)
    assert relative_error(found, expected) == pytest.approx(0.025)
    found[1, 0] = -np.inf
    assert relative_error(found, expected) == np.inf
    with pytest.raises(AssertionError, match=r"logits: first wrong at \[1, 0\]: expected inf, found -inf"):
        assert_close(found, expected, 1e-3, "logits")
    with pytest.raises(ValueError, match="expected shape"):
        first_difference(found[0], expected, 0.0)


@pytest.fixture(scope="module")
def program():
    return lower(model_of(small_model, PARAMS, act=True))


def expectations(new: int = 4) -> list[Expected]:
    """The small model run eagerly, each prompt alone and without any cache."""
    result = []
    for prompt in random_prompts(32):
        tokens = list(prompt)
        for _ in range(new):
            logits = small_model(torch.tensor(tokens), torch.arange(len(tokens)), *PARAMS.values())
            tokens.append(int(logits[-1].argmax()))
        result.append(Expected(Feed(tuple(prompt), tuple(tokens[len(prompt) :])), logits.numpy()))
    return result


def test_the_interpreter_agrees_on_ragged_batches(program) -> None:
    expected = expectations()
    feeds = [e.feed for e in expected]
    report = Report("small", "")
    for steps in (whole_prompts(feeds), ragged(feeds)):
        backend = InterpreterBackend(Interpreter(program, PARAMS))
        run_check(report, "interpreter", backend, list(steps), expected)
    assert report.ok, report.text()
    assert report.checks[0].rows == sum(len(f.prompt) for f in feeds)
    assert report.checks[1].tokens == sum(len(f.following) for f in feeds)
    assert report.to_json()["ok"] is True
    assert report.exit_status == 0


class FaultyRuntime:
    """An interpreter that computes one instruction wrongly, and carries that on as a runtime would."""

    def __init__(self, program, instruction: int | None, from_step: int = 0) -> None:
        self.interpreter = Interpreter(program, PARAMS)
        self.instruction, self.from_step, self.count = instruction, from_step, 0

    def tapped(self, planned: PlannedStep, values: Sequence[int]) -> Mapping[int, np.ndarray]:
        observed: dict[int, torch.Tensor] = {}
        for made in self.interpreter.replay(planned.batch, step_inputs(planned), observed):
            result = made.result
            if made.index == self.instruction and self.count >= self.from_step and result.numel():
                result = result.clone()
                result.view(-1)[-1] += 0.01 * result.abs().max() + 0.01
            observed[made.value] = result
        self.count += 1
        return {i: t.numpy() for i, t in observed.items()}

    def kernel(self, instruction: int) -> str:
        return "broken.cpu"


def test_a_sound_runtime_has_no_culprit(program) -> None:
    steps = list(ragged(feeds_of([5, 3], 2)))
    assert find_culprit(Interpreter(program, PARAMS), FaultyRuntime(program, None), steps) is None


@pytest.mark.parametrize(("op", "from_step"), [("linear", 2), ("attention", 2), ("region", 0), ("add_rms_norm", 1)])
def test_the_first_wrong_instruction_is_named(program, op: str, from_step: int) -> None:
    index = [i for i, ins in enumerate(program.instructions) if ins.op == op][-1]
    steps = list(ragged(feeds_of([5, 3, 9], 3)))
    runtime = FaultyRuntime(program, index, from_step)
    culprit = find_culprit(Interpreter(program, PARAMS), runtime, steps)
    assert culprit is not None
    assert (culprit.step, culprit.instruction, culprit.op) == (from_step, index, op)
    assert culprit.source.startswith("model.py:")
    text = culprit.text()
    assert "broken.cpu" in text
    assert "first wrong at [" in text
