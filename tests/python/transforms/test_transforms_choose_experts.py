"""Experts that are all computed, and weighted by 0 but for a few, are computed for those few."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transform_graphs import capture_function, check, count

from autodeploy.transforms.choose_experts import ChooseExperts
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.token_major import TokenMajor

EXPERTS, WIDTH, INNER = 4, 8, 6
SHAPES = {"router": (WIDTH, EXPERTS), "up": (EXPERTS, WIDTH, 2 * INNER), "down": (EXPERTS, INNER, WIDTH)}


def _experts(x, p):
    gate, up = torch.bmm(x, p["up"]).chunk(2, dim=-1)
    return torch.bmm(up * F.silu(gate), p["down"])


def _dense(x, pos, p, k=2, hidden=float("-inf"), weigh=torch.sigmoid, before=True):
    logits = x[0] @ p["router"]
    best, ids = torch.topk(logits, k, dim=1)
    weights = weigh(torch.full_like(logits, hidden).scatter_(1, ids, best).float()).to(x.dtype)
    tokens = x[0].repeat(EXPERTS, 1)
    shares = weights.transpose(0, 1).reshape(-1, 1)
    if before:
        y = _experts((tokens * shares).view(EXPERTS, -1, WIDTH), p)
    else:
        y = (_experts(tokens.view(EXPERTS, -1, WIDTH), p).view(-1, WIDTH) * shares).view(EXPERTS, -1, WIDTH)
    return y.sum(0)[None]


RAISED = {
    "weights before": {},
    "weights after": {"before": False},
    "one expert": {"k": 1},
    "softmax": {"weigh": lambda s: s.softmax(-1)},
    "values as they are": {"hidden": 0.0, "weigh": lambda s: s},
}


def _captured(**more):
    ir = capture_function(lambda x, pos, p: _dense(x, pos, p, **more), **SHAPES)
    for transform in (CleanUp(), NormalForms(), CleanUp()):
        transform.run(ir)
    return ir


@pytest.mark.parametrize("name", RAISED)
def test_few_experts_are_computed(name):
    ir = check(_captured(**RAISED[name]), ChooseExperts(), modified=True)
    assert count(ir, "autodeploy.expert_linear") == 2
    assert count(ir, "aten.bmm") == 0
    TokenMajor().run(ir)


STAY = {
    "all weights count": {"hidden": 0.0},  # sigmoid(0) is a half
    "experts that say something of nothing": {"weigh": lambda s: s.softmax(-1) + 0.1},
}


@pytest.mark.parametrize("name", STAY)
def test_the_others_stay(name):
    check(_captured(**STAY[name]), ChooseExperts(), modified=False)
