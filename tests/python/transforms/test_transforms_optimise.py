"""Folding, sharing and fusing keep what is computed, and edit weight programs in the same step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transform_graphs import capture, capture_function, check, count, ops, random_weights, run
from transform_models import HEADS, VOCAB, WIDTH, Decoder, Tail

from autodeploy.ir import ModelIR
from autodeploy.ops import Batch
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.common_subexpressions import CommonSubexpressions
from autodeploy.transforms.declare_states import DeclareStates
from autodeploy.transforms.fold_constants import FoldConstants
from autodeploy.transforms.fuse_linears import FuseLinears
from autodeploy.transforms.fuse_residual_norm import FuseResidualNorm
from autodeploy.transforms.fuse_ropes import FuseRopes
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.pipeline import phases
from autodeploy.transforms.select_rows import SelectRows
from autodeploy.transforms.tie_weights import TieWeights
from autodeploy.transforms.token_major import TokenMajor


def canonical(ir: ModelIR) -> ModelIR:
    """The graph after the first phase."""
    for transform in phases()[0].transforms:
        transform.run(ir)
    return ir


_CAPTURED: dict[str, ModelIR] = {}


def decoder(**options) -> ModelIR:
    """A canonical decoder, captured once per set of options."""
    key = repr(sorted(options.items()))
    if key not in _CAPTURED:
        torch.manual_seed(0)
        _CAPTURED[key] = canonical(capture(Decoder(**options)))
    return _CAPTURED[key].copy()


# --- constants

EXPRESSIONS = {
    "decay": (lambda x, pos, p: x * -torch.exp(p["v"].float()), {"op": "unary", "f": "neg"}),
    "offset": (lambda x, pos, p: x * (1.0 + p["v"]), {"op": "binary", "f": "add", "y": 1.0}),
    "reversed": (lambda x, pos, p: x * (2.0 - p["v"]), {"op": "binary", "f": "rsub", "y": 2.0}),
    "power": (lambda x, pos, p: x * p["v"].abs() ** 0.5, {"op": "binary", "f": "pow", "y": 0.5}),
    "root": (lambda x, pos, p: x * torch.rsqrt(p["v"] ** 2 + 1.0), {"op": "unary", "f": "reciprocal"}),
    "two weights": (lambda x, pos, p: x * (p["v"] * p["w"][1]), {"op": "binary", "f": "mul"}),
    "constant": (lambda x, pos, p: x * (p["v"] + torch.arange(8.0)), {"op": "binary", "f": "add"}),
    "transposed": (lambda x, pos, p: x * p["w"].T[:, 2], {"op": "reshape"}),
    "slices": (lambda x, pos, p: x * torch.cat([p["v"][4:], p["v"][:4]]), {"op": "cat", "dim": 0}),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_weight_expression(name):
    function, expected = EXPRESSIONS[name]
    ir = capture_function(function, v=(8,), w=(3, 8))
    for transform in (CleanUp(), NormalForms(), CleanUp(), TokenMajor(), CleanUp()):
        transform.run(ir)
    check(ir, FoldConstants())
    made = [p for p in ir.params.values() if p.name != "table.weight"]
    assert len(made) == 1
    assert expected.items() <= made[0].expr.items()
    assert "p.v" in made[0].fqns or "p.w" in made[0].fqns
    assert set(ops(ir)) <= {"aten.embedding", "aten.mul", "aten.to"}


def test_constants_are_computed_in_full_precision():
    ir = capture_function(lambda x, pos, p: x * (torch.arange(8.0) / 3).to(torch.bfloat16))
    for transform in (CleanUp(), NormalForms(), CleanUp(), TokenMajor(), CleanUp()):
        transform.run(ir)
    check(ir, FoldConstants())
    (constant,) = ir.constants.values()
    assert constant.dtype == "act"
    assert torch.equal(constant.value, torch.arange(8.0) / 3)


# --- sharing


def test_equal_calls_are_one():
    ir = capture_function(lambda x, pos, p: (x * pos[..., None]).exp() + (pos[..., None] * x).exp())
    for transform in (CleanUp(), NormalForms()):
        transform.run(ir)
    check(ir, CommonSubexpressions())
    assert count(ir, "aten.exp") == 1


def test_mixers_stay_apart():
    q = torch.ops.autodeploy.attention.default

    def twice(x, pos, p):
        heads = x[0].view(-1, 2, 4)
        return (q(heads, heads, heads, *[None] * 4, 1.0) + q(heads, heads, heads, *[None] * 4, 1.0)).view(1, -1, 8)

    ir = capture_function(twice)
    check(ir, CommonSubexpressions(), again=False)
    assert count(ir, "autodeploy.attention") == 2
    DeclareStates().run(ir)
    assert list(ir.states) == ["attention.0"]  # they store the same keys and values
    assert [x.meta["states"] for x in ir.graph.nodes if "attention" in str(x.target)] == [["attention.0"]] * 2


def test_tied_weights_and_equal_constants():
    ir = decoder()
    names = [p.name for p in ir.params.values()]
    ir.tied = {"head.weight": "embed.weight"}
    assert len(ir.constants) == 2, "one table of frequencies per layer"
    TieWeights().run(ir)
    assert [p.name for p in ir.params.values()] == [n for n in names if n != "head.weight"]
    assert len(ir.constants) == 1
    assert not TieWeights().run(ir)


# --- fusing


def _bytes(ir: ModelIR) -> int:
    return sum(torch.Size(p.shape).numel() for p in ir.params.values())


def test_linears_of_one_value():
    ir = decoder(bias=True)
    size = _bytes(ir)
    check(ir, FuseLinears())
    assert count(ir, "autodeploy.linear") == 4 * 2 + 1
    assert _bytes(ir) == size
    fused = [p for p in ir.params.values() if len(p.segments) > 1]
    assert [len(p.segments) for p in fused if "q_proj" in p.name] == [3, 3] * 2, "weights and biases of two layers"
    weight = next(p for p in fused if "q_proj" in p.name)
    assert [s.rows for s in weight.segments] == [32, 16, 16]
    assert [s.expr["name"].split(".")[-2] for s in weight.segments] == ["q_proj", "k_proj", "v_proj"]


class _Unequal(nn.Module):
    """Linears of one value that are not to be fused: one has a bias, one a weight that something else reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 32, bias=False), nn.Linear(WIDTH, 32)
        self.c, self.d = nn.Linear(WIDTH, 32, bias=False), nn.Linear(WIDTH, 5, bias=False)

    def forward(self, x):
        d = self.d(x).sum(-1, keepdim=True)
        return self.a(x) + self.b(x) + self.c(x) * d + nn.functional.linear(x.exp(), self.c.weight)


def test_linears_that_do_not_fuse():
    ir = check(canonical(capture(Tail(_Unequal()))), FuseLinears())
    fused = [p for p in ir.params.values() if len(p.segments) > 1]
    assert [[s.rows for s in p.segments] for p in fused] == [[32, 5]], "a and d; the odd one last"


def test_residual_and_norm():
    ir = check(decoder(), FuseResidualNorm())
    assert count(ir, "autodeploy.add_rms_norm") == 4
    assert count(ir, "autodeploy.rms_norm") == 1, "the first norm has no residual before it"
    assert count(ir, "aten.add") == 0


def test_ropes_of_query_and_key():
    ir = decoder()
    FuseLinears().run(ir)
    check(ir, FuseRopes())
    ropes = [n for n in ir.graph.nodes if "autodeploy.rope" in str(n.target)]
    assert [n.meta["val"].shape[1] for n in ropes] == [HEADS + 2] * 2


def test_ropes_of_normalised_heads_stay():
    check(decoder(layers=1, attention_norm="plain"), FuseLinears(), FuseRopes(), again=False)
    ir = decoder(layers=1, attention_norm="plain")
    FuseLinears().run(ir)
    assert not FuseRopes().run(ir), "query and key are values of their own"


# --- rows


def test_rows_are_selected_before_the_last_projection():
    ir = decoder()
    weights = random_weights(ir)
    ids = torch.randint(0, VOCAB, (11,), generator=torch.Generator().manual_seed(1))
    everything = run(ir, weights, ids)
    assert SelectRows().run(ir)
    assert not SelectRows().run(ir)
    assert torch.equal(run(ir, weights, ids), everything)
    found = run(ir, weights, ids, batch=Batch.of([11], rows=[3, 10]))
    assert torch.allclose(found, everything[[3, 10]], atol=1e-5)
    selected = [n for n in ir.graph.nodes if "select_rows" in str(n.target)]
    assert len(selected) == 2, "the residual stream and the last attention"
    assert str(selected[0].meta["val"].shape[0]) == str(ir.output_nodes()[0].meta["val"].shape[0]) != str(ir.T)
    after = list(ir.graph.nodes)[[*ir.graph.nodes].index(selected[-1]) :]
    assert sum("autodeploy.linear" in str(n.target) for n in after) == 5, "projection, gate, up, down, head"


class _Routed(nn.Module):
    """A block after the last mixer that makes tensors of its own size: they get R rows too."""

    def forward(self, x):
        weights = torch.zeros_like(x).scatter(-1, x.topk(2, -1)[1], 1.0)
        return x * weights + torch.ones(x.shape[0], x.shape[1], 1, dtype=x.dtype)


def test_rows_of_tensors_that_are_made():
    ir = canonical(capture(Tail(_Routed())))
    weights = random_weights(ir)
    ids = torch.arange(9)
    everything = run(ir, weights, ids)
    assert SelectRows().run(ir)
    found = run(ir, weights, ids, batch=Batch.of([9], rows=[0, 8]))
    assert torch.allclose(found, everything[[0, 8]], atol=1e-6)


class _Streams(nn.Module):
    """Streams of a mixer's tokens as rows: they cannot be selected, nor can what meets them; what follows can."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        shifted = torch.nn.functional.pad(x, (0, 0, 1, -1))
        rows = shifted.reshape(-1, 4).softmax(-1) * self.gate(x).reshape(-1, 4)
        return rows.reshape(x.shape) + self.gate(x)


def test_rows_that_meet_streams_stay():
    ir = canonical(capture(Tail(_Streams())))
    weights = random_weights(ir)
    ids = torch.arange(9)
    everything = run(ir, weights, ids)
    assert SelectRows().run(ir)
    found = run(ir, weights, ids, batch=Batch.of([9], rows=[0, 8]))
    assert torch.allclose(found, everything[[0, 8]], atol=1e-6)
    (head,) = [x for x in ir.graph.nodes if "autodeploy.linear" in str(x.target)][-1:]
    assert str(head.meta["val"].shape[0]) != str(ir.T)


# --- states


def test_states():
    ir = decoder()
    assert DeclareStates().run(ir)
    assert not DeclareStates().run(ir)
    assert list(ir.states) == ["attention.0", "attention.1"]
    decl = ir.states["attention.0"]
    assert (decl.kind, [(c.name, c.shape) for c in decl.components]) == ("paged", [("k", (2, 8)), ("v", (2, 8))])
    mixers = [n.meta["states"] for n in ir.graph.nodes if n.meta.get("states")]
    assert mixers == [["attention.0"], ["attention.1"]]
