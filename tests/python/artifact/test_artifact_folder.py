"""Artifact folders: written whole or not at all, read back, and refused when damaged."""

import errno
import json
import os

import pytest
from artifact_programs import tiny_program

from autodeploy.artifact import ArtifactError, Provenance, is_artifact, read_artifact, read_manifest, write_artifact

WEIGHTS = {"format": "autodeploy.weights", "version": {"major": 1, "minor": 0}, "sources": [], "tensors": {}}
PROVENANCE = Provenance("somewhere/model", "abc", {"torch": "2", "autodeploy": "0"}, remote_code=True)


def write(folder, **extra):
    files = {"constants.bin": b"\x02\0\0\0\0\0\0\0{}", **{k.replace("__", "."): v for k, v in extra.items()}}
    return write_artifact(folder, tiny_program(), WEIGHTS, PROVENANCE, files)


def test_round_trip(tmp_path):
    target = write(tmp_path / "a" / "b", tokenizer__json=b"{}", weights__bin=lambda path: path.write_bytes(b"x" * 10))
    artifact = read_artifact(target)
    assert artifact.program == tiny_program()
    assert artifact.weights == WEIGHTS
    assert artifact.provenance == PROVENANCE
    assert artifact.files["weights.bin"] == 10
    assert artifact.read_text("tokenizer.json") == "{}"
    assert artifact.read_text("chat_template.jinja") is None
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]


def test_an_artifact_and_an_empty_folder_are_replaced_anything_else_is_not(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    write(target, tokenizer__json=b"{}")
    write(target)
    assert "tokenizer.json" not in read_artifact(target).files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an artifact and not empty"):
        write(precious)
    with pytest.raises(ArtifactError, match="found a file"):
        write(precious / "thesis.txt")
    assert (precious / "thesis.txt").read_text() == "years of work"


class FullDisk:
    """Content whose writing fails half-way."""

    def __init__(self, error):
        self.error = error

    def __call__(self, path):
        path.write_bytes(b"half")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ArtifactError, "no space left.*another disk"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), ArtifactError, "not allowed"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), ArtifactError, "could not write"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_after_a_failure_and_the_old_artifact_stays(tmp_path, error, raised, message, existing):
    target = tmp_path / "out"
    if existing:
        write(target, tokenizer__json=b"{}")
    with pytest.raises(raised, match=message):
        write(target, weights__bin=FullDisk(error))
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if existing else [])
    if existing:
        assert "tokenizer.json" in read_artifact(target).files


def test_a_really_full_disk(tmp_path):
    """/dev/full answers ENOSPC to every write."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")

    def fill(path):
        with open("/dev/full", "wb") as f:
            f.write(b"x" * 100000)

    with pytest.raises(ArtifactError, match="no space left"):
        write(tmp_path / "out", weights__bin=fill)
    assert not list(tmp_path.iterdir())


def test_a_bad_program_or_file_is_refused_before_anything_is_written(tmp_path):
    program = tiny_program()
    program.outputs["logits"] = 99
    with pytest.raises(ArtifactError, match="outputs"):
        write_artifact(tmp_path / "out", program, WEIGHTS, PROVENANCE, {"constants.bin": b""})
    with pytest.raises(ArtifactError, match=r"expected constants\.bin"):
        write_artifact(tmp_path / "out", tiny_program(), WEIGHTS, PROVENANCE, {"constants.bin": b"", "x.py": b""})
    with pytest.raises(ArtifactError, match=r"expected constants\.bin"):
        write_artifact(tmp_path / "out", tiny_program(), WEIGHTS, PROVENANCE, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("artifact.json", None, "not an artifact folder"),
        ("artifact.json", b"{", "expected JSON"),
        ("artifact.json", b"\xff\xfe", "expected JSON"),
        ("artifact.json", b'{"format": "autodeploy.artifact", "format": 1}', "names a field twice"),
        ("artifact.json", b'{"format": "autodeploy.artifact"}', '"version" is missing'),
        ("program.json", None, "No such file.*damaged"),
        ("program.json", b"{}", "expected .* bytes, found 2"),
        ("constants.bin", b"", "expected 10 bytes, found 0"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, name, content, message):
    target = write(tmp_path / "out")
    if content is None:
        (target / name).unlink()
    else:
        (target / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(target)


@pytest.mark.parametrize("content", ["{" * 100000, "[" * 100000, '{"a": NaN}', "[]", "3", ""])
def test_strange_program_files_give_one_error(tmp_path, content):
    target = write(tmp_path / "out")
    (target / "program.json").write_text(content)
    manifest = json.loads((target / "artifact.json").read_text())
    manifest["files"]["program.json"]["size"] = len(content)
    (target / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"program.json"):
        read_artifact(target)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "..", "artifact.json", ""])
def test_file_names_stay_inside(tmp_path, name):
    target = write(tmp_path / "out")
    manifest = json.loads((target / "artifact.json").read_text())
    manifest["files"][name] = {"size": 1}
    (target / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="plain file names"):
        read_manifest(target)


def test_recognising(tmp_path):
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "missing")
    assert is_artifact(write(tmp_path / "out"))
