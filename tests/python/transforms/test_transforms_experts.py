"""Experts written as loops, in the ways that people write them, become products by expert."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transform_graphs import capture as capture_plain
from transform_graphs import check, count, ops, run

from autodeploy.capture.errors import CaptureError
from autodeploy.capture.routing import RoutedRows
from autodeploy.ir import ModelIR
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.common_subexpressions import CommonSubexpressions
from autodeploy.transforms.fold_constants import FoldConstants
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.raise_experts import RaiseExperts
from autodeploy.transforms.raise_linear import RaiseLinear
from autodeploy.transforms.token_major import TokenMajor

WIDTH, INNER, EXPERTS, TOP, VOCAB = 16, 24, 5, 2, 16


class Expert(nn.Module):
    def __init__(self, bias: bool = False):
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER, bias=bias)
        self.gate = nn.Linear(WIDTH, INNER, bias=bias)
        self.down = nn.Linear(INNER, WIDTH, bias=bias)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Routed(nn.Module):
    """Tokens through a router and the way of `mix`; experts are modules, and the same as tensors."""

    def __init__(self, mix, bias: bool = False):
        super().__init__()
        self.mix = mix
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList([Expert(bias) for _ in range(EXPERTS)])
        self.gate_up = nn.Parameter(torch.zeros(EXPERTS, 2 * INNER, WIDTH))
        self.down = nn.Parameter(torch.zeros(EXPERTS, INNER, WIDTH))
        self.scale = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
        self.recorded = False

    def forward(self, input_ids, position_ids):
        x = self.embed(input_ids)
        rows = x.view(-1, WIDTH)
        weights, ids = torch.topk(self.router(rows).softmax(-1), TOP, dim=-1)
        if not self.recorded:
            return self.mix(self, rows, weights, ids).view(x.shape)
        with RoutedRows():
            return self.mix(self, rows, weights, ids).view(x.shape)


def stacked_tensors(m, x, weights, ids):
    """Loops over the experts that were hit; weights are one tensor for all experts, kept [in, out] or [out, in]."""
    out = torch.zeros_like(x)
    mask = F.one_hot(ids, num_classes=EXPERTS + 1).permute(2, 1, 0)
    for expert in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        expert = expert[0]
        if expert == EXPERTS:
            continue
        place, token = torch.where(mask[expert])
        gate, up = F.linear(x[token], m.gate_up[expert]).chunk(2, dim=-1)
        y = (F.gelu(gate) * up) @ m.down[expert] + m.scale[expert]
        out.index_add_(0, token, y * weights[token, place, None])
    return out


def modules_by_number(m, x, weights, ids):
    out = torch.zeros_like(x)
    mask = F.one_hot(ids, num_classes=EXPERTS).permute(2, 1, 0)
    for number in range(EXPERTS):
        place, token = torch.where(mask[number])
        if token.shape[0] == 0:
            continue
        y = m.experts[number](x[None, token].reshape(-1, WIDTH)) * weights[token, place, None]
        out.index_add_(0, token, y.to(x.dtype))
    return out


def modules_hit(m, x, weights, ids):
    out = torch.zeros_like(x)
    mask = F.one_hot(ids, num_classes=EXPERTS).permute(2, 1, 0)
    for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        place, token = torch.where(mask[number].squeeze(0))
        out.index_add_(0, token, m.experts[number](x[token]) * weights[token, place, None])
    return out


def in_place(m, x, weights, ids):
    out = torch.zeros_like(x)
    for number, expert in enumerate(m.experts):
        token, place = torch.where(ids == number)
        out[token] += weights[token, place, None] * expert(x[token])
    return out


def ordered_pieces(m, x, weights, ids):
    """Rows in the order of their experts, cut by how many each has, put together and back."""
    counts = ids.new_zeros((ids.shape[0], EXPERTS))
    counts.scatter_(1, ids, 1)
    order = ids.view(-1).argsort()
    rows = x[order // ids.shape[1]]
    outputs, start = [], 0
    for number, size in enumerate(counts.sum(dim=0).tolist()):
        end = start + size
        if size == 0:
            continue
        outputs.append(m.experts[number](rows[start:end]))
        start = end
    outputs = torch.cat(outputs, dim=0)
    back = torch.empty_like(outputs)
    back[order] = outputs
    return (back.view(*ids.shape, -1) * weights.unsqueeze(-1)).sum(1)


def one_that_passes(m, x, weights, ids):
    """The last two experts give back what they get."""
    out = torch.zeros_like(x)
    mask = F.one_hot(ids, num_classes=EXPERTS).permute(2, 1, 0)
    for hit in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        number = int(hit.item())
        place, token = torch.where(mask[number])
        y = m.experts[number](x[token]) if number < EXPERTS - 2 else x[token]
        out.index_add_(0, token, y * weights[token, place, None])
    return out


def split_sizes(m, x, weights, ids):
    counts = torch.zeros(ids.shape[0], EXPERTS).scatter(1, ids, 1).long().sum(0).tolist()
    _, order = ids.flatten().sort(0)
    token = order.div(TOP, rounding_mode="trunc")
    parts = x[token].split(counts, dim=0)
    y = torch.cat([F.linear(parts[i], m.gate_up[i]) for i in range(EXPERTS)], dim=0)
    a, b = y.chunk(2, dim=-1)
    parts = (F.silu(a) * b).split(counts, dim=0)
    y = torch.cat([parts[i] @ m.down[i] for i in range(EXPERTS)], dim=0) * weights.flatten()[order][:, None]
    return torch.zeros_like(x).index_add(0, token, y)


def captured(module: Routed) -> ModelIR:
    recorded = copy.copy(module)
    recorded._modules = module._modules
    recorded.recorded = True
    ir = capture_plain(recorded)
    steps = (CleanUp(), NormalForms(), CleanUp(), TokenMajor(), CleanUp(), CommonSubexpressions(), RaiseLinear())
    for transform in steps:
        transform.run(ir)
    return ir


def seeded(mix, bias: bool = False) -> Routed:
    module = Routed(mix, bias).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


@pytest.mark.parametrize(
    ("mix", "products"),
    [
        (stacked_tensors, 2),
        (modules_by_number, 3),
        (modules_hit, 3),
        (in_place, 3),
        (ordered_pieces, 3),
        (one_that_passes, 3),
        (split_sizes, 2),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_a_loop_over_experts_becomes_products_by_expert(mix, products, bias):
    module = seeded(mix, bias)
    ir = captured(module)
    ids = torch.randint(0, VOCAB, (13,), generator=torch.Generator().manual_seed(1))
    expected = module(ids[None], torch.arange(13)[None])[0]
    weights = dict(module.named_parameters())
    torch.testing.assert_close(run(ir, weights, ids), expected, atol=1e-4, rtol=1e-4)
    check(ir, RaiseExperts(), FoldConstants())
    torch.testing.assert_close(run(ir, weights, ids), expected, atol=1e-4, rtol=1e-4)
    assert count(ir, "autodeploy.expert_linear") == products
    assert count(ir, "autodeploy.linear") == 1  # the router
    assert "aten.sort" not in ops(ir)


def test_experts_that_differ_in_more_than_weights_stay_apart():
    def mix(m, x, weights, ids):
        out = torch.zeros_like(x)
        for number, expert in enumerate(m.experts):
            token, place = torch.where(ids == number)
            y = expert(x[token])
            y = y.relu() if number % 2 else y
            out.index_add_(0, token, y * weights[token, place, None])
        return out

    module = seeded(mix)
    ir = check(captured(module), RaiseExperts())
    ids = torch.arange(16)
    expected = module(ids[None], torch.arange(16)[None])[0]
    torch.testing.assert_close(run(ir, dict(module.named_parameters()), ids), expected, atol=1e-4, rtol=1e-4)
    assert count(ir, "autodeploy.expert_linear") == 0


def masked_rows(m, x, weights, ids):
    out = torch.zeros_like(x)
    for number, expert in enumerate(m.experts):
        share = (weights * (ids == number)).sum(-1)
        mine = (ids == number).any(-1)
        out[mine] += expert(x[mine]) * share[mine][:, None]
    return out


def written_rows(m, x, weights, ids):
    """Each cell's result is written where it belongs."""
    out = x.new_zeros(*ids.shape, WIDTH)
    for number, expert in enumerate(m.experts):
        token, place = torch.where(ids == number)
        out[token, place] = expert(x[token])
    return (out * weights.unsqueeze(-1)).sum(1)


@pytest.mark.parametrize("mix", [masked_rows, written_rows])
def test_other_loops_are_right_too(mix):
    module = seeded(mix)
    ids = torch.arange(16)
    expected = module(ids[None], torch.arange(16)[None])[0]
    found = run(check(captured(module), RaiseExperts()), dict(module.named_parameters()), ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rows_of_an_expert_must_be_computed_row_by_row():
    with pytest.raises(CaptureError, match=r"which rows of tokens are picked .* found arithmetic with cellindex"):
        captured(seeded(lambda m, x, weights, ids: torch.where(ids == 1)[0] * 2 + x))


def test_a_part_of_an_experts_rows_is_refused():
    with pytest.raises(CaptureError, match="found a part of the selected rows at test_transforms_experts"):
        captured(seeded(lambda m, x, weights, ids: x[torch.where(ids == 1)[0][:4]]))
