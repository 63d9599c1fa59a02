"""Compiled kernels through the runtime: chosen, launched, as exact on a GPU as their interpretation; or declined."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from device_kernels import put_kernels, run_on_device, to_numpy, to_torch
from interpreted_kernels import TORCH, run_region_kernel
from kernel_programs import StoredParam, native, step_arguments, write_folder
from region_cases import View, check, instruction_of, run_made, ulps
from test_codegen_author_kernels import ORDER, load_example
from test_codegen_author_kernels import instruction as author_instruction
from test_codegen_iteration import CASES
from test_codegen_nodes import SHAPE, operands

from autodeploy.artifact.op_table import REGION_BOOL_OPS, REGION_OPS
from autodeploy.artifact.program import Program, Region, RegionNode, Value
from autodeploy.codegen.generate import Generated, generate
from autodeploy.codegen.targets import parse_targets
from autodeploy.custom_ops import register_op
from autodeploy.ops import Batch
from devices import device_param

pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")

CUDA = [device_param("cuda")]
ACTS = ("bfloat16", "float16", "float32")
# Cases of a program: those of a body have dims in N and S.
PROGRAMS = [name for name, made in CASES.items() if not any("N" in str(v.shape) for v in made.values)]
FLOAT_OPS = [op for op, arity in REGION_OPS.items() if arity == 1 and op not in ("not", "cast", *REGION_BOOL_OPS)]
# A Program has these with float results alone.
FLOAT_RESULTS = {"exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "silu"}
FLOAT_RESULTS |= {"gelu", "gelu_tanh", "softplus", "erf", "div"}
# Units in the last place from the value in double, where not 2: the others are a few roundings.
LIMITS = {"sigmoid": 3.0, "silu": 3.5, "softplus": 3.5}
EXACT = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "log1p": torch.log1p, "expm1": torch.expm1,
    "sqrt": torch.sqrt, "rsqrt": lambda x: 1 / torch.sqrt(x), "reciprocal": lambda x: 1 / x, "sin": torch.sin,
    "cos": torch.cos, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": torch.nn.functional.silu,
    "relu": torch.relu, "softplus": torch.nn.functional.softplus, "erf": torch.erf, "floor": torch.floor,
    "ceil": torch.ceil, "round": torch.round, "trunc": torch.trunc, "sign": torch.sign, "square": torch.square,
}  # fmt: skip


@pytest.mark.parametrize("device", [device_param("cuda-emulated")])
def test_the_emulation_declines_with_a_reason(device: str) -> None:
    plans = []

    def run(*arguments: object) -> None:
        plans.append(run_on_device(*arguments, device=device))

    check(CASES["bias"], "bfloat16", (7, 1), limit=0.0, run=run)
    assert plans[0]["kernel"].startswith("region.")
    assert plans[0]["kernel"] != "region.generated"
    declined = [reason for reason in plans[0]["declined"] if reason.startswith("region.generated: ")]
    assert len(declined) == 1
    assert "found its emulation" in declined[0]


@pytest.mark.parametrize("device", [device_param("cuda-emulated")])
def test_other_types_than_were_asked_for_are_declined(device: str) -> None:
    plans = []

    def run(*arguments: object) -> None:
        plans.append(run_on_device(*arguments, device=device, compiled_act="bfloat16"))

    check(CASES["bias"], "float32", (7, 1), limit=0.0, run=run)
    assert any("compiled for other activation types than f32" in reason for reason in plans[0]["declined"])


def run_generated(*arguments: object, targets: str = "cuda:90") -> None:
    plan = run_on_device(*arguments, targets=targets)
    assert plan["kernel"] == "region.generated", plan


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize("act", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_patterns(name: str, act: str, device: str) -> None:
    for tokens in (1, 7, 33):
        check(CASES[name], act, (tokens, min(tokens, 5)), limit=0.0, seed=tokens, run=run_generated)


@pytest.mark.parametrize("device", CUDA)
def test_ptx_of_an_older_architecture(device: str) -> None:
    """Code for another GPU than this one, so that the driver compiles the PTX beside it."""
    for name in ("bias", "heads", "contiguous"):
        check(CASES[name], "bfloat16", (33, 1), limit=0.0, run=partial(run_generated, targets="cuda:120"))


def floats(op: str, count: int) -> torch.Tensor:
    """Numbers of every size that the operation is meant for."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(count, generator=generator) * torch.exp(3.0 * torch.randn(count, generator=generator))
    positive = ("log", "sqrt", "rsqrt", "log1p")
    return x.abs() if op in positive else x.clamp(-80, 80) if op in ("exp", "expm1", "sigmoid", "silu") else x


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize("op", [op for op in FLOAT_OPS if op in EXACT])
def test_functions_against_their_values_in_double(op: str, device: str) -> None:
    x = floats(op, 1 << 20)
    region = Region(("f32",), (RegionNode(op, "f32", (0,)),), (1,))
    made = instruction_of(region, [View("f32", tuple(x.shape))], tuple(x.shape))
    (found,), _ = run_made(made, "float32", (1, 1), operands=[x], run=run_generated)
    exact = EXACT[op](x.double())
    unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=2.0**-126))) - 23)
    error = ((found.double() - exact).abs() / unit).nan_to_num(float("inf"))
    error = torch.where(found.double() == exact, 0.0, error)
    assert float(error.max()) <= LIMITS.get(op, 2.0), f"{op}({x[error.argmax()]})"


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", [op for op in REGION_OPS if op not in ("const", "where")])
def test_nodes_agree_with_their_interpretation(op: str, act: str, device: str) -> None:
    """Every op on its special values: what the reference cannot say, the interpreted kernel does."""
    inputs = ("act", "act", "f32", "f32", "i64", "i64", "bool", "bool")
    given = operands(act)
    arity = REGION_OPS[op]
    integer = op.startswith("bit_")
    kinds = [4, 6] if integer else [0, 2, 4, 6]
    result = ("bool",) if op in REGION_BOOL_OPS else ("i64", "bool") if integer else ("act", "f32", "i64", "bool")
    if op in FLOAT_RESULTS:
        result = ("act", "f32")
    nodes = [RegionNode(op, d, (k, k + 1)[:arity]) for k in kinds for d in result]
    region = Region(inputs, tuple(nodes), tuple(range(8, 8 + len(nodes))))
    made = instruction_of(region, [View(d, SHAPE) for d in inputs], SHAPE)
    found, _ = run_made(made, act, (1, 1), operands=given, run=run_generated, refer=False)
    wanted, _ = run_made(made, act, (1, 1), operands=given, run=run_region_kernel, refer=False)
    for node, a, b in zip(nodes, found, wanted, strict=True):
        if node.dtype in ("i64", "bool") and node.args[0] < 4:
            assert (a == b).float().mean() > 0.97, str(node)  # next to an integer
        elif op in ("gelu", "gelu_tanh"):
            assert torch.allclose(a.float(), b.float(), rtol=0.01, atol=1e-6, equal_nan=True), str(node)
        else:
            assert ulps(a, b) <= (4.0 if a.dtype == torch.float32 else 1.0), f"{node}: {ulps(a, b):.3g} ulp"


@pytest.mark.parametrize("device", CUDA)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("targets", ["cuda:90", "cuda:120"])
def test_an_authors_kernel(targets: str, act: str, device: str, tmp_path: Path) -> None:
    """Of the example, on a view, a whole value and a param; there is no other kernel for it, nor a plug-in."""
    module = load_example()
    register_op("example::gated_norm", triton=module.gated_norm_kernel, launch=module.launch)
    instruction, values, params = author_instruction()
    program = Program(values=[*values, Value("token_ids", "i64", ("T",)), Value("positions", "i64", ("T",))])
    program.params, program.instructions = params, [instruction]
    program.inputs = {"x": 0, "g": 1, "token_ids": 3, "positions": 4}
    program.outputs = {"y": 2}
    program.metadata = {"author_ops": {"example::gated_norm": {}}}
    generator = torch.Generator().manual_seed(3)
    shapes = ((33, 128), (1, 33, 48), (48,))
    x, gate, weight = (torch.randn(shape, generator=generator).to(TORCH[act]) for shape in shapes)
    write_folder(tmp_path, program, {"w": StoredParam.of(weight.float())})
    made = generate(program, parse_targets(targets, act), schemas={"example::gated_norm": ORDER})
    put_kernels(tmp_path, program, made)
    limits = {"max_tokens": 33, "max_seqs": 1, "max_seq_len": 33}
    runner = native().Runner(str(tmp_path), **limits, num_threads=1, poison=True, device=device, act=act)
    assert runner.plan()["instructions"][0]["kernel"] == "example::gated_norm.generated"
    inputs = {"x": to_numpy(x), "g": to_numpy(gate)}
    found = runner.step(**step_arguments(Batch.of([33])), inputs=inputs)["outputs"]["y"]
    expected = module.gated_norm(x[None, :, 64:112], gate, weight, 1e-5)
    tolerance = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 5e-6}[act]
    torch.testing.assert_close(to_torch(found, TORCH[act]), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", [device_param("cuda-emulated")])
def test_an_operator_that_nothing_serves_is_named(device: str, tmp_path: Path) -> None:
    instruction, values, params = author_instruction()
    program = Program(values=[*values, Value("token_ids", "i64", ("T",)), Value("positions", "i64", ("T",))])
    program.params, program.instructions = params, [instruction]
    program.inputs = {"x": 0, "g": 1, "token_ids": 3, "positions": 4}
    program.outputs = {"y": 2}
    write_folder(tmp_path, program, {"w": StoredParam.of(torch.ones(48))})
    put_kernels(tmp_path, program, Generated())
    with pytest.raises(ValueError, match=r"expected a kernel for example::gated_norm, .*its author's Triton kernel"):
        native().Runner(str(tmp_path), max_tokens=4, max_seqs=1, max_seq_len=4, num_threads=1, device=device)
