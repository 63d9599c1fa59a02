"""`over_keys` on the runtime: hand-written bodies against the interpreter and PyTorch, on ragged schedules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_programs import StoredParam, native, step_arguments, write_folder
from over_keys_programs import CASES, BodyCase, attention_case, rows_per_token

from autodeploy.artifact import Operand, Program, Value, validate
from autodeploy.interpreter import Interpreter, body
from autodeploy.interpreter.body import key_blocks
from autodeploy.ops import Batch, schedule
from autodeploy.testing.compare import assert_close
from devices import DEVICES

# Slots and their new tokens: whole prompts, odd chunks, decodes, sequences that join, leave and reuse a slot.
STEPS: tuple[dict[int, int], ...] = (
    {2: 7},
    {2: 5, 1: 12},
    {1: 1, 2: 1, 4: 41},
    {4: 1, 1: 3},
    {1: 1, 4: 2, 2: 20},
    {4: 1, 2: 1},
    {2: 1},
)
# Further steps that replay a graph of the ones before, for other sequences and lengths.
DECODES = ({4: 1, 2: 1}, {1: 1, 4: 1}, {4: 1}, {1: 1}, {2: 1, 1: 1})
LIMITS = {"max_tokens": 48, "max_seqs": 4, "max_seq_len": 64}
CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def make_runner(program: Program, params: dict[str, torch.Tensor], folder: Path, **options: Any) -> Any:
    write_folder(folder, program, {n: StoredParam.of(x) for n, x in params.items()})
    return native().Runner(str(folder), **{**LIMITS, "num_threads": 1, "exact": True, "poison": True, **options})


def step_inputs(case: BodyCase, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
    """Token operands of a step: a function of each sequence and its positions alone."""
    parts: dict[str, list[torch.Tensor]] = {}
    for s in batch.sequences():
        tokens = case.tokens(100 * seed + s.slot, LIMITS["max_seq_len"])
        for i, given in enumerate(case.body.inputs):
            if given.role == "fixed":
                continue
            name = case.body.values[i].name
            each = rows_per_token(case.body, i) if given.role == "query" else 1
            parts.setdefault(name, []).append(tokens[name][s.past * each : (s.past + s.length) * each])
    return {name: torch.cat(x) for name, x in parts.items()}


def run(runner: Any, batch: Batch, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    found = runner.step(**step_arguments(batch), inputs={n: x.contiguous().numpy() for n, x in inputs.items()})
    return [found["outputs"][f"out{i}"] for i in range(len(found["outputs"]))]


def run_interpreter(interpreter: Interpreter, batch: Batch, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    ids = torch.zeros(batch.num_tokens, dtype=torch.int64)
    out = interpreter.step(batch, {"token_ids": ids, "positions": batch.positions(), **inputs}).outputs
    return [out[f"out{i}"] for i in range(len(out))]


@CASE
@pytest.mark.parametrize("options", [{"page_size": 16}, {"page_size": 32, "num_threads": 2, "poison": False}], ids=str)
def test_agrees_with_the_interpreter(case: BodyCase, options: dict[str, Any], tmp_path: Path) -> None:
    program, params = case.program()
    runner, interpreter = make_runner(program, params, tmp_path, **options), Interpreter(program, params)
    for i, batch in enumerate(schedule(*STEPS)):
        inputs = step_inputs(case, batch, 1)
        found, expected = run(runner, batch, inputs), run_interpreter(interpreter, batch, inputs)
        for j, (x, y) in enumerate(zip(found, expected, strict=True)):
            assert_close(x, y, 2e-5, f"{case.name} step {i} result {j}")


@CASE
def test_agrees_with_its_meaning(case: BodyCase, tmp_path: Path) -> None:
    program, params = case.program()
    runner = make_runner(program, params, tmp_path)
    whole = case.tokens(101, LIMITS["max_seq_len"])
    pieces = [run(runner, b, step_inputs(case, b, 1)) for b in schedule({1: 5}, {1: 40}, {1: 1}, {1: 1}, {1: 3})]
    length = 50
    cut = {}
    for i, given in enumerate(case.body.inputs):
        name = case.body.values[i].name
        if given.role != "fixed":
            each = rows_per_token(case.body, i) if given.role == "query" else 1
            cut[name] = whole[name][: length * each]
    for j, expected in enumerate(case.meaning(cut)):
        assert_close(np.concatenate([p[j] for p in pieces]), expected, 2e-5, f"{case.name} result {j}")


@CASE
def test_bit_equal_for_any_thread_count_and_page_size(case: BodyCase, tmp_path: Path) -> None:
    program, params = case.program()
    runners = [
        make_runner(program, params, tmp_path, num_threads=t, page_size=p, poison=False)
        for t, p in ((1, 32), (2, 32), (3, 16))
    ]
    for batch in schedule(*STEPS):
        inputs = step_inputs(case, batch, 2)
        first, *others = (run(r, batch, inputs) for r in runners)
        for other in others:
            for x, y in zip(first, other, strict=True):
                np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


@CASE
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{"page_size": 16}, {"replay": True}], ids=str)
def test_a_device_agrees_with_the_interpreter(
    case: BodyCase, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    plain, params = case.program()
    program = plain if "replay" in options else strided(case, plain)
    runner = make_runner(program, params, tmp_path, device=device, **options)
    interpreter = Interpreter(plain, params)
    for i, batch in enumerate(schedule(*STEPS, *DECODES)):
        inputs = step_inputs(case, batch, 6)
        given = inputs if program is plain else {n: widen(x) for n, x in inputs.items()}
        found, expected = run(runner, batch, given), run_interpreter(interpreter, batch, inputs)
        for j, (x, y) in enumerate(zip(found, expected, strict=True)):
            assert_close(x, y, 2e-5, f"{case.name} step {i} result {j}")


@CASE
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["bfloat16", "float16"])
def test_a_device_rounds_as_the_interpreter(case: BodyCase, act: str, device: str, tmp_path: Path) -> None:
    from test_device_mixers import ACT, to_device_type, to_float

    program, params = case.program()
    outs = [program.values[v].dtype for v in program.outputs.values()]
    if "act" not in outs:
        pytest.skip("its results are whole numbers, chosen by scores that are rounded")
    interpreter = Interpreter(program, params, ACT[act])
    runner = make_runner(program, params, tmp_path, device=device, act=act, replay=True)
    values = {name: program.values[v] for name, v in program.inputs.items()}
    for i, batch in enumerate(schedule(*STEPS, *DECODES)):
        inputs = step_inputs(case, batch, 8)
        narrow = {n: to_device_type(x.contiguous().numpy(), values[n], ACT[act]) for n, x in inputs.items()}
        found = runner.step(**step_arguments(batch), inputs=narrow)["outputs"]
        for j, expected in enumerate(run_interpreter(interpreter, batch, inputs)):
            tolerance = 4 * torch.finfo(ACT[act]).eps  # a few values within are rounded
            assert_close(to_float(found[f"out{j}"]), expected, tolerance, f"{case.name} step {i} result {j}")


@CASE
def test_blocks_of_zeros_behind_the_keys_change_nothing(case: BodyCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """What steps recorded as graphs count on: they bring as many blocks as the longest sequence may have."""
    program, params = case.program()
    results = []
    for more in (0, 1, 4):
        monkeypatch.setattr(body, "key_blocks", lambda b, length, more=more: key_blocks(b, length) + more)
        interpreter = Interpreter(program, params)
        results.append([run_interpreter(interpreter, b, step_inputs(case, b, 7)) for b in schedule(*STEPS)])
    for other in results[1:]:
        for i, (found, expected) in enumerate(zip(other, results[0], strict=True)):
            for x, y in zip(found, expected, strict=True):
                assert_close(x, y, 2e-5, f"{case.name} step {i}")


def strided(case: BodyCase, program: Program) -> Program:
    """The same program with its token operands as views of wider storage, between other columns."""
    made = Program.from_json(program.to_json())
    instruction = made.instructions[0]
    for i, given in enumerate(case.body.inputs):
        if given.role == "fixed":
            continue
        index = instruction.inputs[i].value
        value = made.values[index]
        lead, rest = value.shape[0], tuple(int(d) for d in value.shape[1:])
        width = int(np.prod(rest)) if rest else 1
        made.values[index] = Value(value.name, value.dtype, (lead, 2 * width + 3))
        inner, step = [], 2
        for d in reversed(rest):  # every other element
            inner.insert(0, step)
            step *= d
        strides = (2 * width + 3, *inner)
        instruction.inputs[i] = Operand(value=index, shape=value.shape, strides=strides, offset=3)
    validate(made)
    return made


def widen(x: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(x.shape[0], -1)
    wide = torch.zeros(x.shape[0], 2 * flat.shape[1] + 3, dtype=x.dtype)
    wide[:, 3::2] = flat
    return wide


@CASE
def test_operands_of_any_stride(case: BodyCase, tmp_path: Path) -> None:
    plain, params = case.program()
    program = strided(case, plain)
    runner, interpreter = make_runner(program, params, tmp_path), Interpreter(plain, params)
    for i, batch in enumerate(schedule(*STEPS)):
        inputs = step_inputs(case, batch, 3)
        found = run(runner, batch, {n: widen(x) for n, x in inputs.items()})
        for j, (x, y) in enumerate(zip(found, run_interpreter(interpreter, batch, inputs), strict=True)):
            assert_close(x, y, 2e-5, f"{case.name} step {i} result {j}")


def test_a_fixed_operand_may_be_a_view_or_a_value(tmp_path: Path) -> None:
    case = attention_case()
    program, params = case.program()
    # The norm's weight as every other element of a longer param, then as a value that an instruction writes.
    longer = torch.stack([params["scale"], torch.full_like(params["scale"], float("nan"))], 1).flatten()
    at = [p.name for p in program.params].index("scale")
    program.params[at] = replace(program.params[at], shape=(8,))
    view = Operand(param=at, shape=(4,), strides=(2,), offset=0)
    program.instructions[0].inputs[4] = view
    with_value = Program.from_json(program.to_json())
    with_value.values.append(Value("scale_value", "act", (4,)))
    copy = replace(with_value.instructions[0], op="copy", inputs=[view], outputs=[len(with_value.values) - 1],
                   attrs={}, states=[])  # fmt: skip
    with_value.instructions.insert(0, copy)
    with_value.instructions[1].inputs[4] = Operand(value=len(with_value.values) - 1)
    stored = {**params, "scale": longer}
    interpreter = Interpreter(case.program()[0], params)
    batch = Batch.of([9, 1, 4])
    inputs = step_inputs(case, batch, 4)
    expected = run_interpreter(interpreter, batch, inputs)
    for name, made in (("view", program), ("value", with_value)):
        validate(made)
        found = run(make_runner(made, stored, tmp_path / name), batch, inputs)
        for x, y in zip(found, expected, strict=True):
            assert_close(x, y, 2e-5, name)


@pytest.mark.parametrize("fmt", ["q8_0", "bf16"])
def test_a_weight_may_be_quantized(fmt: str, tmp_path: Path) -> None:
    from test_kernels import quantize

    case = attention_case(heads=4, dim=8)
    program, params = case.program()
    stored, meant = quantize(params["weight"], fmt)
    write_folder(tmp_path, program, {n: StoredParam.of(x) for n, x in params.items()} | {"weight": stored})
    runner = native().Runner(str(tmp_path), **LIMITS, num_threads=1, exact=True, poison=True)
    interpreter = Interpreter(program, params | {"weight": meant})
    batch = Batch.of([1, 30])
    inputs = step_inputs(case, batch, 5)
    for x, y in zip(run(runner, batch, inputs), run_interpreter(interpreter, batch, inputs), strict=True):
        assert_close(x, y, 2e-5, fmt)


def test_the_plan_shows_the_body(tmp_path: Path) -> None:
    program, params = attention_case(heads=8, dim=16).program()
    entry = make_runner(program, params, tmp_path, max_seq_len=1024, poison=False).plan()["instructions"][0]
    assert entry["kernel"] == "over_keys"
    assert entry["tile"] == 32
    assert entry["body_keys"] == 2 * 8 * 16 * 1024 * 4
    assert entry["workspace"] >= entry["body_arena"] + entry["body_keys"]
    assert [i["op"] for i in entry["body"]] == [i.op for i in program.bodies[0].instructions]
    assert all(i["kernel"] for i in entry["body"])
    # A longer sequence takes smaller tiles, so that the body's values stay small.
    limits = {"max_tokens": 32, "max_seqs": 1, "poison": False}
    entry = make_runner(program, params, tmp_path, max_seq_len=1 << 15, **limits).plan()["instructions"][0]
    assert 1 < entry["tile"] < 32
    assert entry["body_arena"] <= 32 << 20
    entry = make_runner(program, params, tmp_path, max_seq_len=1 << 18, **limits).plan()["instructions"][0]
    assert entry["tile"] == 1
