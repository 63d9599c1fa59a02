from __future__ import annotations

import io
import sys


def talk(cli, monkeypatch, artifact, text, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli("chat", artifact, *arguments)


def test_a_conversation_is_remembered(cli, engine, artifact, monkeypatch):
    prompts = []
    model = engine._next_token

    def watch(prompt, generated, params):
        if not generated:
            prompts.append(len(prompt))
        return model(prompt, generated, params)

    engine._next_token = watch
    code, out, _ = talk(cli, monkeypatch, artifact, "hello\n\nfox\n/reset\nfox\n/nonsense\n/exit\nnever\n")
    assert code == 0
    lines = out.splitlines()
    assert lines[:4] == ["hello", "fox", "(forgotten)", "fox"]
    assert "never" not in out
    assert prompts[1] > prompts[0]
    assert prompts[2] < prompts[1]


def test_end_of_input_leaves(cli, engine, artifact, monkeypatch):
    assert talk(cli, monkeypatch, artifact, "hello") == (0, "hello\n", "")


def test_too_long_a_conversation_is_said_and_survived(cli, engine, artifact, monkeypatch):
    code, out, err = talk(cli, monkeypatch, artifact, "word " * 200 + "\nhello\n")
    assert code == 0
    assert "/reset begins anew" in err
    assert out == "hello\n"


def test_ctrl_c_stops_the_answer_only(cli, engine, artifact, monkeypatch):
    model = engine._next_token
    asked = []

    def interrupting(prompt, generated, params):
        if not asked:
            import os
            import signal

            asked.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            engine._step_seconds = 0.05
        return model(prompt, generated, params)

    engine._next_token = interrupting
    code, out, _ = talk(cli, monkeypatch, artifact, "the quick brown fox jumps over the lazy dog\nhello\n")
    assert code == 0
    assert "(stopped)" in out
    assert out.endswith("hello\n")


def test_a_model_without_template(cli, engine, artifact, monkeypatch):
    import pathlib

    pathlib.Path(artifact, "chat_template.jinja").unlink()
    code, _, err = talk(cli, monkeypatch, artifact, "hello\n")
    assert code == 2
    assert "no chat template" in err
