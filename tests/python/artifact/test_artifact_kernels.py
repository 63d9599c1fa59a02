"""kernels.json: written with its binaries, read back, refused when anything of it is wrong or damaged."""

import copy
import dataclasses
import json
from importlib.resources import files

import jsonschema
import pytest
from artifact_programs import tiny_program

from autodeploy.artifact import ArtifactError, Provenance, read_artifact, write_artifact
from autodeploy.artifact.files import dump_json
from autodeploy.artifact.kernels import Kernel, KernelArg, Kernels, Launch, Scratch, check_kernels, digest

CODE, PTX = b"\x7fELF machine code", b".version 8.0 .target sm_80"
ARGS = (KernelArg("ptr", 16), KernelArg("ptr", 16), KernelArg("i64"), KernelArg("f32"))


def kernel(content: bytes, target: str, **more: object) -> Kernel:
    suffix = "cubin" if target.startswith("sm") else "ptx"
    sha = digest(content)
    made = Kernel(f"{sha[:32]}.{suffix}", len(content), sha, target, "region_max_silu", 4, ARGS, **more)
    return made


def tiny_kernels() -> tuple[Kernels, dict[str, bytes]]:
    """Kernels for the region of the tiny program, and for the one in its composite."""
    found = [kernel(CODE, "sm_90", shared_bytes=64), kernel(PTX, "compute_80", global_scratch=Scratch(128, 128))]
    by_act = {"bfloat16": {"sm_90": 0, "compute_80": 1}}
    count = {"numel": ["out", 0]}
    grid = ({"cdiv": [count, 1024]}, 1, {"max": [1, {"size": ["in", 0, 0]}]})
    launches = [
        Launch((3, 0), ({"in": 1}, {"out": 0}, {"mul": [count, {"stride": ["in", 0, 0]}]}, 0.5), grid, by_act),
        Launch((3,), ({"in": 0}, {"out": 0}, {"min": [count, 7]}, {"attr": "eps"}), grid, by_act),
    ]
    binaries = {k.file: c for k, c in zip(found, (CODE, PTX), strict=True)}
    return Kernels("", {"triton": "3.6.0"}, found, launches), binaries


def write(folder, kernels, binaries):
    return write_artifact(folder, tiny_program(), {}, Provenance("x"), {"constants.bin": b""}, kernels, binaries)


def test_round_trip(tmp_path):
    kernels, binaries = tiny_kernels()
    target = write(tmp_path / "a", kernels, binaries)
    artifact = read_artifact(target)
    assert artifact.kernels == kernels
    assert kernels.program == digest((target / "program.json").read_bytes())
    assert {p.name: p.read_bytes() for p in (target / "kernels").iterdir()} == binaries
    assert artifact.files["kernels.json"] == (target / "kernels.json").stat().st_size
    # A model that was compiled without has neither file nor folder, also in the place of one that had them.
    write(target, None, None)
    assert read_artifact(target).kernels is None
    assert not (target / "kernels").exists()


def test_schema(tmp_path):
    schema = json.loads((files("autodeploy.artifact") / "schemas" / "kernels.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads((write(tmp_path / "a", *tiny_kernels()) / "kernels.json").read_text())
    jsonschema.validate(data, schema)
    for spoil in (
        lambda d: d["kernels"][0].update(num_warps=3),
        lambda d: d["kernels"][0].update(file="../../etc/passwd"),
        lambda d: d["launches"][0].update(path=[]),
        lambda d: d["launches"][0]["args"].append({"in": 0, "out": 0}),
        lambda d: d["launches"][0]["kernels"].update(int8={}),
    ):
        broken = copy.deepcopy(data)
        spoil(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def damage(target, name, change):
    path = target / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-1] + b"!", lambda b: b + b"!"])
def test_a_damaged_binary_is_refused(tmp_path, change):
    kernels, binaries = tiny_kernels()
    target = write(tmp_path / "a", kernels, binaries)
    damage(target, f"kernels/{kernels.kernels[0].file}", change)
    with pytest.raises(ArtifactError, match="expected other content: the artifact is damaged"):
        read_artifact(target)


def test_a_missing_binary_is_refused(tmp_path):
    kernels, binaries = tiny_kernels()
    target = write(tmp_path / "a", kernels, binaries)
    (target / "kernels" / kernels.kernels[1].file).unlink()
    with pytest.raises(ArtifactError, match=r"No such file.*compile it again"):
        read_artifact(target)


def test_the_writer_wants_every_binary(tmp_path):
    kernels, binaries = tiny_kernels()
    with pytest.raises(ArtifactError, match="expected the binaries of its kernels"):
        write(tmp_path / "a", kernels, {})
    with pytest.raises(ArtifactError, match="is another than the one described"):
        write(tmp_path / "a", kernels, {name: content + b"!" for name, content in binaries.items()})
    assert list(tmp_path.iterdir()) == []


def test_kernels_of_another_program_are_refused(tmp_path):
    target = write(tmp_path / "a", *tiny_kernels())
    other = dump_json(tiny_program().to_json()).replace(b"m.py:1", b"m.py:2")
    (target / "program.json").write_bytes(other)
    with pytest.raises(ArtifactError, match="was written for another program"):
        read_artifact(target)


def launch(**more):
    return lambda k: k.launches.__setitem__(0, dataclasses.replace(k.launches[0], **more))


def first(**more):
    return lambda k: k.kernels.__setitem__(0, dataclasses.replace(k.kernels[0], **more))


def args_of(position, expression):
    def change(kernels):
        args = list(kernels.launches[0].args)
        args[position] = expression
        launch(args=tuple(args))(kernels)

    return change


DEEP = {"numel": ["out", 0]}
for _ in range(9):
    DEEP = {"add": [DEEP, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(num_warps=3), "a power of two up to 32 of warps, found 3"),
        (first(target="compute_90"), "a file of ptx"),
        (first(target="sm_9"), "a target such as sm_90"),
        (first(shared_bytes=1 << 30), "shared bytes"),
        (first(cluster=(17, 1, 1)), "cluster dims from 1 to 16"),
        (first(global_scratch=Scratch(1 << 40, 1)), "bytes of scratch"),
        (first(global_scratch=Scratch(16, 3)), "an alignment"),
        (first(args=(KernelArg("i8"), *ARGS[1:])), "args of ptr, i32, i64, f32, found i8"),
        (first(args=(KernelArg("ptr", 12), *ARGS[1:])), "a power of two up to 4096"),
        (first(args=ARGS[1:]), "expected 3 args for kernel 0, found 4"),
        (launch(path=(4, 0)), "leads to no instruction"),
        (launch(path=(7,)), "leads to no instruction"),
        (launch(path=(3,)), "a second launch of the same instruction"),
        (launch(body=0), "expected a body below 0"),
        (launch(kernels={}), "at least one kernel"),
        (launch(kernels={"int8": {"sm_90": 0}}), "activation types of bfloat16"),
        (launch(kernels={"bfloat16": {"sm_90": 1}}), "kernel 1 is none for sm_90"),
        (launch(kernels={"bfloat16": {"sm_90": 9}}), "kernel 9 is none for sm_90"),
        (launch(grid=(1, {"out": 0}, 1)), "expected an integer expression for i64"),
        (args_of(0, 3), "expected an operand for ptr"),
        (args_of(0, {"in": 2}), "expected an operand for ptr"),
        (args_of(0, {"numel": ["in", 0]}), "expected an operand for ptr"),
        (args_of(2, 0.5), "expected an integer expression"),
        (args_of(2, {"in": 0}), "expected an integer expression"),
        (args_of(2, {"size": ["in", 0, 8]}), "expected an integer expression"),
        (args_of(2, {"size": ["in", 0]}), "expected an integer expression"),
        (args_of(2, {"numel": ["out", 1]}), "expected an integer expression"),
        (args_of(2, {"sub": [1, 2]}), "expected an integer expression"),
        (args_of(2, {"mul": [1]}), "expected an integer expression"),
        (args_of(2, {"mul": [1, 2], "add": [1, 2]}), "expected an integer expression"),
        (args_of(2, DEEP), "expected an integer expression"),
        (args_of(3, {"attr": "nothing"}), "expected a number or an attribute"),
        (args_of(3, {"numel": ["in", 0]}), "expected a number or an attribute"),
    ],
)
def test_what_is_refused(change, message):
    kernels, _ = tiny_kernels()
    check_kernels(kernels, tiny_program(), "")
    change(kernels)
    with pytest.raises(ArtifactError, match=message):
        check_kernels(kernels, tiny_program(), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["version"].update(major=2), "expected version 1.x, found 2.0"),
        (lambda d: d.update(program="abc"), "expected the sha256 of program.json"),
        (lambda d: d["kernels"][0].update(file="../x.cubin"), "expected a digest with the suffix"),
        (lambda d: d["kernels"][0].update(symbol="a b"), "expected the name of a function"),
        (lambda d: d["kernels"][0].update(more=1), 'found an unknown field "more"'),
        (lambda d: d["kernels"][0].update(cluster=[1, 1]), "expected three dims, found 2"),
        (lambda d: d["launches"][0].update(grid=[1]), "expected three dims, found 1"),
        (lambda d: d["launches"][0].update(path=[0] * 6), "expected 1 to 5 indices, found 6"),
        (lambda d: d["launches"][0]["kernels"]["bfloat16"].update(sm_90=-1), "expected an integer from 0"),
    ],
)
def test_what_the_reader_refuses(tmp_path, change, message):
    data = json.loads((write(tmp_path / "a", *tiny_kernels()) / "kernels.json").read_text())
    change(data)
    with pytest.raises(ArtifactError, match=message):
        Kernels.from_json(data)
