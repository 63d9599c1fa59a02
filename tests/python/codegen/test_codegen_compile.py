"""Real compilation: machine code and PTX for every node op and pattern, what they load, equal sources once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from test_codegen_iteration import CASES

from autodeploy.artifact import Program
from autodeploy.artifact.op_table import REGION_BOOL_OPS, REGION_OPS
from autodeploy.artifact.program import Instruction, Operand, Region, RegionNode, Value
from autodeploy.codegen.generate import generate
from autodeploy.codegen.iteration import walk_of
from autodeploy.codegen.region_source import region_source
from autodeploy.codegen.targets import parse_targets

pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")


def compiled(region: Region, made_instruction: Instruction, values: list[Value], act: str, arch: int):
    from autodeploy.codegen.triton_compile import compile_source

    source = region_source(region, walk_of(made_instruction, values, []).iteration, act)
    return compile_source(source, arch, (f"sm_{arch}", f"compute_{arch}"))


def all_ops() -> Region:
    """Every op on floats and, where it has a meaning for them, on integers and booleans."""
    inputs = ("act", "f32", "i64", "i64", "bool", "bool")
    nodes = [RegionNode("const", "f32", (), 0.37), RegionNode("const", "i64", (), 3)]
    integer = ("add", "sub", "mul", "pow", "min", "max", "neg", "abs", "sign", "square", "fmod", "floor_div", "relu")
    for op, arity in REGION_OPS.items():
        if op in ("const", "where"):
            continue
        bits = op.startswith("bit_")
        dtype = "bool" if op in REGION_BOOL_OPS else "i64" if bits else "act"
        nodes.append(RegionNode(op, dtype, (2, 3)[:arity] if bits else (0, 1)[:arity]))
        if op in integer or bits or op in REGION_BOOL_OPS:
            nodes.append(RegionNode(op, "bool" if op in REGION_BOOL_OPS else "i64", (2, 3)[:arity]))
            nodes.append(RegionNode(op, "bool", (4, 5)[:arity]))
    nodes += [RegionNode("where", dtype, (4, x, y)) for dtype, x, y in (("act", 0, 2), ("i64", 2, 3), ("bool", 4, 5))]
    return Region(inputs, tuple(nodes), tuple(range(len(inputs), len(inputs) + len(nodes))))


@pytest.mark.parametrize(("act", "arch"), [("bfloat16", 90), ("float16", 80), ("float32", 90)])
def test_every_op(act: str, arch: int) -> None:
    region = all_ops()
    dtypes = [*region.inputs, *(n.dtype for n in region.nodes)]
    values = [Value(f"x{i}", d, ("T", 40)) for i, d in enumerate(region.inputs)]
    outputs = [len(values) + o for o in range(len(region.outputs))]
    values += [Value(f"y{o}", dtypes[r], ("T", 40)) for o, r in enumerate(region.outputs)]
    instruction = Instruction("region", [Operand(i) for i in range(len(region.inputs))], outputs)
    found = compiled(region, instruction, values, act, arch)
    assert found[f"sm_{arch}"].content.startswith(b"\x7fELF")
    text = found[f"compute_{arch}"].content.decode()
    assert f".target sm_{arch}" in text
    # Quotients and roots are rounded; no product and sum of the region are one operation.
    assert "div.rn.f32" in text
    assert "sqrt.rn.f32" in text
    assert "div.full" not in text
    assert ".param" in text
    assert len(found[f"sm_{arch}"].kernel.args) == len(region.inputs) + len(region.outputs) + 1


@pytest.mark.parametrize("name", CASES)
def test_every_pattern(name: str) -> None:
    made = CASES[name]
    kernel = compiled(made.region, made.instruction, made.values, "bfloat16", 90)["sm_90"].kernel
    assert kernel.shared_bytes == 0
    assert kernel.global_scratch.bytes == 0


def loads(name: str, act: str) -> list[str]:
    made = CASES[name]
    text = compiled(made.region, made.instruction, made.values, act, 90)["compute_90"].content.decode()
    return [line.split("ld.global.")[1].split(" ")[0] for line in text.splitlines() if "ld.global." in line]


@pytest.mark.parametrize(
    ("name", "act", "expected"),
    [
        ("contiguous", "bfloat16", ["v4.b32"] * 2),
        ("contiguous", "float32", ["v4.b32"] * 4),
        ("halves of a row", "bfloat16", ["v4.b32"] * 2),
        ("heads", "bfloat16", ["v4.b32"] * 2),
        ("bias", "bfloat16", ["v4.b32"] * 2),
        ("a number per row", "bfloat16", ["v4.b32", "b16"]),
        ("transposed", "bfloat16", ["v4.b32"] * 2),
        ("a multiple of T innermost", "bfloat16", ["v4.b32"] * 2),
        ("pairs of a body", "bfloat16", ["v4.b32"] * 2),
    ],
)
def test_loads_16_bytes(name: str, act: str, expected: list[str]) -> None:
    assert sorted(loads(name, act)) == sorted(expected)


def test_an_unaligned_view_is_read_in_pieces() -> None:
    assert "v4.b32" in loads("an offset that breaks alignment", "bfloat16")  # the aligned operand
    assert loads("an offset that breaks alignment", "bfloat16").count("b16") == 8


def layers(count: int) -> Program:
    """`count` blocks of the same two regions over other values."""
    gate = Region(("act", "act"), (RegionNode("silu", "act", (0,)), RegionNode("mul", "act", (2, 1))), (3,))
    add = Region(("act", "act"), (RegionNode("add", "act", (0, 1)),), (2,))
    values = [Value("x", "act", ("T", 192)), Value("r", "act", ("T", 96))]
    instructions = []
    for i in range(count):
        v = len(values)
        values += [Value(f"g{i}", "act", ("T", 96)), Value(f"s{i}", "act", ("T", 96))]
        half = [Operand(0, None, ("T", 96), (192, 1), o) for o in (0, 96)]
        instructions.append(Instruction("region", half, [v], {"region": 0}))
        instructions.append(Instruction("region", [Operand(v), Operand(v - 1)], [v + 1], {"region": 1}))
    return Program(values=values, regions=[gate, add], instructions=instructions)


def test_equal_kernels_are_compiled_once(tmp_path: Path, monkeypatch) -> None:
    import autodeploy.codegen.generate as room

    targets = parse_targets("cuda:90", "bfloat16,float32")
    lines: list[str] = []
    made = generate(layers(16), targets, cache_folder=tmp_path, report=lines.append)
    assert len(made.kernels.launches) == 32
    assert len(made.kernels.kernels) == 2 * 2 * 2  # regions, types, targets
    assert lines[-1] == "compiling GPU kernels: 4 of 4"
    assert {k.target for k in made.kernels.kernels} == {"sm_90", "compute_80"}
    first, last = made.kernels.launches[0], made.kernels.launches[-2]
    assert first.kernels == last.kernels
    assert set(first.kernels) == {"bfloat16", "float32"}

    # A second compile is read from the cache, and equal to the first.
    monkeypatch.setattr(room, "compile_source", lambda *_: pytest.fail("compiled again"))
    again = generate(layers(16), targets, cache_folder=tmp_path)
    assert again == made


def test_a_damaged_cache_entry_is_compiled_again(tmp_path: Path) -> None:
    targets = parse_targets("cuda:90", "float32")
    made = generate(layers(1), targets, cache_folder=tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert generate(layers(1), targets, cache_folder=tmp_path) == made


def test_compiles_are_reproducible() -> None:
    targets = parse_targets("cuda:90", "bfloat16")
    assert generate(layers(1), targets) == generate(layers(1), targets)


def test_kernels_of_parts_and_bodies() -> None:
    program = layers(1)
    part = program.instructions.pop()
    composite = dataclasses.replace(part, op="add_rms_norm", parts=[part])
    program.instructions.append(composite)
    made = generate(program, parse_targets("cuda:90", "bfloat16"))
    assert [launch.path for launch in made.kernels.launches] == [(0,), (1, 0)]
