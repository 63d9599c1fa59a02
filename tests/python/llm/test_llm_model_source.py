from __future__ import annotations

import json

import pytest
from llm_fakes import write_fake_artifact

from autodeploy.llm import model_source
from autodeploy.llm.artifact_cache import ArtifactCache
from autodeploy.llm.model_source import prepare_artifact


@pytest.fixture
def compiles(monkeypatch):
    """Compiles and look-ups, recorded in place of child processes."""
    calls: list[tuple] = []

    def compile_in_child(model, out, *, revision, trust_remote_code, report):
        calls.append(("compile", model, revision, trust_remote_code))
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
