from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from llm_fakes import write_fake_artifact

from autodeploy import _load_native
from autodeploy.llm import gpu_kernels, model_source
from autodeploy.llm.artifact_cache import ArtifactCache
from autodeploy.llm.gpu_kernels import GpuKernels, kernels_for
from autodeploy.llm.model_source import prepare_artifact


@pytest.fixture
def compiles(monkeypatch):
    """Compiles and look-ups, recorded in place of child processes."""
    calls: list[tuple] = []

    def compile_in_child(model, out, *, revision, trust_remote_code, report, **more):
        calls.append(("compile", model, revision, trust_remote_code, *([more] if more else [])))
        write_fake_artifact(out, None)

    monkeypatch.setattr(model_source, "compile_in_child", compile_in_child)
    return calls


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "x"}))
    return folder


def test_an_artifact_is_used_as_it_is(tmp_path, compiles):
    folder = write_fake_artifact(tmp_path / "artifact", None)
    assert prepare_artifact(folder) == folder.resolve()
    with pytest.raises(ValueError, match="revision goes with a hub id"):
        prepare_artifact(folder, revision="main")
    assert compiles == []


def test_a_checkpoint_is_compiled_once(tmp_path, checkpoint, compiles):
    cache = ArtifactCache(tmp_path / "cache")
    lines: list[str] = []
    first = prepare_artifact(checkpoint, cache=cache, report=lines.append)
    assert prepare_artifact(str(checkpoint), cache=cache) == first
    assert compiles == [("compile", str(checkpoint), None, False)]
    assert lines == [f"compiling {checkpoint}"]
    other = prepare_artifact(checkpoint, cache=cache, trust_remote_code=True)
    assert other != first


def test_kernels_for_a_gpu_are_part_of_the_key(tmp_path, checkpoint, compiles):
    cache = ArtifactCache(tmp_path / "cache")
    wanted = [None, GpuKernels(90, "bfloat16"), GpuKernels(90, "float32"), GpuKernels(80, "bfloat16")]
    found = [prepare_artifact(checkpoint, cache=cache, gpu=gpu) for gpu in wanted]
    assert len(set(found)) == 4
    assert prepare_artifact(checkpoint, cache=cache, gpu=wanted[1]) == found[1]
    assert [call[4:] for call in compiles] == [
        (), *[({"device_arch": gpu.arch, "acts": [gpu.act]},) for gpu in wanted[1:]]
    ]  # fmt: skip


def test_which_kernels_a_device_wants(monkeypatch):
    native = SimpleNamespace(describe_device=lambda device: {"compute_capability": "9.0"})
    monkeypatch.setattr(_load_native, "load_native", lambda: native)
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: object())
    assert kernels_for("cpu", "auto") is None
    assert kernels_for("cuda-emulated", "auto") is None
    assert kernels_for("cuda", "auto") == GpuKernels(90, "bfloat16")
    assert kernels_for("cuda:1", "float16") == GpuKernels(90, "float16")

    def missing(device):
        raise RuntimeError("no such device")

    native.describe_device = missing
    assert kernels_for("cuda", "auto") is None
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: None)
    native.describe_device = lambda device: {"compute_capability": "9.0"}
    assert kernels_for("cuda", "auto") is None


def test_a_hub_id_is_resolved_in_a_child(tmp_path, checkpoint, compiles, monkeypatch):
    seen = []

    def resolve(model, *, revision, trust_remote_code, report):
        seen.append((model, revision))
        return checkpoint, "abc123"

    monkeypatch.setattr(model_source, "resolve_in_child", resolve)
    prepare_artifact("someone/model", revision="main", cache=ArtifactCache(tmp_path / "cache"))
    assert seen == [("someone/model", "main")]
    assert compiles == [("compile", "someone/model", "abc123", False)]


def test_bad_names(tmp_path, monkeypatch):
    monkeypatch.setattr(model_source, "resolve_in_child", lambda *_, **__: pytest.fail("looked up"))
    (tmp_path / "notes.txt").write_text("")
    for model, match in [
        ("", "expected a folder"),
        ("a\0b", "expected a folder"),
        (tmp_path / "missing", "does not exist"),
        ("./missing", "does not exist"),
        ("missing.gguf", "does not exist"),
        ("a/b/c", "does not exist"),
        (tmp_path, "expected config.json"),
        (tmp_path / "notes.txt", r"\.gguf"),
    ]:
        with pytest.raises(ValueError, match=rf"^\[model\] .*{match}"):
            prepare_artifact(model)


def test_a_damaged_artifact_is_named_as_such(tmp_path):
    (tmp_path / "artifact.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"artifact.json\] expected JSON"):
        prepare_artifact(tmp_path)
