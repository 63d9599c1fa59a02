"""Checkpoints are opened by their headers; damaged ones give one clear error that names the file."""

import contextlib
import json
import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from autodeploy.weights.checkpoint import INDEX, SINGLE, open_checkpoint
from autodeploy.weights.errors import WeightError

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
    "c.weight": torch.arange(4, dtype=torch.float16).reshape(4, 1),
    "ids": torch.arange(3),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}


def write_gguf(path, tensors=None):
    writer = gguf.GGUFWriter(str(path), "testarch")
    writer.add_uint32("testarch.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "é"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    for name, (values, kind) in (tensors or default_gguf_tensors()).items():
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def default_gguf_tensors():
    rng = np.random.default_rng(0)
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    return {f"t.{k}": (rng.normal(size=(3, 64)).astype(np.float32), gguf.GGMLQuantizationType[k]) for k in kinds}


def test_single_file_and_folder(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    for checkpoint in (open_checkpoint(tmp_path), open_checkpoint(tmp_path / SINGLE)):
        read = checkpoint.reader()
        assert checkpoint.names() == sorted(TENSORS)
        for name, want in TENSORS.items():
            found = read(name)
            assert found.shape == tuple(want.shape)
            np.testing.assert_array_equal(found.to_f32(), want.float().numpy(), err_msg=name)


def test_shards(tmp_path):
    save_file({"a": TENSORS["a.weight"]}, tmp_path / "model-1.safetensors")
    save_file({"b": TENSORS["b.weight"]}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert [t.source for t in checkpoint.tensors.values()] == [0, 1]

    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"c": "model-2.safetensors"}}))
    with pytest.raises(WeightError, match="names c, which no shard holds"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../evil.safetensors"}}))
    with pytest.raises(WeightError, match="plain file names"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(WeightError, match="weight_map"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightError, match=r"model-2\.safetensors, which is missing"):
        open_checkpoint(tmp_path)


def test_gguf(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "gguf"
    assert checkpoint.metadata["general.architecture"] == "testarch"
    assert checkpoint.metadata["flag"] is True
    assert "numbers" not in checkpoint.metadata
    read = checkpoint.reader()
    for tensor in gguf.GGUFReader(path).tensors:
        assert checkpoint.tensors[tensor.name].format == tensor.tensor_type.name.lower()
        want = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(read(tensor.name).to_f32(), want, err_msg=tensor.name)


def test_k_quants_are_refused_by_name(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"t.Q4_0") + 6 + 4 + 16
    assert struct.unpack_from("<I", raw, at) == (2,)
    struct.pack_into("<I", raw, at, 14)
    path.write_bytes(raw)
    with pytest.raises(WeightError, match=r"m\.gguf\] the tensor t\.Q4_0 has the type Q6_K.*use a file"):
        open_checkpoint(path)


def test_safetensors_of_other_types_are_named(tmp_path):
    save_file({"x": torch.zeros(4, dtype=torch.float8_e4m3fn), "y": torch.zeros(2)}, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.unsupported == {"x": "F8_E4M3"}
    assert list(checkpoint.tensors) == ["y"]


def header_of(entries, data=b""):
    raw = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(raw)) + raw + data


def span(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or no safetensors"),
        (b"\x10", "truncated or no safetensors"),
        (b"\xff" * 16, "truncated or no safetensors"),
        (header_of(b"nonsense"), "no safetensors header"),
        (header_of(b"[]"), "no safetensors header"),
        (header_of(b"[" * 100000), "no safetensors header"),
        (header_of(b'{"x": 1, "x": 2}'), "twice"),
        (header_of({"x": 1}), "makes no sense"),
        (header_of({"x": {"dtype": "F32"}}), "makes no sense"),
        (header_of({"x": span(4, 0)}, b"1234"), "makes no sense"),
        (header_of({"x": span(0, 4, [-1])}, b"1234"), "makes no sense"),
        (header_of({"x": span(0, 4, [2**40, 2**40])}, b"1234"), "makes no sense"),
        (header_of({"x": span(0, 4, [1.0])}, b"1234"), "makes no sense"),
        (header_of({"x": span(0, 8)}, b"12345678"), "takes 4"),
        (header_of({"x": span(0, 4)}, b"12"), "is truncated: x ends"),
        (header_of({"x": span(0, 4), "y": span(2, 6)}, b"123456"), "overlap"),
    ],
)
def test_damaged_safetensors(tmp_path, content, message):
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(WeightError, match=f"{SINGLE}.*{message}"):
        open_checkpoint(tmp_path)


def test_folders_without_weights(tmp_path):
    with pytest.raises(WeightError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(WeightError, match="found neither"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightError, match="pickled"):
        open_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@pytest.mark.parametrize("size", [0, 3, 4, 23, 24, 100, 400, -20, -100])
def test_truncated_gguf(tmp_path, gguf_bytes, size):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes[:size])
    with pytest.raises(WeightError, match=r"m\.gguf"):
        open_checkpoint(path)


@pytest.mark.parametrize(("at", "code", "value", "message"), [
    (0, "4s", b"GGML", "where GGUF was expected"), (4, "<I", 1, "version 1"), (4, ">I", 3, "big-endian"),
    (8, "<Q", 2**40, "counts more entries"), (16, "<Q", 2**63, "counts more entries"), (24, "<Q", 2**62, "a name of"),
])  # fmt: skip
def test_damaged_gguf(tmp_path, gguf_bytes, at, code, value, message):
    raw = bytearray(gguf_bytes)
    struct.pack_into(code, raw, at, value)
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(WeightError, match=message):
        open_checkpoint(tmp_path / "m.gguf")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_damage_never_escapes(tmp_path_factory, gguf_bytes, data):
    raw = bytearray(gguf_bytes[:900])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(bytes(raw) + gguf_bytes[900:])
    with contextlib.suppress(WeightError):
        open_checkpoint(path)


def test_a_file_that_changed_is_noticed(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    save_file({k: v for k, v in TENSORS.items() if k != "ids"}, tmp_path / SINGLE)
    with pytest.raises(WeightError, match="is not the file that was compiled"):
        checkpoint.reader()("a.weight")
    (tmp_path / SINGLE).unlink()
    with pytest.raises(WeightError, match="does not exist"):
        checkpoint.reader()("a.weight")
