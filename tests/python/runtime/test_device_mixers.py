"""Token mixers on a device: every sample in every activation type, mixed types, joined operands, replayed steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_programs import native, step_arguments, write_folder
from test_kernels import SAMPLES, joined_widths, make_case, step_inputs

from autodeploy.artifact.program import Param, Program, Value
from autodeploy.ops import OPS, Batch, Op, Sample, schedule
from autodeploy.ops.base import Step, random
from autodeploy.testing.compare import assert_close
from autodeploy.testing.tolerances import OP_TOLERANCE
from devices import DEVICES


def has_state(op: Op, sample: Sample) -> bool:
    operands = [sample.steps[0].operands.get(n) for n in op.operands]
    return bool(op.state_decl(*op.bind([*operands, *(sample.attrs[a] for a in op.attributes)]).values()))


MIXERS = [p for p in SAMPLES if p.values[0].mixes_tokens and has_state(*p.values)]
ACT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest relative error of rounding to the type, and the spacing of its smallest numbers.
ROUNDING = {"float32": (2.0**-24, 0.0), "bfloat16": (2.0**-8, 0.0), "float16": (2.0**-11, 2.0**-25)}


def is_act(name: str, mixed: bool) -> bool:
    """Mixed programs have every other value and param, by its name, in float32."""
    return not mixed or sum(map(ord, name)) % 2 == 0


def bind_act(program: Program, mixed: bool) -> None:
    program.values = [
        replace(v, dtype="act") if v.dtype == "f32" and is_act(v.name, mixed) else v for v in program.values
    ]
    program.params = [
        replace(p, dtype="act") if p.dtype == "f32" and is_act(p.name, mixed) else p for p in program.params
    ]
    for i, state in enumerate(program.states):
        if state.kind == "conv":  # it holds operands as they came
            parts = tuple(replace(c, dtype="act") if c.dtype == "f32" else c for c in state.components)
            program.states[i] = replace(state, components=parts)


def rounded(sample: Sample, act: torch.dtype) -> Sample:
    """The sample with operands that the type holds exactly."""
    steps = []
    for step in sample.steps:
        operands = {
            n: x.to(act).float() if x is not None and x.is_floating_point() else x for n, x in step.operands.items()
        }
        steps.append(Step(step.batch, operands))
    return replace(sample, steps=tuple(steps))


def to_device_type(x: np.ndarray, value: Value | Param, act: torch.dtype) -> np.ndarray:
    if value.dtype != "act" or act == torch.float32:
        return x
    narrow = torch.from_numpy(x).to(act)
    return narrow.numpy() if act == torch.float16 else narrow.view(torch.int16).numpy().view(np.uint16)


def to_float(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).float().numpy()
    return x.astype(np.float32) if x.dtype == np.float16 else x


def check_on_device(
    op: Op, sample: Sample, folder: Path, device: str, act: str, *, mixed: bool = False, joined: bool = False,
    replay: bool = False,
) -> None:  # fmt: skip
    sample = rounded(sample, ACT[act])
    case = make_case(op, sample, {}, joined)
    program = case.finish()
    bind_act(program, mixed)
    write_folder(folder, program, case.params)
    batches = [s.batch for s in sample.steps]
    runner = native().Runner(
        str(folder),
        max_tokens=max(b.num_tokens for b in batches),
        max_seqs=max(max(b.slots) for b in batches),
        max_seq_len=max(max(b.kv_len) for b in batches),
        num_threads=1,
        poison=True,
        page_size=8,
        device=device,
        act=act,
        replay=replay,
    )
    kernel = runner.plan()["instructions"][0]["kernel"]
    values = {name: program.values[v] for name, v in program.inputs.items()}
    outs = {name: program.values[v] for name, v in program.outputs.items()}
    widths = joined_widths(op, sample) if joined else {}
    for i, (step, results) in enumerate(zip(sample.steps, op.expected(sample), strict=True)):
        inputs = step_inputs(op, step.operands, widths)
        inputs = {n: to_device_type(x, values[n], ACT[act]) for n, x in inputs.items()}
        found = runner.step(**step_arguments(step.batch), inputs=inputs)["outputs"]
        for j, expected in enumerate(results):
            what = f"{op.name} {sample.name} step {i} result {j} by {kernel}"
            x, y = to_float(found[f"out{j}"]), expected.numpy()
            if not expected.is_floating_point():
                np.testing.assert_array_equal(x, y, what)
                continue
            relative, smallest = ROUNDING[act if outs[f"out{j}"].dtype == "act" else "float32"]
            bound = relative * np.abs(y) + smallest + OP_TOLERANCE["f32"] * np.abs(y).max(initial=0.0)
            worst = np.abs(x - y) - bound
            assert not np.isnan(x).any(), f"{what}: NaN at {np.argwhere(np.isnan(x))[0]}"
            at = np.unravel_index(worst.argmax(), worst.shape)
            assert worst.max() <= 0, f"{what}: at {at} expected {y[at]}, found {x[at]}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("op", "sample"), MIXERS)
def test_sample(op: Op, sample: Sample, act: str, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, act)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "sample"), [p for p in MIXERS if p.values[0].name != "window"])  # which moves one type
def test_operands_of_different_types(op: Op, sample: Sample, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, "bfloat16", mixed=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["float32", "float16"])
@pytest.mark.parametrize(("op", "sample"), MIXERS)
def test_joined_operands_and_replayed_steps(op: Op, sample: Sample, act: str, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, act, joined=bool(joined_widths(op, sample)), replay=True)


def wide_sample(name: str, shapes: dict[str, tuple[int, ...]], fixed: dict[str, torch.Tensor], attrs: dict) -> Any:
    """Token operands of the given shapes per token, over prefills, chunks and decodes."""
    steps = []
    for i, batch in enumerate(schedule({1: 3, 2: 11}, {1: 1, 2: 1}, {2: 1, 1: 10})):
        tokens = {
            n: random(10 * i + j, batch.num_tokens, *shape, scale=0.5) for j, (n, shape) in enumerate(shapes.items())
        }
        tokens |= {n: torch.sigmoid(x) for n, x in tokens.items() if n in ("beta", "dt")}
        tokens |= {n: -x.abs() for n, x in tokens.items() if n in ("g", "gate")}
        operands = {n: tokens.get(n, fixed.get(n)) for n in OPS[name].operands}
        steps.append(Step(batch, operands))
    width = max(shape[-1] for shape in shapes.values())
    return pytest.param(OPS[name], Sample(f"wide_{width}", attrs, tuple(steps)), id=f"{name}-{width}")


def wide_samples() -> Iterator[Any]:
    """States and heads of widths that the samples do not reach."""
    for n in (30, 100, 130, 500, 1000, 1030):
        ssd = {"softplus": False, "dt_min": 0.0, "dt_max": 10.0}
        yield wide_sample("ssd", {"x": (2, 3), "dt": (2,), "b": (1, n), "c": (1, n)}, {"a": -random(1, 2).exp()}, ssd)
        delta = {"q": (1, n), "k": (1, n), "v": (2, 5), "beta": (2,)}
        attrs = {"scale": 0.3, "l2norm": True, "eps": 1e-6}
        yield wide_sample("gated_delta_rule", delta | {"g": (2, n) if n % 100 else (2,)}, {}, attrs)
        memory = {"q": (2, n), "k": (2, n), "v": (2, 35)}
        yield wide_sample("linear_attention", memory | {"gate": (2,)}, {}, {"scale": n**-0.5})
        gates = {"input_gate": (2,), "forget_gate": (2,)}
        yield wide_sample("mlstm", memory | gates, {}, {"scale": n**-0.5, "eps": 1e-6})
        scan = {"x": (6,), "dt": (6,), "b": (n,), "c": (n,)}
        yield wide_sample("selective_scan", scan, {"a": -random(1, 6, n).exp()}, {"softplus": False})
    yield wide_sample("window", {"x": (5,)}, {}, {"back": [*range(70), 3]})
    attrs = {"scale": 0.05, "causal": True, "window": 0, "chunk": 0, "softcap": 0.0}
    for q_heads, kv_heads, width, value_width in ((5, 1, 576, 512), (2, 2, 30, 300), (3, 1, 4000, 8), (2, 1, 20, 257)):
        heads = {"q": (q_heads, width), "k": (kv_heads, width), "v": (kv_heads, value_width)}
        yield wide_sample("attention", heads, {"sinks": random(4, q_heads)}, attrs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "sample"), wide_samples())
def test_wide_states_and_heads(op: Op, sample: Sample, act: str, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, act)


@pytest.mark.parametrize("device", DEVICES)
def test_lists_of_keys_far_apart(device: str, tmp_path: Path) -> None:
    """Keys of a sequence's beginning and end, with others between them that no list names and no step has written."""
    far = 300_000
    batches = [Batch.of([5]), Batch.of([3], past=[far])]
    operands = []
    for i, batch in enumerate(batches):
        tokens = batch.num_tokens
        made = {n: random(3 * i + j, tokens, h, 4) for j, (n, h) in enumerate((("q", 2), ("k", 1), ("v", 1)))}
        made |= dict.fromkeys(("sinks", "slopes", "bias_table"))
        at = batch.positions()[:, None]
        lists = [torch.tensor([[3, 0, 3, -1, 4, far + 2, 1 << 40]]).expand(tokens, -1), at, at]
        operands.append(made | {"indices": torch.cat(lists, 1)})
    attrs = {"scale": 0.5, "causal": True, "window": 0, "chunk": 0, "softcap": 0.0}
    case = make_case(OPS["attention"], Sample("far", attrs, (Step(batches[0], operands[0]),)), {}, False)
    write_folder(tmp_path, case.finish(), case.params)
    runner = native().Runner(
        str(tmp_path), max_tokens=5, max_seqs=1, max_seq_len=far + 3, poison=True, page_size=64, device=device
    )
    keys = {p: i for i, p in enumerate([*range(5), *range(far, far + 3)])}
    k, v = (torch.cat([o[n] for o in operands])[:, 0] for n in ("k", "v"))
    for batch, given in zip(batches, operands, strict=True):
        inputs = {n: x.contiguous().numpy() for n, x in given.items() if x is not None}
        found = runner.step(**step_arguments(batch), inputs=inputs)["outputs"]["out0"]
        for t, position in enumerate(batch.positions().tolist()):
            seen = [keys[p] for p in sorted(set(given["indices"][t].tolist())) if p in keys and p <= position]
            expected = torch.softmax(0.5 * given["q"][t] @ k[seen].T, -1) @ v[seen]
            assert_close(found[t], expected, OP_TOLERANCE["f32"], f"token {position}")


def test_all_mixers_are_covered() -> None:
    covered = {p.values[0].name for p in MIXERS}
    assert covered >= {
        "attention", "causal_conv1d", "window", "ssd", "linear_attention", "linear_scan", "wkv", "mlstm",
        "selective_scan", "gated_delta_rule",
    }  # fmt: skip
