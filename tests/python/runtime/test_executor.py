"""The golden artifact, and damaged copies of it, on the runtime: against the interpreter, threads and taps."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_programs import native, step_arguments

from autodeploy.artifact import read_artifact
from autodeploy.interpreter import Interpreter
from autodeploy.ops import Batch, schedule
from autodeploy.testing.compare import assert_close
from autodeploy.verify.params import load_params

LIMITS = {"max_tokens": 24, "max_seqs": 4, "max_seq_len": 48}
# Slots and their new tokens: prefill in odd chunks, decodes, sequences that join, leave and reuse a slot.
STEPS: tuple[dict[int, int], ...] = (
    {2: 7},
    {2: 5, 1: 12},
    {1: 1, 2: 1, 4: 9},
    {4: 1, 1: 3},
    {1: 1, 4: 2, 2: 20},
    {4: 1, 2: 1},
    {2: 1},
)


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Path:
    return data_dir / "golden" / "tiny"


def arguments(batch: Batch, seed: int) -> dict[str, Any]:
    """Step arguments with random token ids, the same for the same seed."""
    ids = random.Random(seed).choices(range(40), k=batch.num_tokens)
    return step_arguments(batch) | {"token_ids": np.array(ids, np.int64)}


def with_rows(batch: Batch, which: str) -> Batch:
    """The batch with logits of all tokens, of each sequence's last one, or of none wanted."""
    last = tuple(end - 1 for end in batch.query_start[1:])
    rows = {"all": batch.rows, "last": last, "none": ()}[which]
    return Batch(batch.query_start, batch.kv_len, batch.slots, batch.has_state, rows)


@pytest.mark.parametrize("page_size", [16, 32])
@pytest.mark.parametrize("poison", [False, True])
def test_agrees_with_the_interpreter(golden: Path, poison: bool, page_size: int) -> None:
    artifact = read_artifact(golden)
    interpreter = Interpreter(artifact.program, load_params(artifact))
    runner = native().Runner(str(golden), **LIMITS, num_threads=2, exact=True, poison=poison, page_size=page_size)
    for i, batch in enumerate(schedule(*STEPS)):
        batch = with_rows(batch, ("all", "last", "none")[i % 3])
        step = arguments(batch, i)
        inputs = {n: torch.from_numpy(step[n]) for n in ("token_ids", "positions")}
        expected = interpreter.step(batch, inputs, taps=None)
        found = runner.step(**step, taps=list(range(len(artifact.program.values))))
        for v, tensor in found["taps"].items():
            name = artifact.program.values[v].name
            assert_close(tensor, expected.values[v], 2e-5, f"step {i} value {v} ({name})")
        assert set(found["taps"]) >= set(range(2, 19))
        assert_close(found["logits"], expected.outputs["logits"], 2e-5, f"step {i} logits")


@pytest.mark.parametrize("exact", [True, False])
def test_bit_equal_for_any_thread_count_and_page_size(golden: Path, exact: bool) -> None:
    runners = [
        native().Runner(str(golden), **LIMITS, num_threads=t, exact=exact, page_size=p)
        for t, p in ((1, 32), (2, 32), (5, 32))
    ]
    for i, batch in enumerate(schedule(*STEPS)):
        found = [r.step(**arguments(batch, i))["logits"] for r in runners]
        for other in found[1:]:
            np.testing.assert_array_equal(found[0].view(np.int32), other.view(np.int32))


def test_a_sequence_alone_equals_itself_in_company(golden: Path) -> None:
    alone, joined = (native().Runner(str(golden), **LIMITS, num_threads=1, exact=True) for _ in range(2))
    ids = {1: list(range(11)), 2: list(range(20, 27))}
    whole = {}
    for slot, tokens in ids.items():
        batch = Batch.of([len(tokens)], slots=[slot])
        whole[slot] = alone.step(**step_arguments(batch) | {"token_ids": np.array(tokens)})["logits"]
    parts: dict[int, list[np.ndarray]] = {1: [], 2: []}
    for batch in schedule({1: 4}, {1: 1, 2: 5}, {2: 2, 1: 6}):
        tokens = [t for s in batch.sequences() for t in ids[s.slot][s.past : s.past + s.length]]
        logits = joined.step(**step_arguments(batch) | {"token_ids": np.array(tokens)})["logits"]
        for s in batch.sequences():
            parts[s.slot].append(logits[s.start : s.stop])
    for slot in ids:
        assert_close(np.concatenate(parts[slot]), whole[slot], 1e-5, f"sequence {slot}")


def test_plan_counts_every_byte(golden: Path) -> None:
    plan = native().Runner(str(golden), **LIMITS, num_threads=1).plan()
    assert plan["limits"]["max_tokens"] == 24
    assert plan["memory"]["weights"] == sum(w["bytes"] for w in plan["weights"])
    assert plan["memory"]["arena"] >= plan["memory"]["arena_lower_bound"] > 0
    assert plan["states"][0]["bytes_per_token"] == 2 * 16 * 4
    assert [i["instruction"] for i in plan["instructions"]] == list(range(16))
    for value in plan["values"]:
        assert value["offset"] + value["bytes"] <= plan["memory"]["arena"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [40]}, "token ids below vocab_size"),
        ({"token_ids": []}, "1 to max_tokens token ids"),
        ({"positions": [0, 1]}, "a position for each token"),
        ({"query_start": [0, 2]}, "query_start from 0"),
        ({"kv_len": [0]}, "kv_len from the tokens"),
        ({"kv_len": [49]}, "kv_len from the tokens"),
        ({"slot": [4]}, "different slots below max_seqs"),
        ({"slot": [-1]}, "different slots below max_seqs"),
        ({"rows": [1]}, "ascending rows"),
        ({"rows": [0, 0]}, "ascending rows"),
        ({"taps": [99]}, "taps below 21"),
        ({"inputs": {"nothing": np.zeros(1)}}, "found 'nothing'"),
    ],
)
def test_a_bad_step_is_an_error_and_the_next_one_runs(golden: Path, change: dict[str, Any], message: str) -> None:
    runner = native().Runner(str(golden), **LIMITS, num_threads=1)
    good = step_arguments(Batch.of([1]))
    with pytest.raises(ValueError, match=message):
        runner.step(**good | change)
    assert np.isfinite(runner.step(**good)["logits"]).all()


def test_a_damaged_program_is_an_error(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(golden, folder)
    program = json.loads((folder / "program.json").read_text())
    program["instructions"][3]["in"][1]["p"] = 2  # a matrix of another shape
    (folder / "program.json").write_text(json.dumps(program))
    where = r"\[program.json: instruction 3 \(linear\), tiny.py:20 Attention.forward\] \[linear\] expected"
    with pytest.raises(ValueError, match=where):
        native().Runner(str(folder), **LIMITS)
    (folder / "program.json").unlink()
    with pytest.raises(OSError, match=r"program.json"):
        native().Runner(str(folder), **LIMITS)


def test_impossible_limits_are_errors(golden: Path) -> None:
    for change in ({"max_tokens": 0}, {"max_seqs": 0}, {"max_seq_len": -1}, {"num_threads": -2}):
        with pytest.raises(ValueError, match="expected"):
            native().Runner(str(golden), **LIMITS | {"num_threads": 1} | change)
