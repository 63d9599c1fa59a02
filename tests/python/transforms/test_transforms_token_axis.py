"""The static proof: what keeps tokens apart is let through, what mixes them is refused by its line."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from transform_graphs import capture, capture_function, check
from transform_models import Decoder

from autodeploy.transforms import TransformError
from autodeploy.transforms.axes import Axis, Refusal, regroup
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.token_axis import token_axes
from autodeploy.transforms.token_major import TokenMajor

LEAKS = {
    "sum over tokens": (lambda x, pos, p: x - x.sum(1, keepdim=True), "reduces over tokens"),
    "mean over everything": (lambda x, pos, p: x - x.mean(), "reduces over tokens"),
    "max over positions": (lambda x, pos, p: x * (pos.max() + 1), "reduces over tokens"),
    "cumsum": (lambda x, pos, p: x.cumsum(1), "scans over tokens"),
    "softmax over tokens": (lambda x, pos, p: x.softmax(1), "normalises over tokens"),
    "sort": (lambda x, pos, p: x.sort(dim=1)[0], "sorts tokens"),
    "topk": (lambda x, pos, p: x + x.topk(1, dim=1)[0], "selects among tokens"),
    "scores": (lambda x, pos, p: (x @ x.transpose(1, 2)).softmax(-1) @ x, "two dims grow|pairs tokens"),
    "outer sum": (lambda x, pos, p: x + (pos[:, :, None] - pos[:, None, :]).sum(-1, keepdim=True), "pairs tokens"),
    "product over tokens": (lambda x, pos, p: x @ (x.transpose(1, 2) @ x), "sums over tokens"),
    "shift": (lambda x, pos, p: x + F.pad(x, (0, 0, 1, -1)), "pads or shifts|one dim with tokens|singles out"),
    "first token": (lambda x, pos, p: x + x[:, :1], "singles out tokens"),
    "last token": (lambda x, pos, p: x + x[:, -1:], "singles out"),
    "select": (lambda x, pos, p: x + x[:, 0][:, None], "singles out a token"),
    "flip": (lambda x, pos, p: x.flip(1), "other places"),
    "roll": (lambda x, pos, p: x + x.roll(1, 1), "other places|behind tokens|singles out"),
    "arange": (lambda x, pos, p: x + torch.arange(x.shape[1])[None, :, None], "numbers the tokens"),
    "number of tokens": (lambda x, pos, p: x / x.shape[1], "computes with the number of tokens"),
    "regrouping": (lambda x, pos, p: x.transpose(1, 2).reshape(1, -1, 4), "mixes tokens"),
    "concatenation": (lambda x, pos, p: torch.cat([x, x], 1).reshape(1, 2, -1, 8).sum(1), "behind tokens"),
    "window": (lambda x, pos, p: F.conv1d(F.pad(x.transpose(1, 2), (1, 0)), p["w"]).transpose(1, 2), "pads or shifts"),
    "gather": (lambda x, pos, p: x.gather(1, pos[:, :, None].expand(-1, -1, 8)), "picks tokens by index"),
    "indexing": (lambda x, pos, p: x[:, pos[0]], "picks tokens by index"),
    "batch norm": (lambda x, pos, p: (x - x.mean((0, 1))) / x.std((0, 1)), "reduces over tokens"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leak_is_refused(name):
    function, reason = LEAKS[name]
    ir = capture_function(function, w=(8, 8, 2))
    CleanUp().run(ir)
    NormalForms().run(ir)
    with pytest.raises(TransformError, match=reason) as caught:
        TokenMajor().run(ir)
    assert re.match(r"\[token axis\] \S+ at transform_\w+\.py:\d+ forward: ", str(caught.value)), "no op or no line"


KEPT = {
    "last dim": lambda x, pos, p: x.softmax(-1) + x.cumsum(-1) + x.sort(-1)[0] + x.flip(-1),
    "heads": lambda x, pos, p: x.view(1, -1, 4, 2).transpose(1, 2).sum(1).repeat(1, 1, 4),
    "merged": lambda x, pos, p: x.reshape(-1, 2).softmax(-1).reshape(1, -1, 8),
    "experts": lambda x, pos, p: (x.view(-1, 8).repeat(3, 1).view(3, -1, 8) * p["w"][:, None]).sum(0)[None],
    "scatter": lambda x, pos, p: torch.zeros_like(x).scatter(2, x.topk(2, -1)[1], 1.0) * x,
    "one hot": lambda x, pos, p: (pos[..., None] % 8 == torch.arange(8)) * x,
    "table": lambda x, pos, p: x + p["table"][pos % 16],
    "per token matrix": lambda x, pos, p: (x.view(1, -1, 2, 4).mT @ x.view(1, -1, 2, 4)).flatten(2)[..., :8],
}


@pytest.mark.parametrize("name", KEPT)
def test_token_wise_is_kept(name):
    ir = capture_function(KEPT[name], w=(3, 8), table=(16, 8))
    check(ir, CleanUp(), NormalForms(), CleanUp(), TokenMajor(), tokens=7)


def test_mixers_may_mix():
    axes = token_axes(capture(Decoder(layers=1)).graph)
    assert all(sum(a is not None for a in x) <= 1 for x in axes.values() if not x or not isinstance(x[0], tuple))


class _Size:
    """A size 'factor * T' for `regroup`, without a shape environment."""

    def __init__(self, factor: int):
        import sympy

        self.node = type("Node", (), {"expr": factor * sympy.Symbol("T", integer=True)})()


T, T2, T8 = _Size(1), _Size(2), _Size(8)


@pytest.mark.parametrize(
    ("axes", "old", "new", "expected"),
    [
        ((None, Axis(), None), (1, T, 8), (T, 8), (Axis(), None)),
        ((Axis(), None), (T, 8), (1, T, 2, 4), (None, Axis(), None, None)),
        ((Axis(), None, None), (T, 2, 4), (T2, 4), (Axis(1, 2), None)),
        ((Axis(1, 8),), (T8,), (T, 2, 4), (Axis(), None, None)),
        ((None, Axis(), None), (4, T, 2), (T8,), (Axis(4, 2),)),
        ((Axis(4, 2),), (T8,), (4, T, 2), (None, Axis(), None)),
        ((None, Axis(), None), (4, T, 2), (T, 8), None),
        ((Axis(4, 2),), (T8,), (T, 8), None),
        ((Axis(), None), (T, 8), (8, T), None),
    ],
)
def test_regroup(axes, old, new, expected):
    if expected is None:
        with pytest.raises(Refusal):
            regroup(axes, old, new)
    else:
        assert regroup(axes, old, new) == expected
