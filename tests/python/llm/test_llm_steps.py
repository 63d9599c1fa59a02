"""What the engine counts and times about its steps, and routing that is forced uniform."""

from __future__ import annotations

import json

import numpy as np
import pytest

from autodeploy import LLM, SamplingParams
from autodeploy._load_native import load_native
from devices import DEVICES
from tiny_workshop import ROOT, has_engine, run_shell

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_engine(), reason="the C++ engine was not built")]

ENTRIES = json.loads((ROOT / "tests" / "data" / "e2e.json").read_text())["models"]
DENSE = next(entry["name"] for entry in ENTRIES if entry["group"] == "attention")
SPARSE = next(entry["name"] for entry in ENTRIES if entry["group"] == "states")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 8], list(range(1, 20))]
NEW = 9
OPTIONS = {"load_format": "dummy", "max_seq_len": 64, "max_num_seqs": 4, "max_batch_tokens": 64, "threads": 1}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Artifacts of two configurations, without weights."""
    from autodeploy.testing.tiny_config import tiny_config

    folder = tmp_path_factory.mktemp("steps")
    for kind, name in (("dense", DENSE), ("sparse", SPARSE)):
        tiny_config(name).save_pretrained(folder / f"{kind}-model")
        done = run_shell(f"autodeploy compile {kind}-model -o {kind} --load-format dummy", folder, folder / "cache")
        assert done.returncode == 0, done.stderr
    return folder


def run(artifact, prompts=PROMPTS, **options):
    """(tokens, stats, kernels) of greedy answers."""
    params = SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True)
    with LLM(artifact, progress=False, **(OPTIONS | options)) as llm:
        tokens = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        return tokens, llm.stats(), {line["kernel"] for line in llm.plan()["instructions"]}


@pytest.mark.parametrize("device", DEVICES)
def test_every_decode_step_is_replayed(device, artifacts):
    for artifact in (artifacts / "dense", artifacts / "sparse"):
        _, stats, _ = run(artifact, device=device)
        assert stats["num_decode_steps"] >= NEW - 1
        assert stats["num_replayed_steps"] == stats["num_decode_steps"] < stats["num_steps"]
        # Nobody asked for times.
        nothing = {"count": 0, "median": 0.0, "p95": 0.0}
        assert (stats["decode_step_us"], stats["step_gap_us"]) == (nothing, nothing)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_and_gaps_are_timed(device, artifacts):
    tokens, stats, _ = run(artifacts / "dense", device=device, time_steps=True)
    step, gap = stats["decode_step_us"], stats["step_gap_us"]
    assert step["count"] == stats["num_decode_steps"]
    assert 0 < gap["count"] < step["count"]
    for times in (step, gap):
        assert 0 < times["median"] <= times["p95"] < 60e6
    assert run(artifacts / "dense", device=device)[0] == tokens


def test_the_cpu_counts_and_has_no_clock_of_a_device(artifacts):
    _, stats, _ = run(artifacts / "dense")
    assert stats["num_decode_steps"] >= NEW - 1
    assert stats["num_replayed_steps"] == 0
    with pytest.raises(ValueError, match=r"\[engine\] time_steps: expected a GPU"):
        run(artifacts / "dense", time_steps=True)


@pytest.mark.parametrize("device", DEVICES)
def test_uniform_routing_is_the_same_everywhere(device, artifacts):
    forced = {"dummy_routing": "uniform", "dummy_seed": 5}
    tokens, _, kernels = run(artifacts / "sparse", PROMPTS[:1], **forced)
    assert "topk.uniform" in kernels
    assert "topk" not in kernels
    found, _, kernels = run(artifacts / "sparse", PROMPTS[:1], device=device, dtype="float32", **forced)
    assert found == tokens
    assert "topk.uniform" in kernels
    assert not any(kernel.startswith("topk.plain") for kernel in kernels)


@pytest.mark.parametrize("device", DEVICES)
def test_uniform_routing_draws_distinct_experts_alike(device, artifacts):
    program = json.loads((artifacts / "sparse" / "program.json").read_text())
    products = [ins for ins in program["instructions"] if ins["op"] == "expert_linear"]
    assert products
    experts = program["params"][products[0]["in"][1]["p"]]["shape"][0]
    values = sorted({ins["in"][2]["v"] for ins in products})
    per_token = next(ins["attrs"]["k"] for ins in program["instructions"] if ins["op"] == "topk")
    length, seqs = 64, 4
    options = {"max_tokens": length * seqs, "max_seqs": seqs, "max_seq_len": length, "device": device, "dummy": True}
    drawn = {}
    for uniform in (False, True):
        runner = load_native().Runner(str(artifacts / "sparse"), uniform_routing=uniform, **options)
        starts = [length * i for i in range(seqs + 1)]
        rows = [*range(0, length * seqs, 2)]  # the last layer's experts see these alone
        tokens = [(7 * i) % 50 + 1 for i in range(length * seqs)]
        taps = runner.step(
            tokens, [*range(length)] * seqs, starts, [length] * seqs, [*range(seqs)], [0] * seqs, rows, taps=values
        )["taps"]
        drawn[uniform] = [np.asarray(taps[v]).reshape(-1, per_token) for v in values]
    assert not all(np.array_equal(a, b) for a, b in zip(drawn[False], drawn[True], strict=True))
    for ids in drawn[True]:
        assert all(len({*row}) == per_token for row in ids.tolist())
        counts = np.bincount(ids.reshape(-1), minlength=experts)
        assert counts.size == experts
        mean = ids.size / experts
        # Chi-square within six deviations of its mean.
        assert ((counts - mean) ** 2 / mean).sum() <= (experts - 1) + 6 * np.sqrt(2 * (experts - 1))
    assert {len(ids) for ids in drawn[True]} == {length * seqs, length * seqs // 2}
    # Layers draw on their own.
    first, last = sorted(drawn[True], key=len)[::-1][:2]
    assert not np.array_equal(first[: len(last)], last)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("sparse", {"load_format": "auto", "dummy_routing": "uniform"}, "expected load_format dummy beside it"),
        ("sparse", {"dummy_routing": "even"}, "dummy_routing: expected one of model, uniform, found 'even'"),
        ("dense", {"dummy_routing": "uniform"}, r"\[engine\] dummy_routing: expected a model with experts"),
        ("dense", {"time_steps": 1}, "time_steps: expected True or False"),
    ],
)
def test_options_that_do_not_fit(kind, options, words, artifacts):
    with pytest.raises(ValueError, match=words):
        run(artifacts / kind, **options)


def test_the_native_engine_checks_too(artifacts):
    native = load_native()
    with pytest.raises(ValueError, match=r"\[engine\] dummy_routing: expected model where weights are loaded"):
        native.Engine(str(artifacts / "sparse"), {"dummy_routing": "uniform"})
    with pytest.raises(ValueError, match=r"\[engine\] dummy_routing: expected model or uniform, found even"):
        native.Engine(str(artifacts / "sparse"), {"dummy_routing": "even"})
