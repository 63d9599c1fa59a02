"""Every sample of every canonical op on the kernels of the runtime, as a Program of one instruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_programs import DTYPES, Case, StoredParam, lead_dim, native, step_arguments, write_folder

from autodeploy.artifact.op_table import OPS as OP_TABLE
from autodeploy.ops import OPS, Op, Sample
from autodeploy.testing.compare import assert_close
from autodeploy.testing.tolerances import INT8_OP_TOLERANCE, OP_TOLERANCE

PROGRAM_OPS = [op for op in OPS.values() if op.in_program and op.name in OP_TABLE]
SAMPLES = [pytest.param(op, s, id=f"{op.name}-{s.name}") for op in PROGRAM_OPS for s in op.samples()]
PACKED_FORMATS = ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def has_lead(op: Op, name: str, x: torch.Tensor) -> bool:
    """Whether the operand's first dim depends on the step: not of a fixed operand, nor of `M*` with nothing before."""
    rule = next(r for r in OP_TABLE[op.name].inputs if r.name == name)
    inner = len(rule.shape.split()) - 1 if rule.shape.startswith("M*") else None
    return not op.is_fixed(name, x) and x.dim() > 0 and x.dim() != inner


def make_case(op: Op, sample: Sample, stored: dict[str, StoredParam], joined: bool) -> Case:
    """`joined` makes the float operands of a step views of one storage, side by side, as after a fused product."""
    step = sample.steps[0]
    tokens = step.batch.num_tokens
    case = Case(op.name, dict(sample.attrs))
    widths = joined_widths(op, sample) if joined else {}
    for name in op.operands:
        x = step.operands.get(name)
        if x is None:
            case.inputs.append(None)
        elif op.is_fixed(name, x):
            case.add_param(name, stored.get(name) or StoredParam.of(x))
        elif name in widths:
            total, offset = sum(widths.values()), 0
            for other, width in widths.items():
                if other == name:
                    break
                offset += width
            inner = list(torch.empty(1, *x.shape[1:]).stride()[1:])
            lead = lead_dim(x.shape[0], tokens)
            case.add_view("joined", "f32", (lead, total), (lead, *x.shape[1:]), (total, *inner), offset)
        else:
            lead = (lead_dim(x.shape[0], tokens),) if has_lead(op, name, x) else tuple(x.shape[:1])
            case.add_input(name, DTYPES[x.dtype], (*lead, *x.shape[1:]))
    for result in op.expected(sample)[0]:
        rows = result.shape[:1]
        first = next(n for n in op.operands if step.operands.get(n) is not None)
        if op.name == "select_rows":
            rows = ("R",)
        elif has_lead(op, first, step.operands[first]) and result.dim():
            rows = (lead_dim(result.shape[0], tokens),)
        case.add_output(DTYPES[result.dtype], (*rows, *result.shape[1:]))
    operands = [step.operands.get(n) for n in op.operands]
    case.add_states(op.state_decl(*op.bind([*operands, *(sample.attrs[a] for a in op.attributes)]).values()))
    return case


def joined_widths(op: Op, sample: Sample) -> dict[str, int]:
    """Elements per row of the float operands that can lie side by side: those with as many rows as the first."""
    step = sample.steps[0]
    widths: dict[str, int] = {}
    rows = None
    for name in op.operands:
        x = step.operands.get(name)
        if x is None or x.dtype != torch.float32 or not has_lead(op, name, x) or x.dim() < 2:
            continue
        rows = rows or x.shape[0]
        if x.shape[0] == rows:
            widths[name] = x[0].numel()
    return widths


def step_inputs(op: Op, operands: dict[str, torch.Tensor | None], widths: dict[str, int]) -> dict[str, np.ndarray]:
    inputs = {
        n: x.contiguous().numpy()
        for n, x in operands.items()
        if x is not None and not op.is_fixed(n, x) and n not in widths
    }
    if widths:
        inputs["joined"] = torch.cat([operands[n].flatten(1) for n in widths], 1).numpy()
    return inputs


def check(
    op: Op,
    sample: Sample,
    folder: Path,
    *,
    stored: dict[str, StoredParam] | None = None,
    joined: bool = False,
    threads: int = 1,
    exact: bool = True,
    expected: list[list[torch.Tensor]] | None = None,
) -> None:
    case = make_case(op, sample, stored or {}, joined)
    write_folder(folder, case.finish(), case.params)
    batches = [s.batch for s in sample.steps]
    runner = native().Runner(
        str(folder),
        max_tokens=max(b.num_tokens for b in batches),
        max_seqs=max(max(b.slots) for b in batches),
        max_seq_len=max(max(b.kv_len) for b in batches),
        num_threads=threads,
        exact=exact,
        poison=True,
        page_size=16,
    )
    kernels = {c["kernel"] for c in runner.plan()["instructions"]}
    widths = joined_widths(op, sample) if joined else {}
    for i, (step, results) in enumerate(zip(sample.steps, expected or op.expected(sample), strict=True)):
        found = runner.step(**step_arguments(step.batch), inputs=step_inputs(op, step.operands, widths))["outputs"]
        for j, result in enumerate(results):
            tolerance = OP_TOLERANCE[DTYPES[result.dtype]] if exact else INT8_OP_TOLERANCE
            what = f"{op.name} {sample.name} step {i} result {j} by {', '.join(kernels)}"
            assert_close(found[f"out{j}"], result, tolerance, what)


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_sample(op: Op, sample: Sample, tmp_path: Path) -> None:
    check(op, sample, tmp_path)


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_sample_on_joined_operands_and_two_threads(op: Op, sample: Sample, tmp_path: Path) -> None:
    if len(joined_widths(op, sample)) < 1:
        pytest.skip("no float operand with rows")
    check(op, sample, tmp_path, joined=True, threads=2)


def quantize(x: torch.Tensor, fmt: str) -> tuple[StoredParam, torch.Tensor]:
    """The tensor in a stored format, and what that means in float32."""
    if fmt in ("f16", "bf16"):
        rounded = x.to(torch.float16 if fmt == "f16" else torch.bfloat16)
        return StoredParam.of(rounded), rounded.float()
    import gguf

    kind = gguf.GGMLQuantizationType[fmt.upper()]
    blocks = gguf.quants.quantize(x.numpy(), kind)
    return StoredParam(tuple(x.shape), fmt, blocks.tobytes()), torch.from_numpy(gguf.quants.dequantize(blocks, kind))


WEIGHT_SAMPLES = [
    pytest.param(op, s, id=f"{op.name}-{s.name}")
    for op in PROGRAM_OPS
    for s in op.samples()
    if op.weight_operands and all(s.steps[0].operands[w].shape[-1] % 32 == 0 for w in op.weight_operands)
]


@pytest.mark.parametrize("fmt", PACKED_FORMATS)
@pytest.mark.parametrize(("op", "sample"), WEIGHT_SAMPLES)
def test_stored_weight_formats(op: Op, sample: Sample, fmt: str, tmp_path: Path) -> None:
    step = sample.steps[0]
    stored, operands = {}, dict(step.operands)
    for name in op.weight_operands:
        stored[name], operands[name] = quantize(step.operands[name], fmt)
    meant = Sample(sample.name, sample.attrs, (type(step)(step.batch, operands),))
    expected = op.expected(meant)
    check(op, sample, tmp_path / "exact", stored=stored, expected=expected)
    check(op, sample, tmp_path / "quick", stored=stored, exact=False, threads=2, expected=expected)
