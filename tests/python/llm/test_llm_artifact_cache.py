from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from llm_fakes import write_fake_artifact

from autodeploy.llm.artifact_cache import ArtifactCache
from autodeploy.llm.checkpoint_key import checkpoint_key


def quiet(text: str) -> None:
    pass


def make_in(marks: Path, seconds: float = 0.0):
    """A compile that leaves a mark each time it runs."""

    def make(out: Path) -> None:
        with (marks / "calls").open("a") as calls:
            calls.write("x")
        time.sleep(seconds)
        write_fake_artifact(out, None)

    return make


def compile_in_process(root: str, marks: str) -> None:
    ArtifactCache(Path(root)).find_or_make("k", "model", make_in(Path(marks), 0.3), quiet)


def test_made_once_then_found(tmp_path):
    cache = ArtifactCache(tmp_path / "cache")
    assert cache.find("k") is None
    first = cache.find_or_make("k", "a/model", make_in(tmp_path), quiet)
    assert (first / "artifact.json").is_file()
    assert cache.find_or_make("k", "a/model", make_in(tmp_path), quiet) == first == cache.find("k")
    assert (tmp_path / "calls").read_text() == "x"
    (entry,) = cache.entries()
    assert (entry.key, entry.source, entry.artifact_dir) == ("k", "a/model", first)
    assert entry.num_bytes > 0


def test_processes_compile_a_model_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(tmp_path))
    children = [context.Process(target=compile_in_process, args=arguments) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 4
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failed_compile_leaves_nothing(tmp_path, error):
    cache = ArtifactCache(tmp_path / "cache")

    def make(out: Path) -> None:
        write_fake_artifact(out, None)
        raise error

    with pytest.raises(type(error)):
        cache.find_or_make("k", "m", make, quiet)
    assert list((tmp_path / "cache" / "artifacts").iterdir()) == []
    assert cache.find_or_make("k", "m", make_in(tmp_path), quiet).is_dir()


def test_what_a_killed_compile_left_is_removed(tmp_path):
    cache = ArtifactCache(tmp_path)
    (tmp_path / "artifacts" / ".k.99999.tmp" / "artifact").mkdir(parents=True)
    cache.find_or_make("k", "m", make_in(tmp_path), quiet)
    assert [p.name for p in (tmp_path / "artifacts").iterdir()] == ["k"]


def test_a_damaged_entry_is_made_anew(tmp_path):
    cache = ArtifactCache(tmp_path)
    artifact = cache.find_or_make("k", "m", make_in(tmp_path), quiet)
    (artifact / "artifact.json").write_text("{")
    assert cache.find("k") is None
    cache.find_or_make("k", "m", make_in(tmp_path), quiet)
    assert cache.find("k") == artifact


def test_clear(tmp_path):
    cache = ArtifactCache(tmp_path / "cache")
    for key in "abc":
        cache.find_or_make(key, key, make_in(tmp_path), quiet)
    assert cache.clear(["b"]) == 1
    assert {entry.key for entry in cache.entries()} == {"a", "c"}
    assert cache.clear() == 2
    assert cache.entries() == []
    assert ArtifactCache(tmp_path / "nowhere").clear() == 0


def test_the_last_used_stands_first(tmp_path):
    cache = ArtifactCache(tmp_path)
    for key in "ab":
        cache.find_or_make(key, key, make_in(tmp_path), quiet)
        os.utime(tmp_path / "artifacts" / key / "entry.json", (1000 + ord(key), 1000 + ord(key)))
    assert [entry.key for entry in cache.entries()] == ["b", "a"]
    cache.find("a")
    assert [entry.key for entry in cache.entries()] == ["a", "b"]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^\[cache\] .* cannot be written: .*AUTODEPLOY_CACHE_DIR"):
        ArtifactCache(tmp_path / "file").find_or_make("k", "m", make_in(tmp_path), quiet)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard_of", "hidden_size": 8}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    (folder / "modeling_own.py").write_text("x = 1")
    return folder


def test_the_key_follows_everything_that_matters(checkpoint):
    def key(remote: bool = False) -> str:
        return checkpoint_key(checkpoint, trust_remote_code=remote)

    seen = [key()]
    assert key() == seen[0]
    weights = checkpoint / "model.safetensors"
    stat = weights.stat()

    def change_header() -> None:
        data = weights.read_bytes().replace(b"F32", b"I32")
        weights.write_bytes(data)
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    changes = [
        lambda: (checkpoint / "config.json").write_text('{"model_type": "unheard_of", "hidden_size": 9}'),
        lambda: (checkpoint / "modeling_own.py").write_text("x = 2"),
        lambda: (checkpoint / "tokenizer.json").write_text("{}"),
        lambda: os.utime(weights, ns=(0, 12345)),
        change_header,
    ]
    for change in changes:
        change()
        seen.append(key())
    seen.append(key(remote=True))
    assert len(set(seen)) == len(seen)


def test_the_key_of_a_file_and_of_a_broken_one(tmp_path):
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    assert len(checkpoint_key(gguf, trust_remote_code=False)) == 40
    short = tmp_path / "short"
    short.mkdir()
    (short / "model.safetensors").write_bytes(b"\xff" * 9)
    assert checkpoint_key(short, trust_remote_code=False)


def test_a_full_disk(tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = ArtifactCache(tmp_path / "cache")
    monkeypatch.setattr("autodeploy.llm.artifact_cache.os.rename", full)
    with pytest.raises(ValueError, match=r"No space left.*autodeploy cache clear"):
        cache.find_or_make("k", "m", make_in(tmp_path), quiet)
    assert list((tmp_path / "cache" / "artifacts").iterdir()) == []
