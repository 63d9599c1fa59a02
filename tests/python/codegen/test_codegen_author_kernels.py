"""Triton kernels of a model's author: what a launch may say, what is written down, and that it runs as meant."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from interpreted_kernels import TORCH

from autodeploy.artifact.program import Instruction, Operand, Param, Program, Value
from autodeploy.codegen.author_kernels import author_launch
from autodeploy.codegen.evaluate import evaluate
from autodeploy.codegen.generate import generate
from autodeploy.codegen.targets import parse_targets
from autodeploy.custom_ops import CustomOp, TritonLaunch, register_op

triton = pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")
EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_models" / "gated_norm" / "gated_norm.py"
ORDER = [("x", True), ("gate", True), ("weight", True), ("eps", False)]


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_gated_norm_op", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example()


def instruction() -> tuple[Instruction, list[Value], list[Param]]:
    """The example's operator on halves of a wider value."""
    wide = Operand(0, None, (1, "T", 48), ("128*T", 128, 1), 64)
    values = [Value("x", "act", ("T", 128)), Value("g", "act", (1, "T", 48)), Value("y", "act", (1, "T", 48))]
    return Instruction("example::gated_norm", [wide, Operand(1), Operand(param=0)], [2], {"eps": 1e-5}), values, [
        Param("w", (48,), "act")
    ]


def declared(example: ModuleType, launch: Callable[..., Any] | None = None) -> CustomOp:
    return CustomOp("example::gated_norm", triton=example.gated_norm_kernel, launch=launch or example.launch)


def test_what_is_written_down(example: ModuleType) -> None:
    made = author_launch(declared(example), ORDER, *instruction(), "bfloat16")
    assert made.params == (
        ("x", "*bf16", 16), ("gate", "*bf16", 16), ("weight", "*bf16", 16), ("out", "*bf16", 16),
        ("columns", "i32", 16), ("x_stride", "i32", 16), ("gate_stride", "i32", 16), ("eps", "fp32", 1),
    )  # fmt: skip
    assert made.args == ({"in": 0}, {"in": 1}, {"in": 2}, {"out": 0}, 48, 128, 48, {"attr": "eps"})
    assert made.grid == ({"size": ["in", 0, 1]}, 1, 1)
    assert dict(made.constexprs) == {"BLOCK": 64}
    assert dict(made.options) == {"num_warps": 1, "num_stages": 3}


# Reductions are interpreted only where all of Triton is, from its import on: in a process of its own.
_RUN = """
import json, sys
import torch
from interpreted_kernels import TORCH, interpreting
from test_codegen_author_kernels import load_example
from autodeploy.codegen.evaluate import evaluate, grid_of

module = load_example()
for act, names, args, grid, constexprs in json.load(sys.stdin):
    for tokens in (1, 7, 33):
        generator = torch.Generator().manual_seed(tokens)
        x, gate, weight = (torch.randn(shape, generator=generator).to(TORCH[act])
                           for shape in ((tokens, 128), (1, tokens, 48), (48,)))
        x = x[None, :, 64:112]
        out = torch.full((1, tokens, 48), float("nan"), dtype=TORCH[act])
        views, attrs = [x, gate, weight], {"eps": 1e-5}
        given = {name: evaluate(e, views, [out], attrs) for name, e in zip(names, args, strict=True)}
        with interpreting():
            module.gated_norm_kernel[grid_of(grid, views, [out], attrs)](**given, **constexprs)
        expected = module.gated_norm(x, gate, weight, 1e-5)
        tolerance = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 2e-6}[act]
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
print("agrees")
"""


def test_the_launch_runs_the_kernel_as_the_operator_means(example: ModuleType) -> None:
    cases = []
    for act in TORCH:
        made = author_launch(declared(example), ORDER, *instruction(), act)
        names = [name for name, _, _ in made.params]
        cases.append((act, names, made.args, made.grid, dict(made.constexprs)))
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "runtime"), *sys.path]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", _RUN], input=json.dumps(cases), capture_output=True, text=True, env=env, timeout=300
    )
    assert done.stdout.strip() == "agrees", done.stderr[-3000:]


def program(count: int = 2) -> Program:
    made, values, params = instruction()
    instructions = []
    for i in range(count):
        values.append(Value(f"y{i}", "act", (1, "T", 48)))
        instructions.append(Instruction(made.op, made.inputs, [len(values) - 1], made.attrs))
    return Program(values=values, params=params, instructions=instructions)


@pytest.fixture
def registered(example: ModuleType) -> Iterator[None]:
    register_op("example::gated_norm", triton=example.gated_norm_kernel, launch=example.launch)
    yield
    register_op("example::gated_norm")


def test_compiled_with_the_program(registered: None, tmp_path: Path) -> None:
    targets = parse_targets("cuda:90")
    schemas = {"example::gated_norm": ORDER}
    made = generate(program(), targets, schemas=schemas, cache_folder=tmp_path)
    assert [launch.path for launch in made.kernels.launches] == [(0,), (1,)]
    assert len(made.kernels.kernels) == 4  # types, targets
    assert {k.symbol for k in made.kernels.kernels} == {"gated_norm_kernel"}
    assert [a.type for a in made.kernels.kernels[0].args] == ["ptr"] * 4 + ["i32"] * 3 + ["f32"]
    assert generate(program(), targets, schemas=schemas, cache_folder=tmp_path) == made


def test_an_operator_without_a_kernel_has_no_launch(example: ModuleType) -> None:
    register_op("example::gated_norm", library="lib.so")
    assert generate(program(), parse_targets("cuda:90")).kernels.launches == []


def said(example: ModuleType, launch: Callable[..., Any]) -> Any:
    return author_launch(declared(example, launch), ORDER, *instruction(), "bfloat16")


def changed(example: ModuleType, grid: Callable[..., Any] | None = None, **args: Any) -> Callable[..., TritonLaunch]:
    def launch(x, gate, weight, eps, out):
        plain = example.launch(x, gate, weight, eps, out)
        made = {k: v(x) if callable(v) else v for k, v in args.items()}
        return TritonLaunch({**plain.args, **made}, plain.grid if grid is None else grid(x), 4)

    return launch


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (lambda x: (triton.cdiv(x.numel(), 256),), {"cdiv": [{"mul": [{"size": ["in", 0, 1]}, 48]}, 256]}),
        (lambda x: (x.shape[1] * 2 + 3,), {"add": [{"mul": [{"size": ["in", 0, 1]}, 2]}, 3]}),
        (lambda x: (x.stride(0) + x.shape[1],), {"add": [{"stride": ["in", 0, 0]}, {"size": ["in", 0, 1]}]}),
        (lambda x: (x.shape[1] // 4,), {"cdiv": [{"add": [{"size": ["in", 0, 1]}, -3]}, 4]}),
        (lambda x: (5, x.shape[1]), 5),
    ],
)
def test_sizes_of_a_step_can_be_computed_with(example: ModuleType, grid: Callable[..., Any], expected: Any) -> None:
    made = said(example, changed(example, grid))
    assert made.grid[0] == expected
    x = torch.empty(33, 128)[None, :, 64:112]
    assert evaluate(made.grid[0], [x], [x], {}) == int(grid(x)[0])


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (lambda e: changed(e, lambda x: (x.shape[1] if x.shape[1] > 4 else 4,)), "the same in every step"),
        (lambda e: changed(e, lambda x: (x.shape[1] % 4,)), "the same in every step"),
        (lambda e: changed(e, lambda x: (x.shape[1] // 0,)), "a positive divisor"),
        (lambda e: changed(e, lambda x: (1.5,)), "expected integers to compute sizes with"),
        (lambda e: changed(e, lambda x: ()), "a grid of one to three dims, found 0"),
        (lambda e: changed(e, BLOCK=lambda x: x.shape[1]), "a known value as the constexpr BLOCK"),
        (lambda e: changed(e, columns="wide"), "expected a tensor or a number as columns, found 'wide'"),
        (lambda e: changed(e, eps=float("inf")), "expected a tensor or a number as eps, found inf"),
        (lambda e: changed(e, more=1), "expected a launch with x, gate"),
        (lambda e: lambda *_: {"x": 1}, "expected its launch to return a TritonLaunch, found dict"),
    ],
)
def test_what_is_refused(example: ModuleType, launch: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        said(example, launch(example))


def test_a_function_that_is_no_kernel_is_refused(example: ModuleType) -> None:
    op = CustomOp("example::gated_norm", triton=lambda x: x, launch=example.launch)
    with pytest.raises(ValueError, match=r"expected a function of @triton.jit, found function"):
        author_launch(op, ORDER, *instruction(), "bfloat16")


def test_a_kernel_that_does_not_compile_is_named(example: ModuleType) -> None:
    register_op("example::gated_norm", triton=example.gated_norm_kernel, launch=changed(example, BLOCK=63))
    try:
        with pytest.raises(ValueError, match=r"gated_norm: Triton cannot compile its kernel for sm_90: .*power"):
            generate(program(), parse_targets("cuda:90"), schemas={"example::gated_norm": ORDER})
    finally:
        register_op("example::gated_norm")


def test_a_kernel_and_its_launch_come_together(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="a Triton function and its launch together"):
        register_op("example::gated_norm", triton=example.gated_norm_kernel)
