"""Linking a compiler's params to a checkpoint, and packing the result into one file."""

import json
import tracemalloc
from dataclasses import dataclass
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from autodeploy.weights import expr as e
from autodeploy.weights import pack
from autodeploy.weights.checkpoint import SINGLE, open_checkpoint, tensor_reader
from autodeploy.weights.derive import Derivation
from autodeploy.weights.errors import WeightError
from autodeploy.weights.evaluate import evaluate
from autodeploy.weights.link import link
from autodeploy.weights.weight_program import WeightProgram


@dataclass
class Part:
    rows: int
    expr: dict


@dataclass
class Param:
    name: str
    shape: tuple
    segments: list


def leaf(name, op="tensor"):
    return {"op": op, "name": name}


@pytest.fixture
def linked(tmp_path):
    """Two tensors, a saved buffer and a computed one; a fused param, a changed one, a scalar, a constant."""
    tensors = {
        "q": torch.randn(6, 64),
        "k": torch.randn(2, 64, dtype=torch.float32).to(torch.bfloat16),
        "saved": torch.tensor([1.0, 2.0]),
        "s": torch.tensor(3.0),
        "stranger": torch.zeros(1),
    }
    save_file(tensors, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    origins = {f"model.{n}": t.expr(n) for n, t in checkpoint.tensors.items() if n not in ("stranger", "saved")}
    derivation = Derivation(origins | {"saved": checkpoint.tensors["saved"].expr("saved")}, ["stranger"])
    one_plus = {"op": "binary", "f": "add", "x": leaf("model.k"), "y": 1.0}
    params = [
        Param("qk", (8, 64), [Part(6, leaf("model.q")), Part(2, leaf("model.k"))]),
        Param("one_plus_k", (2, 64), [Part(2, one_plus)]),
        Param("scalar", (), [Part(1, leaf("model.s"))]),
        Param("inv_freq", (3,), [Part(3, leaf("inv_freq", "constant"))]),
        Param("saved", (2,), [Part(2, leaf("saved", "constant"))]),
        Param("ids", (2, 2), [Part(2, leaf("ids", "constant"))]),
    ]
    constants = {
        "inv_freq": ("f32", np.array([1, 0.5, 0.25], "<f4")),
        "saved": ("f32", np.zeros(2, "<f4")),
        "ids": ("i64", np.arange(4, dtype="<i8").reshape(2, 2)),
    }
    program, content = link(params, constants, derivation, checkpoint)
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "constants.bin").write_bytes(content)
    return program, folder, tensors


def values(program, folder):
    read = tensor_reader(program.sources, program.tensors, folder)
    made = {p.name: [evaluate(s.expr, read) for s in p.segments] for p in program.params}
    return {n: [(s.format, s.to_f32()) for s in segments] for n, segments in made.items()}


def test_link(linked):
    program, folder, tensors = linked
    found = values(program, folder)
    assert [f for f, _ in found["qk"]] == ["f32", "bf16"]
    np.testing.assert_array_equal(found["qk"][1][1], tensors["k"].float().numpy())
    np.testing.assert_array_equal(found["one_plus_k"][0][1], tensors["k"].float().numpy() + 1)
    assert found["scalar"][0][1] == 3
    np.testing.assert_array_equal(found["inv_freq"][0][1], [1, 0.5, 0.25])
    np.testing.assert_array_equal(found["saved"][0][1], [1, 2], "a saved buffer comes from the checkpoint")
    np.testing.assert_array_equal(found["ids"][0][1], [[0, 1], [2, 3]])
    assert program.unused == ["stranger"]
    assert "stranger" not in program.tensors
    with safe_open(folder / "constants.bin", "np") as constants:
        assert set(constants.keys()) == {"constants/inv_freq", "constants/ids"}


def test_json_round_trip_and_schema(linked):
    program, folder, _ = linked
    raw = json.loads(json.dumps(program.to_json(), allow_nan=False))
    jsonschema.validate(raw, json.loads((files("autodeploy.artifact") / "schemas" / "weights.schema.json").read_text()))
    again = WeightProgram.from_json(raw)
    assert again.to_json() == raw
    found, want = values(again, folder), values(program, folder)
    for name in want:
        for (f1, a), (f2, b) in zip(found[name], want[name], strict=True):
            assert f1 == f2
            np.testing.assert_array_equal(a, b)


def test_links_that_lead_nowhere(linked, tmp_path):
    checkpoint = open_checkpoint(tmp_path)
    for bad, message in [
        (Param("x", (6, 64), [Part(6, leaf("model.unheard"))]), "has nothing for 'model.unheard'"),
        (Param("x", (6,), [Part(6, leaf("unheard", "constant"))]), "expected a constant"),
        (Param("x", (6, 63), [Part(6, leaf("model.q"))]), r"x\] expected a segment of shape"),
        (Param("x", (7, 64), [Part(6, leaf("model.q"))]), r"x\] expected segments of \[7\] rows"),
    ]:
        with pytest.raises(WeightError, match=message):
            link([bad], {}, Derivation({"model.q": checkpoint.tensors["q"].expr("q")}), checkpoint)


BROKEN = [
    (("format",), "x", "expected the format"),
    (("version", "major"), 3, "expected version 1.x"),
    (("sources", 0, "fingerprint"), "AB", "SHA-256"),
    (("sources", 0, "header_bytes"), 10**9, "header_bytes of at most"),
    (("tensors", "q", "source"), 9, "source below 2"),
    (("tensors", "q", "nbytes"), 4, "expected 1536 bytes"),
    (("tensors", "q", "offset"), 10**9, "beyond the"),
    (("tensors", "q", "format"), "q9", "expected a format"),
    (("tensors", "q", "shape"), [2**40, 2**40], "bytes for"),
    (("params", 0, "name"), "saved", "of their own"),
    (("params", 0, "segments"), [], "at least one segment"),
    (("params", 0, "segments", 0, "rows"), 5, "a segment of shape"),
    (("params", 0, "segments", 0, "format"), "f16", "expected the format f32"),
    (("params", 0, "segments", 0, "expr", "name"), "nothing", "expected a tensor of this file"),
    (("params", 0, "segments", 0, "expr", "op"), "constant", "expected a tensor of this file"),
]


@pytest.mark.parametrize(("path", "value", "message"), BROKEN, ids=[b[2] for b in BROKEN])
def test_broken_weight_programs_are_refused(linked, path, value, message):
    raw = json.loads(json.dumps(linked[0].to_json()))
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(WeightError, match=message):
        WeightProgram.from_json(raw)


def test_pack(linked):
    program, folder, _ = linked
    packed, header = pack.plan_pack(program)
    steps = []
    pack.write_packed(
        program, packed, header, folder, folder / "weights.bin", lambda done, total: steps.append((done, total))
    )
    found, want = values(packed, folder), values(program, folder)
    assert found.keys() == want.keys()
    for name in want:
        for (f1, a), (f2, b) in zip(found[name], want[name], strict=True):
            assert f1 == f2
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert all(t.offset % 4096 == 0 for t in packed.tensors.values())
    assert all(s.expr.op == "tensor" for p in packed.params for s in p.segments)
    assert steps[-1][0] == steps[-1][1]
    (source,) = packed.sources
    assert source.path == "weights.bin"
    assert source.size == (folder / "weights.bin").stat().st_size


def test_packing_is_done_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_CHUNK_BYTES", 1 << 16)
    save_file({"a": torch.randn(4096, 512), "b": torch.randn(512, 4096)}, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    transposed = {"op": "permute", "x": leaf("b"), "dims": [1, 0]}
    joined = {"op": "cat", "xs": [leaf("a"), {"op": "unary", "f": "neg", "x": transposed}], "dim": 1}
    origins = {n: t.expr(n) for n, t in checkpoint.tensors.items()}
    program, _ = link([Param("x", (4096, 1024), [Part(4096, joined)])], {}, Derivation(origins), checkpoint)
    packed, header = pack.plan_pack(program)
    tracemalloc.start()
    pack.write_packed(program, packed, header, tmp_path, tmp_path / "weights.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, "a param of 16 MiB was made in one piece"
    read = tensor_reader(packed.sources, packed.tensors, tmp_path)
    want = evaluate(program.params[0].segments[0].expr, checkpoint.reader()).to_f32()
    np.testing.assert_array_equal(read("x").to_f32(), want)


def test_blocks_survive_linking_or_are_noted(tmp_path):
    stored = e.tensor("q", "q8_0", (4, 64))
    checkpoint = open_checkpoint_with(tmp_path, stored)
    keep = {"op": "slice", "x": leaf("w"), "dim": 0, "start": 0, "stop": 2, "step": 1}
    turn = {"op": "permute", "x": leaf("w"), "dims": [1, 0]}
    back = {"op": "permute", "x": turn, "dims": [1, 0]}
    params = [
        Param("keep", (2, 64), [Part(2, keep)]),
        Param("back", (4, 64), [Part(4, back)]),
        Param("turn", (64, 4), [Part(64, turn)]),
    ]
    program, _ = link(params, {}, Derivation({"w": stored}), checkpoint)
    assert [p.segments[0].expr.format for p in program.params] == ["q8_0", "q8_0", "f32"]
    assert ["1 tensors of q8_0 are dequantized" in n for n in program.notes] == [True]


def open_checkpoint_with(tmp_path, x):
    from autodeploy.weights.checkpoint import Checkpoint
    from autodeploy.weights.formats import stored_bytes
    from autodeploy.weights.weight_program import Source, StoredTensor

    nbytes = stored_bytes(x.format, x.shape)
    span = StoredTensor(0, 0, nbytes, x.format, x.shape)
    return Checkpoint("gguf", tmp_path / "m.gguf", [Source("m.gguf", nbytes, 0, "0" * 64)], {x.attrs["name"]: span})
