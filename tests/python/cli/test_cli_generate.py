from __future__ import annotations

import io
import json
import sys

import pytest


def test_one_prompt_streams(cli, engine, artifact):
    assert cli("generate", artifact, "--prompt", "the größer fox") == (0, "the größer fox\n", "")
    assert engine.closed


def test_chat_applies_the_template(cli, engine, artifact):
    code, out, _ = cli("generate", artifact, "--chat", "--system", "be kind", "--prompt", "hello")
    assert (code, out) == (0, "hello\n")


def test_stats_go_to_stderr(cli, engine, artifact):
    code, out, err = cli("generate", artifact, "--prompt", "the fox", "--stats")
    assert (code, out) == (0, "the fox\n")
    assert "prompt tokens" in err
    assert "first token after" in err


def test_sampling_flags_reach_the_engine(cli, engine, artifact):
    flags = "--max-tokens 7 --min-tokens 2 --temperature 0.5 --top-k 5 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2"
    flags += " --presence-penalty 0.3 --frequency-penalty 0.4 --logit-bias 3=-5 --logit-bias 4=1 --seed 11"
    flags += " --stop-token-id 9 --ignore-eos"
    assert cli("generate", artifact, "--prompt", "x", *flags.split())[0] == 0
    (params,) = engine.added
    assert params == {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {3: -5.0, 4: 1.0},
        "seed": 11,
        "logprobs": None,
        "stop_token_ids": [9],
        "eos_token_ids": params["eos_token_ids"],
        "ignore_eos": True,
    }


def test_stop_string(cli, engine, artifact):
    assert cli("generate", artifact, "--prompt", "the quick fox", "--stop", "ick")[1] == "the qu\n"


def test_many_prompts_and_json(cli, engine, artifact, tmp_path):
    (tmp_path / "p.txt").write_text("from a file")
    code, out, _ = cli("generate", artifact, "--prompt", "one", "--prompt-file", str(tmp_path / "p.txt"), "--json")
    assert code == 0
    one, two = (json.loads(line) for line in out.splitlines())
    assert (one["prompt"], one["outputs"][0]["text"]) == ("one", "one")
    assert two["outputs"][0]["finish_reason"] == "stop"
    engine.closed = False
    code, out, _ = cli("generate", artifact, "--prompt", "one", "--prompt", "two")
    assert out == "--- 1 (stop)\none\n--- 2 (stop)\ntwo\n"


def test_logprobs_in_json(cli, engine, artifact):
    _, out, _ = cli("generate", artifact, "--prompt-ids", "5,6", "--logprobs", "2", "--json", "--max-tokens", "1")
    (place,) = json.loads(out)["outputs"][0]["logprobs"]
    assert [entry["rank"] for entry in place] == [1, 2]


def test_stdin(cli, engine, artifact, monkeypatch):
    for arguments in ([], ["--prompt", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("über stdin".encode())))
        assert cli("generate", artifact, *arguments)[1] == "über stdin\n"
        engine.closed = False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "it is empty"),
        (["--prompt", "x " * 300], "at most 127 tokens"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--temperature", "hot"], "invalid float value"),
        (["--prompt", "x", "--top-p", "2"], "top_p"),
        (["--prompt", "x", "--logit-bias", "a=1"], "expected ID=NUMBER"),
        (["--prompt", "x", "--logit-bias", "1=nan"], "expected ID=NUMBER"),
        (["--prompt-ids", "1,b"], "expected numbers"),
        (["--prompt-ids", "1,100000"], "token ids from 0"),
        (["--prompt-file", "/does/not/exist"], "No such file"),
        (["--prompt", "x", "--system", "y"], "--system goes with --chat"),
        (["--prompt", "x", "--threads", "0"], "threads"),
        (["--prompt", "x", "--cache-memory", "few"], "cache_memory"),
        (["--prompt", "x", "--dtype", "int4"], "dtype"),
        (["--prompt", "x", "--revision", "main"], "revision"),
        (["--prompt", "x", "-n", "2"], "temperature is 0"),
        (["--no-such-flag"], "unrecognized arguments"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(cli, engine, artifact, arguments, words):
    code, out, err = cli("generate", artifact, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_fault_of_the_engine_is_one_line_and_exit_code_1(cli, engine, artifact):
    def broken(prompt, generated, params):
        raise RuntimeError("the device is gone")

    engine._next_token = broken
    code, _, err = cli("generate", artifact, "--prompt", "x")
    assert code == 1
    assert "the device is gone" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_debug_shows_the_traceback(cli, engine, artifact):
    for arguments in (
        ["generate", artifact, "--prompt", "", "--debug"],
        ["generate", "--debug", artifact, "--prompt", ""],
    ):
        code, _, err = cli(*arguments)
        assert code == 2
        assert "Traceback" in err
        engine.closed = False
