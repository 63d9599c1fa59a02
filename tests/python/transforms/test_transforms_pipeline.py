"""The whole pipeline: what it leaves computes the same on whole, ragged, cut and decoded sequences."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transform_graphs import capture, count, ops, random_weights, run
from transform_models import VOCAB, Decoder, Rope, Tail

from autodeploy.ir.dialect import VerifyError
from autodeploy.ir.printer import format_ir
from autodeploy.ops import Batch, Memory
from autodeploy.transforms import Transform, TransformError, run_pipeline
from autodeploy.transforms.explain import summary
from autodeploy.transforms.manager import Phase, run_phases
from autodeploy.transforms.pipeline import every_transform, phases

GOLDEN = Path(__file__).parent / "golden"
MODELS = {
    "plain": {},
    "norms of heads, tied head": {"attention_norm": "plain", "tied": True, "layers": 1},
    "offset norms, biases": {"norm": "offset", "bias": True, "layers": 1},
    "interleaved, one key head": {"rope": Rope("interleaved"), "kv_heads": 1, "layers": 1},
    "partial, in float32": {"rope": Rope("float32", 4), "layers": 1},
}


@pytest.fixture(scope="module", params=MODELS)
def models(request):
    """(captured graph, graph after the pipeline, weights)."""
    ir = capture(Decoder(**MODELS[request.param]))
    captured = ir.copy()
    run_pipeline(ir)
    return captured, ir, random_weights(captured)


def test_same_logits(models):
    captured, ir, weights = models
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randint(0, VOCAB, (n,), generator=generator) for n in (9, 1, 6)]
    alone = [run(captured, weights, t) for t in tokens]
    scale = max(x.abs().max() for x in alone)

    def close(found, expected):
        assert ((found - expected).abs().max() / scale) < 2e-5

    for t, expected in zip(tokens, alone, strict=True):
        close(run(ir, weights, t), expected)
    joined = Batch.of([9, 1, 6])
    close(run(ir, weights, torch.cat(tokens), joined.positions(), joined), torch.cat(alone))
    some = Batch.of([9, 1, 6], rows=[8, 9, 15])
    close(run(ir, weights, torch.cat(tokens), some.positions(), some), torch.cat(alone)[[8, 9, 15]])
    memory = Memory()
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        batch = Batch.of([stop - start], past=[start])
        close(run(ir, weights, tokens[0][start:stop], batch.positions(), batch, memory), alone[0][start:stop])


def test_nothing_is_left_to_do(models):
    """Every transform leaves the finished graph alone."""
    _, ir, _ = models
    before = str(ir.graph)
    for transform in every_transform():
        assert not transform.run(ir), f"{transform.name} changed a finished graph"
        assert str(ir.graph) == before, f"{transform.name} changed a finished graph without saying so"


def test_canonical_ops(models):
    _, ir, _ = models
    layers = count(ir, "autodeploy.attention")
    assert count(ir, "autodeploy.linear") == 4 * layers + 1
    assert count(ir, "autodeploy.add_rms_norm") == 2 * layers
    left = {o for o in ops(ir) if o.startswith("aten.")}
    assert left <= {"aten.slice", "aten.reshape", "aten.unsqueeze", "aten.squeeze", "aten.permute"}, left
    assert [n.target for n in ir.graph.nodes if n.op == "placeholder"][:2] == ["token_ids", "positions"]


def test_unrelated_graph_is_left_alone():
    """A table and a head hold nothing that most transforms look for."""
    ir = capture(Tail(torch.nn.Identity()))
    run_pipeline(ir)
    assert ops(ir) == ["autodeploy.embedding", "autodeploy.select_rows", "autodeploy.linear"]
    for transform in every_transform():
        assert not transform.run(ir)


def test_explain():
    ir = capture(Decoder(layers=1))
    run_pipeline(ir)
    records = ir.metadata["explain"]
    assert summary(records)["canonical add_rms_norm (pattern)"] == 2
    attention = next(r for r in records if r["op"] == "attention")
    assert (attention["kind"], attention["via"], attention["states"]) == ("canonical", "registry", ["attention.0"])
    linear = next(r for r in records if r["op"] == "linear" and "fused" in r)
    assert len(linear["fused"]) == 3
    assert all(r["source"].startswith("transform_models.py:") for r in records if r["op"] in ("attention", "rms_norm"))


# --- the manager


def test_dump_and_report(tmp_path):
    ir = capture(Decoder(layers=1))
    report = run_pipeline(ir, str(tmp_path))
    names = [s.name for s in report.steps]
    assert names == [t.name for t in every_transform()]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00-captured.txt",
        *(f"{i:02d}-{name}.txt" for i, name in enumerate(names, start=1)),
    ]
    assert "add_rms_norm" in (tmp_path / f"{len(names):02d}-{names[-1]}.txt").read_text()
    assert report.seconds > 0
    assert all(s.num_nodes > 0 for s in report.steps)


def test_dump_by_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTODEPLOY_DUMP", str(tmp_path / "steps"))
    run_phases(capture(Tail(torch.nn.Identity())), phases()[:1])
    assert (tmp_path / "steps" / "00-captured.txt").exists()


class _Leak(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


def test_failure_lists_the_steps_before_it(tmp_path):
    with pytest.raises(TransformError) as caught:
        run_pipeline(capture(Tail(_Leak())), str(tmp_path))
    message = str(caught.value)
    assert message.startswith("[token axis] mean.dim at test_transforms_pipeline.py:")
    names = [t.name for t in every_transform()]
    before = names[: names.index("raise_over_keys")]
    assert message.endswith(f"(in the transform raise_over_keys; steps before it: {', '.join(before)})")
    assert (tmp_path / f"{len(before) + 1:02d}-raise_over_keys.failed.txt").exists()


class _Breaks(Transform):
    name = "breaks"

    def run(self, ir):
        first = next(n for n in ir.graph.nodes if n.op == "call_function")
        del first.meta["val"]
        return True


def test_result_of_a_transform_is_verified():
    ir = capture(Tail(torch.nn.Identity()))
    last = phases()[0]
    with pytest.raises(TransformError, match=r"expected a value on every node.*steps before it: none") as caught:
        run_phases(ir, [Phase("broken", last.dialect, [_Breaks()])])
    assert isinstance(caught.value.__cause__, VerifyError)


# --- the result as text


@pytest.mark.parametrize("name", ["plain", "partial, in float32"])
def test_golden(name):
    """The printed graph; AUTODEPLOY_UPDATE_GOLDEN=1 writes it anew."""
    ir = capture(Decoder(**{**MODELS[name], "layers": 1}))
    run_pipeline(ir)
    text = format_ir(ir, sources=False)
    path = GOLDEN / f"decoder_{name.split(',')[0]}.txt"
    if os.environ.get("AUTODEPLOY_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
