"""Every op's samples, run as Programs of one instruction: by the interpreter, and by the kernels of the C++ runtime."""

from __future__ import annotations

import pytest
import torch
from ops_programs import generic_inputs, generic_program_of, program_of, run_interpreter, run_runtime

from autodeploy.ops import OPS, Batch, Sample
from autodeploy.ops.generic import GenericSample, samples
from autodeploy.testing.compare import first_difference
from autodeploy.testing.tolerances import INT8_OP_TOLERANCE, OP_TOLERANCE
from devices import DEVICES

CANONICAL = [n for n, op in OPS.items() if op.in_program]
GENERIC = sorted({s.op for s in samples()})


def check(what: str, found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float | None = None) -> None:
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        kind = "act" if b.dtype == torch.float32 else "i64" if b.dtype == torch.int64 else "bool"
        bound = OP_TOLERANCE[kind] if tolerance is None or kind != "act" else tolerance
        difference = first_difference(a.reshape(b.shape).numpy(), b.numpy(), bound)
        assert difference is None, f"{what}, result {i}: {difference}"


def steps_of(name: str, sample: Sample):
    op = OPS[name]

    def of_step(step):
        return {n: x for n, x in step.operands.items() if x is not None and not op.is_fixed(n, x)}

    return [(s.batch, of_step(s)) for s in sample.steps]


@pytest.mark.parametrize("name", CANONICAL)
def test_the_interpreter_runs_every_sample(name):
    for sample in OPS[name].samples():
        found = run_interpreter(program_of(name, sample), steps_of(name, sample))
        for i, (a, b) in enumerate(zip(found, OPS[name].expected(sample), strict=True)):
            check(f"{name} {sample.name} step {i}", a, b)


@pytest.mark.parametrize("op", GENERIC)
def test_the_interpreter_runs_every_generic_sample(op):
    for sample in of(op):
        (found,) = run_interpreter(generic_program_of(sample), [(Batch.of([1]), generic_inputs(sample))])
        check(f"{op} {sample.name}", found, sample.expected())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CANONICAL)
def test_the_runtime_runs_every_sample(name, threads, tmp_path):
    for k, sample in enumerate(OPS[name].samples()):
        made = program_of(name, sample)
        found = run_runtime(made, steps_of(name, sample), tmp_path / str(k), threads, exact=True)
        for i, (a, b) in enumerate(zip(found, OPS[name].expected(sample), strict=True)):
            check(f"{name} {sample.name} step {i}, {threads} threads", a, b)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", [n for n in CANONICAL if OPS[n].weight_operands])
def test_the_runtime_without_exactness_stays_close(name, tmp_path):
    for k, sample in enumerate(OPS[name].samples()):
        found = run_runtime(program_of(name, sample), steps_of(name, sample), tmp_path / str(k), 1, exact=False)
        for a, b in zip(found, OPS[name].expected(sample), strict=True):
            check(f"{name} {sample.name}", a, b, INT8_OP_TOLERANCE)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("op", GENERIC)
def test_the_runtime_runs_every_generic_sample(op, tmp_path):
    for k, sample in enumerate(of(op)):
        made = generic_program_of(sample)
        (found,) = run_runtime(made, [(Batch.of([1]), generic_inputs(sample))], tmp_path / str(k), 2, exact=True)
        check(f"{op} {sample.name}", found, sample.expected())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("replay", [False, True], ids=["launched", "replayed"])
@pytest.mark.parametrize("name", CANONICAL)
def test_a_device_runs_every_sample(name, replay, device, tmp_path):
    for k, sample in enumerate(OPS[name].samples()):
        made = program_of(name, sample)
        found = run_runtime(made, steps_of(name, sample), tmp_path / str(k), 1, True, device, replay)
        for i, (a, b) in enumerate(zip(found, OPS[name].expected(sample), strict=True)):
            check(f"{name} {sample.name} step {i}", a, b)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", GENERIC)
def test_a_device_runs_every_generic_sample(op, device, tmp_path):
    for k, sample in enumerate(of(op)):
        made = generic_program_of(sample)
        steps = [(Batch.of([1]), generic_inputs(sample))]
        (found,) = run_runtime(made, steps, tmp_path / str(k), 1, True, device)
        check(f"{op} {sample.name}", found, sample.expected())


def of(op: str) -> list[GenericSample]:
    return [s for s in samples() if s.op == op]
