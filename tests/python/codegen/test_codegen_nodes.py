"""Every node op and combination of dtypes: the generated kernel against the meaning of regions."""

from __future__ import annotations

import itertools

import pytest
import torch
from interpreted_kernels import run_region_kernel
from region_cases import View, dtypes_of, instruction_of, run_made, ulps

from autodeploy.artifact.op_table import REGION_BOOL_OPS, REGION_OPS
from autodeploy.artifact.program import Region, RegionNode
from autodeploy.interpreter.region import POINTWISE

pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")

ACTS = ("bfloat16", "float16", "float32")
DTYPES = ("act", "f32", "i64", "bool")
SHAPE = (3, 40)
OPS = [op for op in REGION_OPS if op not in ("const", "where")]
# In float32, several roundings where the reference has its own formula; else an ulp: elementary functions differ.
LOOSE = {"softplus": 4.0, "sigmoid": 3.0, "silu": 3.0, "rsqrt": 2.0, "pow": 3.0}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.5, -1.5, 1e-3, 30.0, -30.0, float("inf"), float("-inf"), float("nan")]


def floats(generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(SHAPE, generator=generator) * 3
    flat = values.view(-1)
    flat[: len(SPECIAL)] = torch.tensor(SPECIAL)
    # Pairs of special values too, as operands of the same element.
    flat[len(SPECIAL) : 2 * len(SPECIAL)] = torch.tensor(SPECIAL).roll(3)
    return values


def operands(act: str) -> list[torch.Tensor]:
    """Two tensors of each dtype; the second integers are not 0, which the reference cannot divide by."""
    generator = torch.Generator().manual_seed(5)
    types = dtypes_of(act)
    made = []
    for dtype in DTYPES:
        for second in (False, True):
            if dtype == "bool":
                made.append(torch.randint(0, 2, SHAPE, generator=generator).bool())
            elif dtype == "i64":
                x = torch.randint(-9, 10, SHAPE, generator=generator)
                made.append(torch.where(x == 0, 3, x) if second else x)
            else:
                x = floats(generator)
                made.append((x.flip(0) if second else x).to(types[dtype]))
    return made


def reference_has(op: str, arguments: tuple[torch.Tensor, ...]) -> bool:
    """Whether PyTorch gives the operation a meaning for arguments of these types."""
    wide = [x.float() if x.dtype.is_floating_point else x for x in arguments]
    try:
        POINTWISE[op](*wide)
    except RuntimeError:
        return False
    # Roots and powers of integers that are no integers: the runtime's are defined, PyTorch's raise or differ.
    return not (op == "pow" and all(x.dtype in (torch.int64, torch.bool) for x in arguments))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", OPS)
def test_node(op: str, act: str) -> None:
    given = operands(act)
    nodes, outputs = [], []
    arity = REGION_OPS[op]
    for kinds in itertools.product(range(len(DTYPES)), repeat=arity):
        registers = tuple(2 * k + (place if arity == 2 else 0) for place, k in enumerate(kinds))
        if not reference_has(op, tuple(given[r] for r in registers)):
            continue
        results = ("bool",) if op in REGION_BOOL_OPS else DTYPES
        for dtype in results:
            outputs.append(2 * len(DTYPES) + len(nodes))
            nodes.append(RegionNode(op, dtype, registers))
    assert nodes, f"no combination of dtypes for {op}"
    inputs = tuple(d for d in DTYPES for _ in range(2))
    region = Region(inputs, tuple(nodes), tuple(outputs))
    made = instruction_of(region, [View(d, SHAPE) for d in inputs], SHAPE)
    found, expected = run_made(made, act, (1, 1), operands=given)
    for node, a, b in zip(nodes, found, expected, strict=True):
        limit = LOOSE.get(op, 1.0) if node.dtype == "f32" or act == "float32" else 1.0
        if node.dtype in ("i64", "bool") and any(given[r].dtype.is_floating_point for r in node.args):
            # A value next to an integer may fall on its other side.
            a, b = a.float(), b.float()
            agree = (a == b).float().mean()
            assert agree > 0.97, f"{node}: {agree:.3f} agree"
            continue
        if op in ("gelu", "gelu_tanh"):
            # 1 + erf and 1 + tanh cancel below zero; the reference has NaN for infinities.
            x = given[node.args[0]].double()
            error = (a.double() - b.double()).abs() - torch.finfo(a.dtype).eps * b.double().abs()
            assert float(torch.where(x.isfinite(), error / x.abs().clamp(min=0.5), 0.0).nan_to_num(0.0).max()) <= 3e-7
            assert torch.equal(a.isnan(), (x.isnan() | x.isneginf()))
            continue
        assert ulps(a, b) <= limit, f"{node}: {ulps(a, b):.3g} ulp"


@pytest.mark.parametrize("act", ACTS)
def test_where(act: str) -> None:
    given = operands(act)
    inputs = tuple(d for d in DTYPES for _ in range(2))
    nodes = [
        RegionNode("where", dtype, (6, 2 * a, 2 * b + 1))
        for a, b in itertools.product(range(len(DTYPES)), repeat=2)
        for dtype in DTYPES
    ]
    region = Region(inputs, tuple(nodes), tuple(range(8, 8 + len(nodes))))
    made = instruction_of(region, [View(d, SHAPE) for d in inputs], SHAPE)
    found, expected = run_made(made, act, (1, 1), operands=given)
    for node, a, b in zip(nodes, found, expected, strict=True):
        if a.dtype == torch.int64:
            # Floats that no integer is near have no meaning to agree on.
            a, b = a.clamp(-(2**40), 2**40), b.clamp(-(2**40), 2**40)
        assert ulps(a, b) == 0.0, str(node)


@pytest.mark.parametrize("op", [op for op, arity in REGION_OPS.items() if arity == 2 and op not in ("and", "or")])
def test_constants_as_arguments(op: str) -> None:
    """A value for all elements beside one for each, in both places, in every class; and two of them."""
    given = [operands("float32")[i] for i in (0, 5, 6)]
    constants = (("f32", 1.75), ("i64", 3), ("bool", True))
    nodes = [RegionNode("const", d, (), v) for d, v in constants]
    nodes += [RegionNode("const", d, (), v) for d, v in (("f32", -2.5), ("i64", -2), ("bool", False))]
    for kind in range(3):
        wide = given[kind].float() if kind == 0 else given[kind]
        if not reference_has(op, (wide, wide)):
            continue
        for pair in ((kind, 3 + kind), (3 + kind, kind), (3 + kind, 6 + kind)):
            nodes.append(RegionNode(op, "bool" if op in REGION_BOOL_OPS else constants[kind][0], pair))
    count = 3 + 6
    region = Region(("f32", "i64", "bool"), tuple(nodes), tuple(range(count, 3 + len(nodes))))
    made = instruction_of(region, [View(d, SHAPE) for d in region.inputs], SHAPE)
    found, expected = run_made(made, "float32", (1, 1), operands=given)
    for node, a, b in zip(nodes[6:], found, expected, strict=True):
        assert ulps(a, b) <= LOOSE.get(op, 1.0), f"{node}: {ulps(a, b):.3g} ulp"


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -0.5, -1.0, 1.0, 1.7, -2.0])
def test_power_of_a_constant(exponent: float, act: str) -> None:
    given = [x for x in operands(act) if x.dtype == dtypes_of(act)["act"]][:1]
    nodes = (RegionNode("const", "act", (), exponent), RegionNode("pow", "act", (0, 1)))
    made = instruction_of(Region(("act",), nodes, (2,)), [View("act", SHAPE)], SHAPE)
    (found,), (expected,) = run_made(made, act, (1, 1), operands=given)
    assert ulps(found, expected) <= 2.0


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("value", [0.1, -3.0, 1e-30, 60001.0, float("inf"), float("-inf"), float("nan"), 0.0])
def test_constants(value: float, act: str) -> None:
    nodes = (
        RegionNode("const", "act", (), value),
        RegionNode("const", "f32", (), value),
        RegionNode("const", "i64", (), 2**40 + 1),
        RegionNode("const", "bool", (), True),
        RegionNode("add", "act", (0, 1)),
        RegionNode("add", "f32", (0, 2)),
        RegionNode("add", "i64", (3, 4)),
    )
    region = Region(("act",), nodes, (1, 2, 3, 4, 5, 6, 7))
    made = instruction_of(region, [View("act", ("T", 5))], ("T", 5))
    found, expected = run_made(made, act, (7, 1))
    for node, a, b in zip(nodes, found, expected, strict=True):
        assert ulps(a, b) == 0.0, str(node)


@pytest.mark.parametrize("op", ["floor_div", "fmod", "pow"])
def test_integers_beyond_the_reference(op: str) -> None:
    """Division by zero gives 0, the least integer by -1 wraps, powers with negative exponents are 0, 1 or -1."""
    least = -(2**63)
    a = torch.tensor([5, -5, 0, least, 7, -7, 1, -1, -1, 2, 3, -2], dtype=torch.int64)
    b = torch.tensor([0, 0, 0, -1, -1, 2, -3, -3, -2, -1, 39, 63], dtype=torch.int64)
    wanted = {
        "floor_div": [0, 0, 0, least, -7, -4, -1, 0, 0, -2, 0, -1],
        "fmod": [0, 0, 0, 0, 0, -1, 1, -1, -1, 0, 3, -2],
        "pow": [1, 1, 1, 0, 0, 49, 1, -1, 1, 0, 3**39, least],
    }[op]
    region = Region(("i64", "i64"), (RegionNode(op, "i64", (0, 1)),), (2,))
    made = instruction_of(region, [View("i64", (12,)), View("i64", (12,))], (12,))
    out = torch.full((12,), 99, dtype=torch.int64)
    run_region_kernel(region, made.instruction, made.values, [], "float32", [a, b], [out], (1, 1))
    assert out.tolist() == wanted


def test_floats_that_no_integer_holds() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 2.0**62, -2.9, 2.9])
    region = Region(("f32",), (RegionNode("cast", "i64", (0,)),), (1,))
    made = instruction_of(region, [View("f32", (8,))], (8,))
    (found,), _ = run_made(made, "float32", (1, 1), operands=[x])
    least = -(2**63)
    assert found.tolist() == [least, least, least, least, least, 2**62, -2, 2]
