"""Token-wise and generic ops on a device: every activation type, mixed types, sizes beyond a tile of the kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_device_mixers
import torch
from kernel_programs import native, step_arguments
from ops_programs import generic_inputs, generic_program_of, region_of
from test_device_mixers import ACT, ROUNDING, check_on_device, to_float
from test_kernels import SAMPLES, joined_widths

from autodeploy.interpreter.region import run_region
from autodeploy.ops import OPS, Batch, Op, Sample
from autodeploy.ops.base import random
from autodeploy.ops.generic import GenericSample, samples
from autodeploy.testing.tolerances import OP_TOLERANCE
from devices import DEVICES

NAMES = ("embedding", "linear", "rms_norm", "layer_norm", "rope", "expert_linear", "select_rows", "known_length")
NORMS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")
TOKEN_WISE = [p for p in SAMPLES if p.values[0].name in NAMES and p.values[1].steps[0].batch.rows]
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["bfloat16", "float16"])
@pytest.mark.parametrize(("op", "sample"), TOKEN_WISE)
def test_sample(op: Op, sample: Sample, act: str, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, act)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "sample"), [p for p in TOKEN_WISE if joined_widths(*p.values)])
def test_joined_operands(op: Op, sample: Sample, act: str, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, act, joined=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("op", "sample"), [p for p in TOKEN_WISE if p.values[0].name in ("embedding", "linear", "expert_linear")]
)
def test_operands_of_different_types(op: Op, sample: Sample, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, "float16", mixed=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("op", "sample"), [p for p in SAMPLES if p.values[0].name in NORMS and p.values[1].steps[0].batch.rows]
)
def test_norms_of_float32_with_weights_of_another_type(
    op: Op, sample: Sample, act: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_device_mixers, "is_act", lambda name, mixed: name in ("weight", "bias"))
    check_on_device(op, sample, tmp_path, device, act, mixed=True)


def narrowed(x: torch.Tensor, act: torch.dtype) -> torch.Tensor:
    """The tensor with values that the type holds exactly, in the same layout."""
    if not x.is_floating_point():
        return x
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(act).float()
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


def to_array(x: torch.Tensor, act: torch.dtype) -> np.ndarray:
    if not x.is_floating_point() or act == torch.float32:
        return x.contiguous().numpy()
    narrow = x.to(act).contiguous()
    return narrow.numpy() if act == torch.float16 else narrow.view(torch.int16).numpy().view(np.uint16)


def run_generic(sample: GenericSample, folder: Path, device: str, act: str) -> list[np.ndarray]:
    made = generic_program_of(sample)
    if sample.region is not None:
        dtypes = [*sample.region["inputs"], *(n["dtype"] for n in sample.region["nodes"])]
        for i, register in enumerate(sample.region["outputs"]):
            v = made.program.outputs[f"out{i}"]
            made.program.values[v] = replace(made.program.values[v], dtype=dtypes[register])
    limits = {"max_tokens": 1, "max_seqs": 1, "max_seq_len": 1, "num_threads": 1}
    runner = native().Runner(str(made.write(folder)), **limits, poison=True, device=device, act=act)
    inputs = {n: to_array(x, ACT[act]) for n, x in generic_inputs(sample).items()}
    found = runner.step(**step_arguments(Batch.of([1])), inputs=inputs)["outputs"]
    return [found[f"out{i}"] for i in range(len(found))]


def check_generic(sample: GenericSample, folder: Path, device: str, act: str) -> None:
    sample = replace(sample, operands=tuple(narrowed(x, ACT[act]) for x in sample.operands))
    roundings = 1
    if sample.region is not None:
        dtypes = {"act": ACT[act], "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
        inputs = [x.to(ACT[act]) if x.is_floating_point() else x for x in sample.operands]
        expected = run_region(region_of(sample.region), inputs, dtypes, sample.shape)
        roundings = len(sample.region["nodes"]) + 1  # of each node, to the other side
    else:
        expected = sample.expected()
    for j, (found, want) in enumerate(zip(run_generic(sample, folder, device, act), expected, strict=True)):
        what = f"{sample.op} {sample.name} result {j} in {act}"
        x = to_float(found).reshape(want.shape)
        if not want.is_floating_point() or sample.op in ("copy", "cat", "sort", "topk", "gather", "index_select"):
            np.testing.assert_array_equal(x, want.float().numpy() if want.is_floating_point() else want.numpy(), what)
            continue
        y = want.float().numpy()
        relative, smallest = ROUNDING["float32" if found.dtype == np.float32 else act]
        scale = np.abs(y[np.isfinite(y)]).max(initial=0.0)
        with np.errstate(invalid="ignore"):
            bound = roundings * relative * np.abs(y) + smallest + OP_TOLERANCE["f32"] * scale
            right = (np.abs(x - y) <= bound) | (x == y) | (np.isnan(x) & np.isnan(y))
        at = np.unravel_index(right.argmin(), right.shape)
        assert right.all(), f"{what}: at {at} expected {y[at]}, found {x[at]}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["bfloat16", "float16"])
@pytest.mark.parametrize("op", sorted({s.op for s in samples()}))
def test_generic_sample(op: str, act: str, device: str, tmp_path: Path) -> None:
    for k, sample in enumerate(s for s in samples() if s.op == op):
        check_generic(sample, tmp_path / str(k), device, act)


# ---- sizes beyond a tile ----


def of(name: str, op: str, operands: Sequence[torch.Tensor], **attrs: Any) -> GenericSample:
    made = GenericSample(name, op, tuple(operands), attrs, ())
    return replace(made, shape=tuple(made.expected()[0].shape))


def integers(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(-high, high, shape, generator=torch.Generator().manual_seed(seed))


def spoilt(x: torch.Tensor) -> torch.Tensor:
    """With infinities, both zeros and NaN here and there."""
    flat = x.clone().flatten()
    for i, v in enumerate((NAN, INF, -INF, 0.0, -0.0)):
        flat[i * 7 :: 61] = v
    return flat.reshape(x.shape)


def moved() -> Iterator[GenericSample]:
    for dtype in (torch.float32, torch.int64, torch.bool):
        x = (random(1, 3, 70, 41) * 9).to(dtype)
        yield of(f"transposed_{dtype}", "copy", [x.transpose(1, 2)])
        yield of(f"reversed_{dtype}", "copy", [x.permute(2, 1, 0)])
        yield of(f"columns_{dtype}", "copy", [x[:, 3:, 1:33]])
        yield of(f"cat_{dtype}", "cat", [x[:, :, i : i + 1 + i] for i in range(10)], dim=2)
        yield of(f"cat_columns_{dtype}", "cat", [x[:1, 3:35].transpose(1, 2), x[1:, :41, :32]], dim=0)
    yield of("packs", "copy", [random(2, 9, 3, 64)[:, 1, 16:48]])
    yield of("long", "copy", [random(3, 2, 9000)[:, 1:]])
    yield of("broadcast", "copy", [random(3, 40, 1).expand(40, 50)])
    yield of("cat_rows", "cat", [random(i, 50, 3, 40) for i in range(3)], dim=0)


def reduced() -> Iterator[GenericSample]:
    kinds = {torch.float32: "sum mean max min", torch.int64: "sum prod max min any all", torch.bool: "sum any all"}
    for dtype, names in kinds.items():
        x = random(1, 5, 300, 21) * 3
        x = x if dtype == torch.float32 else x.round().long() if dtype == torch.int64 else x > 2
        for kind in names.split():
            for dims in ([0], [1], [2], [1, 2], [0, 2]):
                yield of(f"{kind}_{dims}_{dtype}", "reduce", [x], kind=kind, dims=dims, keepdim=False)
    rows = random(2, 2, 5000)
    ties = (random(3, 3, 5000) * 2).round()
    for kind in ("sum", "mean", "max", "min"):
        yield of(f"{kind}_row", "reduce", [rows], kind=kind, dims=[1], keepdim=False)
        yield of(f"{kind}_columns", "reduce", [rows.T], kind=kind, dims=[0], keepdim=False)
    for kind in ("argmax", "argmin"):
        yield of(f"{kind}_row", "reduce", [ties], kind=kind, dims=[1], keepdim=False)
        yield of(f"{kind}_columns", "reduce", [ties.T], kind=kind, dims=[0], keepdim=True)
    for kind in ("max", "min"):
        yield of(f"{kind}_nan", "reduce", [spoilt(random(4, 3, 40, 90))], kind=kind, dims=[2], keepdim=False)


def along_lines() -> Iterator[GenericSample]:
    masked = torch.where(random(5, 3, 5000) > 0, random(6, 3, 5000), torch.tensor(-INF))
    for op in ("softmax", "log_softmax"):
        yield of("long", op, [masked], dim=1)
        yield of("columns", op, [random(7, 2, 2100, 3) * 5], dim=1)
        yield of("nothing_seen", op, [torch.full((2, 40), -INF)], dim=1)
        yield of("nan", op, [spoilt(random(8, 6, 33))], dim=1)
    yield of("long", "cumsum", [random(9, 2, 1500)], dim=1)
    yield of("columns", "cumsum", [random(9, 2, 100, 3)], dim=1)
    yield of("integers", "cumsum", [integers(1, 1 << 60, 3, 700)], dim=1)
    yield of("integers_short", "cumsum", [integers(1, 1 << 60, 3, 70)], dim=1)


def ordered() -> Iterator[GenericSample]:
    lines = {
        "ties": (random(1, 2, 5000) * 3).round(),
        "floats": random(2, 3, 4100),
        "spoilt": spoilt(random(3, 2, 2500)),
        "integers": integers(4, 1 << 62, 2, 4500),
        "flags": random(5, 2, 3000) > 0,
        "middle": random(6, 2, 2100, 2),
        "short": random(7, 3, 1025),
    }
    for name, x in lines.items():
        for down in (False, True):
            yield of(f"{name}_{down}", "sort", [x], dim=1, descending=down)
            for k in (1, 50, 1024, 1025):
                yield of(f"{name}_{k}_{down}", "topk", [x], k=k, dim=1, largest=down)


def indexed() -> Iterator[GenericSample]:
    x, index = random(1, 2, 700, 3), integers(1, 350, 2, 600, 3) + 350
    yield of("long", "gather", [x, index], dim=1)
    yield of("long", "scatter", [x, index, random(2, 2, 600, 3)], dim=1, reduce="add")
    order = torch.stack([torch.randperm(700, generator=torch.Generator().manual_seed(i))[:600] for i in range(2)])
    yield of("long_set", "scatter", [x[..., 0], order, random(3, 2, 600)], dim=1, reduce="")
    numbers = integers(2, 1 << 60, 2, 700)
    yield of("integers", "scatter", [numbers, order % 40, integers(3, 1 << 60, 2, 600)], dim=1, reduce="add")
    yield of("middle", "index_select", [x, integers(4, 350, 900) + 350], dim=1)
    yield of("views", "index_select", [x.transpose(1, 2), integers(4, 350, 50) + 350], dim=2)


def multiplied() -> Iterator[GenericSample]:
    yield of("plain", "matmul", [random(1, 2, 70, 100, scale=0.1), random(2, 2, 100, 45)])
    yield of("transposed", "matmul", [random(1, 2, 99, 33).transpose(1, 2), random(2, 2, 40, 99).transpose(1, 2)])
    yield of("shared", "matmul", [random(1, 3, 5, 40), random(2, 40, 65).expand(3, 40, 65)])
    yield of("one_row", "matmul", [random(1, 1, 300), random(2, 300, 200)])


def const(value: float, dtype: str) -> dict[str, Any]:
    return {"op": "const", "args": [], "dtype": dtype, "value": value}


def node(op: str, dtype: str, *args: int) -> dict[str, Any]:
    return {"op": op, "args": list(args), "dtype": dtype}


def region_sample(name: str, operands: Sequence[torch.Tensor], nodes: list[dict], outputs: list[int]) -> GenericSample:
    kinds = {torch.float32: "act", torch.int64: "i64", torch.bool: "bool"}
    program = {"inputs": [kinds[x.dtype] for x in operands], "nodes": nodes, "outputs": outputs}
    return GenericSample(name, "region", tuple(operands), {}, tuple(operands[0].shape), program)


def sum_backwards(n: int, dtype: str = "act") -> list[dict]:
    """n values made of input 0, all of them alive, and their sum from the last one on."""
    nodes = [node("add", dtype, 0, i) for i in range(n)]  # 0: x; 1: 2x; ...
    nodes.append(node("max", dtype, n, n - 1))
    for i in range(n - 2, 0, -1):
        nodes.append(node("max", dtype, len(nodes), i))
    return nodes


def regions() -> Iterator[GenericSample]:
    x = random(1, 13, 77)
    for n in (20, 60, 300, 500):  # registers that fit a block's shared memory in fewer and fewer threads, and not
        nodes = sum_backwards(n)
        yield region_sample(f"{n}_registers", [x], nodes, [len(nodes)])
    many = [random(i, 5, 40) for i in range(40)]
    nodes = [node("add", "act", 0, 1)] + [node("add", "act", 38 + i, i) for i in range(2, 40)]
    yield region_sample("many_inputs", many, nodes, [len(many) + len(nodes) - 1])
    nodes = [node("mul", "act", 0, 0), *(node("neg", "act", i) for i in range(1, 30))]
    yield region_sample("many_outputs", [x], nodes, list(range(1, 31)))
    i, k = torch.arange(90)[:, None].expand(90, 33), torch.arange(33)[None].expand(90, 33)
    mask = [node("le", "bool", 1, 0), node("sub", "i64", 0, 1), const(7, "i64"), node("lt", "bool", 4, 5)]
    mask += [node("and", "bool", 3, 6), const(-INF, "act"), node("where", "act", 7, 2, 8)]
    yield region_sample("mask", [i, k, random(2, 90, 1).expand(90, 33)], mask, [9, 7])
    middle = random(3, 4, 1, 9, 1).expand(4, 6, 9, 5)
    broadcast = [random(4, 4, 6, 9, 5), middle, random(5, 6, 5)[None, :, None].expand(4, 6, 9, 5)]
    yield region_sample("middle_dims", broadcast, [node("mul", "act", 0, 1), node("add", "act", 3, 2)], [4])
    # What is rounded where: a third is no number of 16 bits, and a sum of float32 keeps what act would lose.
    steps = [const(1 / 3, "act"), const(1 / 3, "f32"), node("sub", "f32", 1, 2), node("cast", "act", 2)]
    steps += [node("add", "f32", 0, 2), node("cast", "act", 5), node("silu", "act", 0), node("mul", "act", 7, 5)]
    steps += [node("cast", "i64", 1), node("cast", "f32", 8)]
    yield region_sample("roundings", [x], steps, [3, 4, 5, 6, 8, 9, 10])


LARGE = [*moved(), *reduced(), *along_lines(), *ordered(), *indexed(), *multiplied(), *regions()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", sorted({s.op for s in LARGE}))
def test_beyond_a_tile(op: str, act: str, device: str, tmp_path: Path) -> None:
    for k, sample in enumerate(s for s in LARGE if s.op == op):
        check_generic(sample, tmp_path / str(k), device, act)


def large_products() -> Iterator[Any]:
    for rows, inner, outer in ((70, 100, 130), (15, 37, 65), (130, 64, 64), (16, 1000, 40)):
        operands = {"x": random(1, rows, inner), "weight": random(2, outer, inner, scale=inner**-0.5)}
        sample = Sample.one(f"{rows}x{inner}x{outer}", {**operands, "bias": random(3, outer)})
        yield pytest.param(OPS["linear"], sample, id=f"linear-{sample.name}")
    for tokens, experts in ((50, 3), (7, 70), (90, 1)):
        ids = integers(tokens, experts, tokens * 4).abs() + (torch.arange(tokens * 4) % 9 == 0) * experts
        operands = {"x": random(1, tokens, 40), "weight": random(2, experts, 70, 40, scale=0.2), "ids": ids}
        sample = Sample.one(f"{tokens}_e{experts}", {**operands, "bias": random(3, experts, 70)}, x_repeat=4)
        yield pytest.param(OPS["expert_linear"], sample, id=f"expert_linear-{sample.name}")
    wide = {"x": random(1, 300, 5, 256), "cos": random(2, 300, 96), "sin": random(3, 300, 96)}
    yield pytest.param(OPS["rope"], Sample.one("wide", wide, interleaved=False), id="rope-wide")
    yield pytest.param(OPS["rope"], Sample.one("pairs", wide, interleaved=True), id="rope-pairs")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("op", "sample"), large_products())
def test_large_products(op: Op, sample: Sample, act: str, device: str, tmp_path: Path) -> None:
    check_on_device(op, sample, tmp_path, device, act)


def test_all_ops_are_covered() -> None:
    assert {p.values[0].name for p in TOKEN_WISE} == set(NAMES)
    assert {s.op for s in LARGE} | {"arange", "full"} == {s.op for s in samples()}
