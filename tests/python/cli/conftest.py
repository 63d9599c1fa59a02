"""The command line over the engine of a few lines of Python."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "llm"))

from llm_fakes import CHAT_TEMPLATE, FakeEngine, byte_level_tokenizer, write_fake_artifact

import autodeploy.llm
from autodeploy.cli.main import main

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|end|>")


def echo(prompt, generated, params):
    """Says the last message, or the prompt, again."""
    text = TOKENIZER.decode(prompt, skip_special_tokens=False)
    said = text.split("<|end|>")[-2].rsplit("\n", 1)[1] if "<|end|>" in text else text
    answer = [*TOKENIZER.encode(said).ids, END]
    return answer[min(len(generated), len(answer) - 1)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTODEPLOY_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def artifact(tmp_path):
    return str(write_fake_artifact(tmp_path / "artifact", TOKENIZER, {"eos_token_id": END}, CHAT_TEMPLATE))


@pytest.fixture
def engine(monkeypatch):
    """The engine that commands will meet; one per test."""
    fake = FakeEngine(echo, vocab_size=TOKENIZER.get_vocab_size())
    with_fake = functools.partial(autodeploy.llm.LLM, engine_factory=lambda folder, options, progress: fake)
    monkeypatch.setattr(autodeploy.llm, "LLM", with_fake)
    return fake


@pytest.fixture
def cli(capsys):
    """Runs a command line; returns (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
