"""Models that transformers has never seen: code that comes with the checkpoint, a kernel that comes with the code."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from custom_models import checkpoint, clean_up, plugin

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def _folders():
    yield
    clean_up()


def autodeploy(*arguments: object, cache: Path, status: int = 0, **environment: str) -> str:
    """Runs the command line in a process of its own and returns what it printed, both streams."""
    command = [sys.executable, "-m", "autodeploy", *map(str, arguments)]
    env = {**os.environ, "AUTODEPLOY_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


NAMES = ("dense", "hybrid", "own_kernel")


def flags(name: str) -> list[str]:
    return ["--trust-remote-code", *(["--plugin", str(plugin())] if name == "own_kernel" else [])]


@pytest.mark.parametrize("name", NAMES)
def test_a_private_model_verifies_and_generates(name: str, tmp_path: Path) -> None:
    model = checkpoint(name)
    report = json.loads(autodeploy("verify", model, *flags(name), "--json", cache=tmp_path))
    assert report["ok"] is True
    assert len(report["checks"]) == 4
    text = autodeploy(
        "generate", model, *flags(name), "--prompt-ids", "5,9,31", "--max-tokens", "6", "--temperature", "0", "--json",
        "--ignore-eos", cache=tmp_path,
    )  # fmt: skip
    output = json.loads(text.splitlines()[-1])
    assert output["prompt_token_ids"] == [5, 9, 31]
    assert len(output["outputs"][0]["token_ids"]) == 6


@pytest.mark.parametrize("name", NAMES)
def test_its_code_runs_only_where_that_is_asked_for(name: str, tmp_path: Path) -> None:
    text = autodeploy("compile", checkpoint(name), "-o", tmp_path / "out", cache=tmp_path, status=2)
    assert "--trust-remote-code" in text
    assert not (tmp_path / "out").exists()


def test_a_learned_prefix_and_written_recurrences(tmp_path: Path) -> None:
    """Five learned rows are reserved ids that the engine puts before every prompt; loops over tokens are mixers."""
    artifact = tmp_path / "artifact"
    autodeploy("compile", checkpoint("hybrid"), "-o", artifact, "--trust-remote-code", cache=tmp_path)
    program = json.loads((artifact / "program.json").read_text())
    vocab = program["metadata"]["vocab_size"]
    assert program["metadata"]["prefix_tokens"] == list(range(vocab, vocab + 5))
    ops = [i["op"] for i in program["instructions"]]
    assert [ops.count(op) for op in ("attention", "ssd", "gated_delta_rule", "causal_conv1d")] == [2, 1, 1, 2]
    from autodeploy import LLM, SamplingParams

    with LLM(artifact, max_seq_len=12, threads=1, progress=False) as llm:
        plan = llm.plan()["limits"]
        assert (llm.max_seq_len, plan["max_seq_len"], plan["num_prefix_tokens"]) == (12, 12, 5)
        greedy = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True, repetition_penalty=1.2)
        (output,) = llm.generate([7, 8, 9], greedy)
        assert output.prompt_token_ids == [7, 8, 9]
        assert output.metrics.num_prompt_tokens == 3
        assert len(output.outputs[0].token_ids) == 9
        with pytest.raises(ValueError, match="expected"):
            llm.generate([vocab], greedy)


def test_an_authors_operator_needs_its_library(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    autodeploy("compile", checkpoint("own_kernel"), "-o", artifact, *flags("own_kernel"), cache=tmp_path)
    metadata = json.loads((artifact / "program.json").read_text())["metadata"]
    assert metadata["author_ops"] == {"example::gated_act": {"library": "libexample_gated_act.so"}}
    assert list(metadata["plugins"]) == ["libexample_gated_act.so"]
    run = ("generate", artifact, "--prompt-ids", "5,9", "--max-tokens", "2")
    text = autodeploy(*run, cache=tmp_path, status=2)
    assert "expected a plug-in that provides" in text
    assert "libexample_gated_act.so" in text
    autodeploy(*run, cache=tmp_path, AUTODEPLOY_PLUGINS=str(plugin()))
    other = tmp_path / plugin().name
    other.write_bytes(plugin().read_bytes() + b"\0")
    assert "sha256" in autodeploy(*run, "--plugin", other, cache=tmp_path, status=2)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton, of the extra `cuda`, is not installed")
def test_an_authors_triton_kernel_is_compiled_into_the_artifact(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    arguments = ("--trust-remote-code", "--target", "cuda:90", "--act", "bfloat16")
    autodeploy("compile", checkpoint("gated_norm"), "-o", artifact, *arguments, cache=tmp_path)
    found = json.loads((artifact / "kernels.json").read_text())
    program = json.loads((artifact / "program.json").read_text())
    served = [program["instructions"][launch["path"][0]]["op"] for launch in found["launches"]]
    assert served.count("example::gated_norm") == 2
    targets = [k["target"] for k in found["kernels"] if k["symbol"] == "gated_norm_kernel"]
    assert sorted(targets) == ["compute_80", "sm_90"]
    assert "gated_norm_kernel" in autodeploy("inspect", artifact, "--section", "kernels", cache=tmp_path)
    # It is for GPUs: on the CPU the operator needs a library.
    text = autodeploy("generate", artifact, "--prompt-ids", "5,9", "--max-tokens", "2", cache=tmp_path, status=2)
    assert "expected a plug-in that provides" in text


def test_explain_names_the_authors_operator(tmp_path: Path) -> None:
    text = autodeploy("explain", checkpoint("own_kernel"), *flags("own_kernel"), "--json", cache=tmp_path)
    records = json.loads(text[text.index("{") :])["records"]
    (record, other) = [r for r in records if r["kind"] == "author"]
    assert record["op"] == other["op"] == "example::gated_act"
    assert record["source"].startswith("modeling_own_kernel.py:")
