"""Blocks written out in their many ways become the canonical op that they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transform_graphs import capture, capture_function, check, count, ops
from transform_models import HEAD, HEADS, WIDTH, Norm, Rope, Tail

from autodeploy.ir import ModelIR
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.common_subexpressions import CommonSubexpressions
from autodeploy.transforms.flatten_cats import FlattenCats
from autodeploy.transforms.fold_constants import FoldConstants
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.raise_activations import RaiseActivations
from autodeploy.transforms.raise_linear import RaiseLinear
from autodeploy.transforms.raise_norms import RaiseNorms
from autodeploy.transforms.raise_rope import RaiseRope
from autodeploy.transforms.real_arithmetic import RealArithmetic
from autodeploy.transforms.token_major import TokenMajor


def prepared(ir: ModelIR) -> ModelIR:
    for transform in (CleanUp(), NormalForms(), CleanUp(), TokenMajor(), CleanUp(), CommonSubexpressions()):
        transform.run(ir)
    return ir


# --- norms


@pytest.mark.parametrize("style", ["plain", "offset", "weight_inside", "no_weight", "sum", "narrow", "op"])
def test_rms_norm(style):
    ir = check(prepared(capture(Tail(Norm(style=style)))), RaiseNorms())
    calls = [n for n in ir.graph.nodes if "rms_norm" in str(n.target)]
    assert len(calls) == 1
    assert not {"aten.rsqrt", "aten.mean", "aten.pow", "aten.sqrt", "aten.rms_norm"} & set(ops(ir))
    x, weight, eps, offset = calls[0].args
    assert (weight is None) == (style == "no_weight")
    assert (eps, offset) == (1e-5, 1.0 if style == "offset" else 0.0)
    assert x.meta["val"].dtype == calls[0].meta["val"].dtype == torch.bfloat16


class _Grouped(nn.Module):
    """A norm over groups of channels, its weight over all of them."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        y = x.float().view(*x.shape[:-1], self.groups, -1)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.view(x.shape).to(x.dtype)


@pytest.mark.parametrize("groups", [1, 4])
def test_grouped_rms_norm(groups):
    ir = check(prepared(capture(Tail(_Grouped(groups)))), RaiseNorms())
    (call,) = [n for n in ir.graph.nodes if "rms_norm" in str(n.target)]
    assert (call.args[1] is not None) == (groups == 1), "one group is a norm of everything, with its weight"


class _LayerNorm(nn.Module):
    def __init__(self, style: str):
        super().__init__()
        self.style = style
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        y = x.float()
        if self.style == "called":
            return nn.functional.layer_norm(x, (WIDTH,), self.weight, self.bias, 1e-5)
        if self.style == "plain":
            return nn.functional.layer_norm(x, (WIDTH,), eps=1e-5)
        y = y - y.mean(-1, keepdim=True)
        if self.style == "variance":
            y = y * torch.rsqrt(x.float().var(-1, keepdim=True, unbiased=False) + 1e-5)
        else:
            y = y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
        if self.style == "no_bias":
            return (self.weight.float() * y).to(x.dtype)
        return self.weight * y.to(x.dtype) + self.bias


@pytest.mark.parametrize("style", ["called", "plain", "written", "no_bias", "variance"])
def test_layer_norm(style):
    ir = check(prepared(capture(Tail(_LayerNorm(style)))), RaiseNorms())
    (call,) = [n for n in ir.graph.nodes if "layer_norm" in str(n.target)]
    _, weight, bias, eps = call.args
    assert (weight is None, bias is None, eps) == (style == "plain", style in ("plain", "no_bias"), 1e-5)


LOOKALIKES = {
    "eps after the root": lambda x, pos, p: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5),
    "other value": lambda x, pos, p: (-x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
    "other dim": lambda x, pos, p: (
        x.view(1, -1, 2, 4) * torch.rsqrt(x.view(1, -1, 2, 4).pow(2).mean(2, keepdim=True) + 1e-5)
    ).flatten(2),
    "sum instead of mean": lambda x, pos, p: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-5),
    "cube": lambda x, pos, p: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_is_no_norm(name):
    check(prepared(capture_function(LOOKALIKES[name])), RaiseNorms(), modified=False)


# --- rope


class _Turned(nn.Module):
    takes_positions = True

    def __init__(self, style: str, rotary: int):
        super().__init__()
        self.rope = Rope(style, rotary)

    def forward(self, x, positions):
        heads = x.view(1, -1, HEADS, HEAD).transpose(1, 2)
        return self.rope(heads, positions).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("rotary", [HEAD, HEAD // 2])
@pytest.mark.parametrize("style", ["half", "interleaved", "float32", "split", "split_interleaved"])
def test_rope(style, rotary):
    ir = check(prepared(capture(Tail(_Turned(style, rotary)))), RaiseRope(), CleanUp(), RaiseRope())
    (call,) = [n for n in ir.graph.nodes if "autodeploy.rope" in str(n.target)]
    assert not {"aten.neg", "aten.cat"} & set(ops(ir)), "something of the rotation is left"
    x, cos, sin, interleaved = call.args
    assert interleaved == ("interleaved" in style)
    assert x.meta["val"].shape[2] == HEAD
    assert cos.meta["val"].shape[1] == sin.meta["val"].shape[1] == rotary // 2


def _complex(x, pos, p):
    angle = pos[..., None] * torch.tensor([0.1, 0.2, 0.3, 0.4])
    unit = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * unit).flatten(2).to(x.dtype)


def _sorted(x, pos, p):
    angle = (pos[..., None] * torch.tensor([0.1, 0.2, 0.3, 0.4])).repeat(1, 1, 2)
    cos, sin = angle.cos().to(x.dtype)[..., :4], angle.sin().to(x.dtype)[..., :4]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([torch.ones_like(x[..., :2]), torch.cat([a * cos - b * sin, b * cos + a * sin], -1)], -1)


@pytest.mark.parametrize(("function", "cats"), [(_complex, 0), (_sorted, 1)])
def test_rope_of_complex_numbers_and_into_halves(function, cats):
    ir = capture_function(function)
    check(ir, CleanUp(), NormalForms(), RealArithmetic())
    check(prepared(ir), RaiseRope(), FlattenCats(), CleanUp(), again=False)
    (call,) = [n for n in ir.graph.nodes if "autodeploy.rope" in str(n.target)]
    assert call.args[3] is True
    assert call.args[1].meta["val"].shape[1] == 4
    assert count(ir, "aten.cat") == cats
    assert not {"aten.polar", "aten.view_as_complex", "aten.view_as_real", "aten.sub", "aten.expand"} & set(ops(ir))


def _different_halves(x, pos, p):
    angle = pos[..., None] * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    turned = torch.cat([-x[..., 4:], x[..., :4]], -1)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


def _per_head(x, pos, p):
    heads = x.view(1, -1, 2, 4)
    angle = (pos[..., None, None] * torch.tensor([[0.1, 0.2], [0.3, 0.4]])).repeat(1, 1, 1, 2)
    turned = torch.cat([-heads[..., 2:], heads[..., :2]], -1)
    return (heads * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)).flatten(2)


def _other_sign(x, pos, p):
    angle = (pos[..., None] * torch.tensor([0.1, 0.2, 0.3, 0.4])).repeat(1, 1, 2)
    turned = torch.cat([x[..., 4:], -x[..., :4]], -1)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


@pytest.mark.parametrize("function", [_different_halves, _per_head, _other_sign])
def test_what_is_no_rope(function):
    ir = prepared(capture_function(function))
    check(ir, RaiseRope(), again=False)
    assert count(ir, "autodeploy.rope") == 0


# --- linear and embedding

PRODUCTS = {
    "linear": (lambda x, pos, p: nn.functional.linear(x, p["w"]), 1),
    "linear with bias": (lambda x, pos, p: nn.functional.linear(x, p["w"], p["b"]), 1),
    "kept transposed": (lambda x, pos, p: torch.addmm(p["b"], x.view(-1, 8), p["t"]).view(1, -1, 12), 1),
    "matmul": (lambda x, pos, p: x @ p["t"], 1),
    "matmul of transposed": (lambda x, pos, p: x @ p["w"].T, 1),
    "mm": (lambda x, pos, p: x.view(-1, 8).mm(p["t"])[None], 1),
    "factors": (lambda x, pos, p: torch.addmm(p["b"], x.view(-1, 8), p["t"], beta=0.5, alpha=2.0)[None], 1),
    "two values": (lambda x, pos, p: (x.view(1, -1, 2, 4) @ x.view(1, -1, 2, 4).mT).flatten(2), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_linear(name):
    function, linears = PRODUCTS[name]
    ir = prepared(capture_function(function, w=(12, 8), t=(8, 12), b=(12,)))
    check(ir, RaiseLinear(), FoldConstants(), again=False)
    assert count(ir, "autodeploy.linear") == linears
    for node in ir.graph.nodes:
        if "autodeploy.linear" in str(node.target):
            assert node.args[1].op == "placeholder", "the layout of the weight belongs to the weight program"
            assert tuple(node.args[1].meta["val"].shape) == (12, 8)


TABLES = {
    "embedding": lambda x, pos, p: x + nn.functional.embedding(pos % 4, p["table"]),
    "index": lambda x, pos, p: x + p["table"][pos % 4],
    "index_select": lambda x, pos, p: x + p["table"].index_select(0, pos[0] % 4)[None],
    "gather": lambda x, pos, p: x + p["table"][None].gather(1, (pos % 4)[..., None].repeat(1, 1, 8)),
    "scalars": lambda x, pos, p: x * p["b"][pos % 12][..., None],
    "matrices": lambda x, pos, p: (x[:, :, None] @ p["cube"][pos % 3]).squeeze(2),
}


@pytest.mark.parametrize("name", TABLES)
def test_embedding(name):
    ir = prepared(capture_function(TABLES[name], table=(4, 8), b=(12,), cube=(3, 8, 2)))
    check(ir, RaiseLinear())
    assert count(ir, "autodeploy.embedding") == 2
    assert not {"aten.embedding", "aten.index", "aten.index_select"} & set(ops(ir))


# --- activations


def _gelu_products(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


ACTIVATIONS = {
    "gelu, powers": (_gelu_products, "aten.gelu"),
    "gelu, factored": (
        lambda x: x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
        "aten.gelu",
    ),
    "gelu, erf": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), "aten.gelu"),
    "silu": (lambda x: x * torch.sigmoid(x), "aten.silu"),
    "another cubic": (lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.05 * x**3))), None),
    "sigmoid of a multiple": (lambda x: x * torch.sigmoid(1.702 * x), None),
    "twice": (lambda x: x * (1.0 + torch.erf(x / math.sqrt(2.0))), None),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    function, expected = ACTIVATIONS[name]
    ir = prepared(capture_function(lambda x, pos, p: function(x)))
    check(ir, RaiseActivations(), modified=expected is not None)
    if expected is not None:
        assert count(ir, expected) == 1
        assert len(ops(ir)) == 2, ops(ir)
