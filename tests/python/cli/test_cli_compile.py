"""compile, inspect and explain on a tiny checkpoint, and what is wrong with broken ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tiny_workshop import has_engine, make_checkpoint, run_shell

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compile")
    make_checkpoint(folder / "model")
    done = run_shell("autodeploy compile model -o artifact --dump dump", folder, folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder, done


def shell(workshop, script):
    folder, _ = workshop
    return run_shell(script, folder, folder / "cache")


def test_compile_says_what_it_wrote(workshop):
    folder, done = workshop
    assert done.stdout.startswith("artifact: ")
    assert (folder / "artifact" / "program.json").is_file()
    assert (folder / "artifact" / "chat_template.jinja").is_file()
    assert len(list((folder / "dump").glob("*.txt"))) > 5
    assert not list(folder.glob(".artifact*"))


def test_inspect(workshop, cli):
    folder, _ = workshop
    code, out, _ = cli("inspect", str(folder / "artifact"))
    assert code == 0
    for words in ("== summary", "== program", "== states", "== weights", "== memory", "attention", "modeling_"):
        assert words in out
    code, out, _ = cli("inspect", str(folder / "artifact"), "--section", "states", "--section", "weights")
    assert "== program" not in out
    assert "paged" in out
    code, out, _ = cli("inspect", str(folder / "artifact"), "--json", "--section", "summary", "--section", "program")
    found = json.loads(out)
    assert set(found) == {"summary", "program"}
    assert found["program"]["format"] == "autodeploy.program"


@pytest.mark.skipif(not has_engine(), reason="the C++ engine was not built")
def test_inspect_memory(workshop, cli):
    folder, _ = workshop
    code, out, _ = cli("inspect", str(folder / "artifact"), "--section", "memory", "--max-seq-len", "128")
    assert code == 0
    assert "max_seq_len 128" in out
    assert "caches" in out


@pytest.mark.parametrize("target", ["nowhere", "model"])
def test_inspect_what_is_no_artifact(workshop, cli, target):
    folder, _ = workshop
    code, _, err = cli("inspect", str(folder / target))
    assert code == 2
    assert "this is not an artifact folder" in err
    assert err.count("\n") == 1


def test_compile_for_a_gpu(workshop):
    pytest.importorskip("triton", reason="Triton, of the extra `cuda`, is not installed")
    folder, _ = workshop
    done = shell(workshop, "autodeploy compile model -o for-gpu --target cuda:90,cuda:80 --act bfloat16")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "for-gpu" / "kernels.json").read_text())
    assert {k["target"] for k in found["kernels"]} == {"sm_90", "sm_80", "compute_80"}
    assert {act for launch in found["launches"] for act in launch["kernels"]} == {"bfloat16"}
    done = shell(workshop, "autodeploy inspect for-gpu --section kernels --section summary && autodeploy cache list")
    assert "compiled by triton" in done.stdout
    assert "compiled GPU kernels" in done.stdout
    done = shell(workshop, "autodeploy inspect artifact --section kernels && autodeploy cache clear")
    assert "none: the model was compiled without --target" in done.stdout
    assert "compiled GPU kernels removed" in done.stdout
    # The CPU serves it as before.
    if has_engine():
        done = shell(workshop, "autodeploy generate for-gpu --prompt-ids 5,9 --max-tokens 2")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "words"), [("--target cuda:12", "expected cpu"), ("--target cuda:90 --act x", "types")]
)
def test_a_wrong_target_is_refused_at_once(workshop, flags, words):
    folder, _ = workshop
    done = shell(workshop, f"autodeploy compile model -o out-target {flags}")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "out-target").exists()


def test_explain(workshop):
    done = shell(workshop, "autodeploy explain model --json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"attention", "linear", "embedding"} <= {record["op"] for record in found["records"]}
    assert all(record["source"] for record in found["records"])

    from autodeploy.cli.explain_command import format_text
    from autodeploy.cli.explain_costs import by_block, costs_at, format_costs, summed

    records = found["records"]
    linear = next(r for r in records if r["op"] == "linear" and len(r["params"]) == 1)
    assert linear["flops"] > 0
    assert linear["weight_bytes"] >= linear["flops"] // 2 * 2  # float32 in the file; two operations per weight
    attention = next(r for r in records if r["op"] == "attention")
    one, many = costs_at(attention, 0), costs_at(attention, 99)
    assert many["flops"] == 100 * one["flops"] > 0
    assert many["cache_read"] == 100 * one["cache_read"] == 100 * many["cache_write"]
    blocks = by_block(records, 10)
    assert sum(b["instructions"] for b in blocks) == len(records)
    assert sum(b["flops"] for b in blocks) == summed(records, 10)["flops"]
    assert any("*" in b["block"] and b["instructions"] > 1 for b in blocks)
    assert "a token after 10 others" in format_costs(records, 10)

    text = format_text(found["records"], grouped=True)
    assert "by a name that transformers gives" in text
    assert "fused" in text


def damage(folder: Path, name: str) -> Path:
    """A copy of the checkpoint, broken in one way."""
    broken = folder / name
    shutil.copytree(folder / "model", broken)
    weights, config = broken / "model.safetensors", broken / "config.json"
    if name == "truncated":
        os.truncate(weights, weights.stat().st_size - 100)
    elif name == "no-weights":
        weights.unlink()
    elif name == "no-header":
        weights.write_bytes(b"\xff" * 64)
    elif name == "bad-config":
        config.write_text("{")
    elif name == "unknown-model":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nobody_knows"}))
    elif name == "wrong-shape":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 24}))
    return broken


@pytest.mark.parametrize("name", ["truncated", "no-weights", "no-header", "bad-config", "unknown-model", "wrong-shape"])
def test_a_broken_checkpoint_is_one_line_and_leaves_nothing(workshop, name):
    folder, _ = workshop
    broken = damage(folder, name)
    done = shell(workshop, f"autodeploy compile {broken} -o out-{name}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("autodeploy: [")
    assert not (folder / f"out-{name}").exists()
    assert not list(folder.glob(f".out-{name}*"))


def test_what_is_there_is_not_overwritten(workshop):
    folder, _ = workshop
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    done = shell(workshop, "autodeploy compile model -o mine")
    assert done.returncode == 2
    assert "will not be overwritten" in done.stderr
    assert (folder / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_cache_keeps_nothing_of_a_failed_compile(workshop):
    folder, _ = workshop
    broken = folder / "for-the-cache"
    shutil.copytree(folder / "model", broken)
    (broken / "model.safetensors").unlink()
    done = shell(workshop, f"autodeploy generate {broken} --prompt x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    cached = folder / "cache" / "artifacts"
    assert not cached.exists() or not [p for p in cached.iterdir() if p.name.startswith(".")]
