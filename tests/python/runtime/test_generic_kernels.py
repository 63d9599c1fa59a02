"""Region nodes and generic ops of the runtime against what the interpreter says they mean."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_programs import DTYPES, Case, native, step_arguments, write_folder

from autodeploy.artifact.op_table import REGION_BOOL_OPS, REGION_OPS
from autodeploy.artifact.program import Region, RegionNode
from autodeploy.interpreter.generic import GENERIC
from autodeploy.interpreter.region import POINTWISE, run_region
from autodeploy.ops import Batch
from autodeploy.testing.compare import assert_close
from devices import DEVICES

INF, NAN = float("inf"), float("nan")
TORCH = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
VALUES = {
    "f32": [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 1e-30, -7.25, 20.5, 88.0, -90.0, 1e10, INF, -INF, NAN],
    "i64": [0, 1, -1, 2, -2, 3, 7, -7, 20, 100],
    "bool": [False, True],
}
FLOAT_RESULT = {"exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "erf"}
FLOAT_ONLY = {"silu", "gelu", "gelu_tanh", "softplus", "floor", "ceil", "round", "trunc"}
BIT_OPS = {"bit_and", "bit_or", "bit_xor"}


def node_cases() -> list[Any]:
    """(op, argument dtypes, result dtype) wherever torch gives the operation a meaning on finite integers."""
    cases = []
    for op, arity in REGION_OPS.items():
        if op == "const":
            continue
        for dtypes in itertools.product(("f32", "i64", "bool"), repeat=arity):
            if op in BIT_OPS and "f32" in dtypes:
                continue
            if op in FLOAT_ONLY and dtypes[0] != "f32":
                continue
            if op == "where" and dtypes[0] != "bool":
                continue
            if op == "pow" and "f32" not in dtypes:
                continue  # torch refuses negative exponents of integers
            if op in ("fmod", "floor_div") and dtypes[1] != "f32":
                continue  # and division by zero
            if op in ("sub", "neg", "abs", "sign", "square", "relu", "fmod", "floor_div") and "bool" in dtypes:
                continue
            if op in REGION_BOOL_OPS:
                result = "bool"
            elif op in FLOAT_RESULT or op == "div":
                result = "f32"
            else:
                result = next((d for d in ("f32", "i64") if d in dtypes[op == "where" :]), "bool")
            cases.append(pytest.param(op, dtypes, result, id="-".join((op, *dtypes))))
    for a, b in itertools.permutations(("f32", "i64", "bool"), 2):
        cases.append(pytest.param("cast", (a,), b, id=f"cast-{a}-to-{b}"))
    return cases


def torch_is_unsure(op: str, args: list[float]) -> bool:
    """Whether torch's vector loops and scalar loops differ there, so that there is nothing to agree with."""
    if op in ("gelu", "gelu_tanh"):
        return abs(args[0]) == INF
    if op in ("fmod", "floor_div"):
        return abs(args[1]) == INF or abs(args[0]) > 2**24 * abs(args[1])
    return False


def run_case(
    case: Case, folder: Path, inputs: dict[str, torch.Tensor], threads: int = 1, device: str = "cpu"
) -> dict[str, np.ndarray]:
    write_folder(folder, case.program, {})
    limits = {"max_tokens": 8, "max_seqs": 1, "max_seq_len": 8}
    runner = native().Runner(str(folder), **limits, num_threads=threads, poison=True, device=device)
    arrays = {n: np.ascontiguousarray(x.numpy()) for n, x in inputs.items()}
    return runner.step(**step_arguments(Batch.of([3])), inputs=arrays)["outputs"]


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
@pytest.mark.parametrize(("op", "dtypes", "result"), node_cases())
def test_region_node(op: str, dtypes: tuple[str, ...], result: str, device: str, tmp_path: Path) -> None:
    grids = torch.meshgrid(*[torch.arange(len(VALUES[d])) for d in dtypes], indexing="ij")
    inputs = [torch.tensor(VALUES[d], dtype=TORCH[d])[g.flatten()] for d, g in zip(dtypes, grids, strict=True)]
    region = Region(dtypes, (RegionNode(op, result, tuple(range(len(dtypes)))),), (len(dtypes),))
    case = Case("region", {"region": 0})
    for i, (d, x) in enumerate(zip(dtypes, inputs, strict=True)):
        case.add_input(f"x{i}", d, tuple(x.shape))
    case.add_output(result, tuple(inputs[0].shape))
    case.finish(region)
    expected = run_region(region, inputs, TORCH, tuple(inputs[0].shape))[0]
    found = run_case(case, tmp_path, {f"x{i}": x for i, x in enumerate(inputs)}, device=device)["out0"]
    wrong = []
    for i, (a, b) in enumerate(zip(found.tolist(), expected.tolist(), strict=True)):
        same = a == b or (a != a and b != b) or abs(a - b) <= 2e-6 * max(abs(b), 1e-30)
        if op in ("gelu", "gelu_tanh"):
            same = same or abs(a - b) <= 1e-6 * abs(inputs[0][i])
        if op in ("sin", "cos", "exp", "expm1") and not same:
            same = abs(a - b) <= 1e-7 + 5e-6 * abs(b)
        if not same and not torch_is_unsure(op, [float(x[i]) for x in inputs]):
            wrong.append(f"{op}({', '.join(str(x[i].item()) for x in inputs)}) = {b}, found {a}")
    assert not wrong, "; ".join(wrong[:5])


def test_every_node_is_covered() -> None:
    assert set(REGION_OPS) - {"const"} == set(POINTWISE)
    assert {c.values[0] for c in node_cases()} == set(POINTWISE)


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_region_of_constants_alone(device: str, tmp_path: Path) -> None:
    case = Case("region", {"region": 0})
    case.add_output("f32", ("T", 2))
    constants = (RegionNode("const", "f32", value=-INF), RegionNode("const", "f32", value=2.5))
    case.finish(Region((), (*constants, RegionNode("max", "f32", (0, 1))), (2,)))
    assert run_case(case, tmp_path, {}, device=device)["out0"].tolist() == [[2.5, 2.5]] * 3


def x_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x if dtype == torch.float32 else (4 * x).round().to(dtype) if dtype == torch.int64 else x > 0


def ids(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(5))


GENERIC_CASES: list[tuple[str, dict[str, Any], list[torch.Tensor]]] = [
    ("copy", {}, [x_of(3, 4, 5)]),
    ("cat", {"dim": 1}, [x_of(3, 4), x_of(3, 1, seed=1), x_of(3, 6, seed=2)]),
    *(
        ("reduce", {"kind": kind, "dims": dims, "keepdim": keepdim}, [x_of(3, 4, 5, dtype=dtype)])
        for kind in ("sum", "max", "min", "any", "all")
        for dims, keepdim in (([1], False), ([1, 2], True), ([2], False))
        for dtype in (torch.float32, torch.int64, torch.bool)
    ),
    ("reduce", {"kind": "mean", "dims": [2, 1], "keepdim": False}, [x_of(3, 4, 5)]),
    ("reduce", {"kind": "prod", "dims": [1], "keepdim": True}, [x_of(3, 4, 5)]),
    ("reduce", {"kind": "argmax", "dims": [1], "keepdim": False}, [x_of(3, 40).round()]),
    ("reduce", {"kind": "argmin", "dims": [2], "keepdim": True}, [x_of(3, 4, 40).round()]),
    ("softmax", {"dim": 1}, [x_of(3, 70)]),
    ("softmax", {"dim": 1}, [x_of(3, 7, 5)]),
    ("log_softmax", {"dim": 2}, [x_of(3, 7, 33)]),
    ("topk", {"k": 4, "dim": 1, "largest": True}, [x_of(3, 60).round()]),
    ("topk", {"k": 50, "dim": 1, "largest": False}, [x_of(3, 60)]),
    ("sort", {"dim": 1, "descending": True}, [x_of(3, 60).round()]),
    ("sort", {"dim": 2, "descending": False}, [x_of(3, 2, 60, dtype=torch.int64)]),
    ("cumsum", {"dim": 1}, [x_of(3, 50)]),
    ("cumsum", {"dim": 1}, [x_of(3, 50, dtype=torch.int64)]),
    ("matmul", {}, [x_of(3, 4, 9), x_of(3, 9, 7, seed=1)]),
    ("gather", {"dim": 1}, [x_of(3, 9), ids(9, 3, 4)]),
    ("scatter", {"dim": 1, "reduce": ""}, [x_of(3, 9), torch.tensor([[0, 5], [8, 1], [2, 3]]), x_of(3, 2, seed=1)]),
    ("scatter", {"dim": 1, "reduce": "add"}, [x_of(3, 9), ids(9, 3, 20), x_of(3, 20, seed=1)]),
    ("index_select", {"dim": 1}, [x_of(3, 9, 2), ids(9, 5)]),
    ("arange", {"start": 3, "step": -2}, []),
    ("full", {"value": 2.5}, []),
]


@pytest.mark.parametrize("device", ["cpu", "cpu with two threads", *DEVICES])
@pytest.mark.parametrize(
    ("op", "attrs", "operands"), [pytest.param(*c, id=f"{c[0]}-{i}") for i, c in enumerate(GENERIC_CASES)]
)
def test_generic_op(op: str, attrs: dict[str, Any], operands: list[torch.Tensor], device: str, tmp_path: Path) -> None:
    shape = (4,) if op == "arange" else (3, 5)
    results = GENERIC[op](operands, attrs, shape)
    results = results if isinstance(results, tuple) else (results,)
    case = Case(op, attrs)
    for i, x in enumerate(operands):
        lead = ("T",) if x.dim() > 1 else tuple(x.shape[:1])  # three tokens
        case.add_input(f"x{i}", DTYPES[x.dtype], (*lead, *x.shape[1:]))
    for r in results:
        lead = ("T",) if r.dim() > 1 or (operands and r.dim() == 1) else tuple(r.shape[:1])
        case.add_output(DTYPES[r.dtype], (*lead, *r.shape[1:]))
    case.finish()
    name = device.split()[0]
    inputs = {f"x{i}": x for i, x in enumerate(operands)}
    found = run_case(case, tmp_path, inputs, 2 if device != name else 1, name)
    for j, r in enumerate(results):
        assert_close(found[f"out{j}"], r, 1e-5 if r.is_floating_point() else 0.0, f"{op} result {j}")
