"""Recurrences: any cutting into steps gives the same results, which are those of a closed form over all tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_batches import lengths_and_steps
from test_ops_mixers import TOLERANCE, check_steps, sequences_of

from autodeploy.ops import OPS
from autodeploy.ops.base import random

canonical = torch.ops.autodeploy


@settings(max_examples=30)
@given(lengths_and_steps(), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.3]))
def test_linear_attention_in_any_steps(plan, has_gate, has_decay, scale):
    lengths, steps = plan
    shapes = {"q": (3, 4), "k": (3, 4), "v": (3, 5)} | ({"gate": (3,)} if has_gate else {})
    fixed = {"decay": -random(1, 3).exp() if has_decay else None} | ({} if has_gate else {"gate": None})
    check_steps(OPS["linear_attention"], sequences_of(lengths, shapes, scale=0.7), fixed, {"scale": scale}, steps)


@settings(max_examples=30)
@given(lengths_and_steps())
def test_linear_scan_in_any_steps(plan):
    lengths, steps = plan
    check_steps(OPS["linear_scan"], sequences_of(lengths, {"x": (6,), "a": (6,)}, scale=0.8), {}, {}, steps)


@settings(max_examples=30)
@given(lengths_and_steps(), st.sampled_from([1.0, 40.0]))
def test_wkv_in_any_steps(plan, scale):
    lengths, steps = plan
    fixed = {"decay": -random(1, 6).exp(), "bonus": random(2, 6)}
    check_steps(OPS["wkv"], sequences_of(lengths, {"k": (6,), "v": (6,)}, scale=scale), fixed, {}, steps)


@settings(max_examples=30)
@given(lengths_and_steps(), st.sampled_from([1.0, 6.0]))
def test_mlstm_in_any_steps(plan, scale):
    lengths, steps = plan
    shapes = {"q": (3, 4), "k": (3, 4), "v": (3, 5), "input_gate": (3,), "forget_gate": (3,)}
    attrs = {"scale": 0.5, "eps": 1e-6}
    check_steps(OPS["mlstm"], sequences_of(lengths, shapes, scale=scale), {}, attrs, steps)


def before(tokens: int) -> torch.Tensor:
    """[T, T]: s <= t."""
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def test_linear_attention_is_its_matrix_form():
    """y = scale * (q k^T . D) v with D[t, s] = exp(sum of gate + decay over (s, t])."""
    q, k, v = random(1, 9, 2, 4), random(2, 9, 2, 4), random(3, 9, 2, 5)
    gate, decay = -random(4, 9, 2).abs(), -random(5, 2).exp()
    total = (gate + decay).cumsum(0).T
    weight = torch.where(before(9), total[:, :, None] - total[:, None, :], -torch.inf).exp()
    scores = torch.einsum("thd,shd->hts", q, k) * weight
    expected = 0.3 * torch.einsum("hts,shv->thv", scores, v)
    torch.testing.assert_close(canonical.linear_attention(q, k, v, gate, decay, 0.3), expected, **TOLERANCE)


def test_linear_attention_is_ssd_with_constant_steps():
    q, k, v, decay = random(1, 9, 2, 4), random(2, 9, 2, 4), random(3, 9, 2, 5), -random(5, 2).exp()
    expected = canonical.ssd(v, torch.ones(9, 2), decay, k, q, None, None, False, 0.0, torch.inf)
    torch.testing.assert_close(canonical.linear_attention(q, k, v, None, decay, 1.0), expected, **TOLERANCE)


def test_linear_scan_is_its_closed_form():
    x, a = random(1, 7, 3), torch.sigmoid(random(2, 7, 3))
    log = a.log().cumsum(0)
    weight = torch.where(before(7)[..., None], log[:, None] - log[None], -torch.inf).exp()
    torch.testing.assert_close(canonical.linear_scan(x, a), (weight * x[None]).sum(1), **TOLERANCE)


def test_wkv_is_its_closed_form_and_does_not_overflow():
    k, v, decay, bonus = random(1, 7, 3), random(2, 7, 3), -random(3, 3).exp(), random(4, 3)
    t = torch.arange(7)
    exponents = k[None] + (t[:, None] - 1 - t[None])[..., None] * decay
    own = torch.diag_embed((k + bonus).T).permute(1, 2, 0)
    past = before(7) & ~torch.eye(7, dtype=torch.bool)
    logits = torch.where(
        past[..., None], exponents, torch.where(torch.eye(7, dtype=torch.bool)[..., None], own, -torch.inf)
    )
    expected = (logits.softmax(1) * v[None]).sum(1)
    torch.testing.assert_close(canonical.wkv(k, v, decay, bonus), expected, **TOLERANCE)
    torch.testing.assert_close(canonical.wkv(k + 300, v, decay, bonus), expected, rtol=1e-3, atol=1e-4)


def test_mlstm_is_its_matrix_form():
    """With D[t, s] = exp(sum of logsigmoid(f) over (s, t] + i[s]) and S = scale q k^T . D: y = S v / max(|S 1|, 1)."""
    q, k, v = random(1, 8, 2, 4), random(2, 8, 2, 4), random(3, 8, 2, 5)
    let, forget = random(4, 8, 2), random(5, 8, 2) + 1
    total = torch.nn.functional.logsigmoid(forget).cumsum(0).T
    weight = torch.where(before(8), total[:, :, None] - total[:, None, :] + let.T[:, None, :], -torch.inf).exp()
    scores = 0.5 * torch.einsum("thd,shd->hts", q, k) * weight
    expected = torch.einsum("hts,shv->htv", scores, v) / scores.sum(-1, keepdim=True).abs().clamp(min=1.0)
    found = canonical.mlstm(q, k, v, let, forget, 0.5, 0.0)
    torch.testing.assert_close(found, expected.transpose(0, 1), **TOLERANCE)


def test_shapes_that_do_not_fit_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\[linear_scan\] expected x and a"):
        canonical.linear_scan(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\[wkv\] expected k and v"):
        canonical.wkv(x, x, torch.zeros(2), torch.zeros(3))
    y = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"\[linear_attention\] expected q, k"):
        canonical.linear_attention(y, y, torch.zeros(2, 2, 4), None, None, 1.0)
    with pytest.raises(ValueError, match=r"\[mlstm\] expected q, k"):
        canonical.mlstm(y, y, y, torch.zeros(2, 4), torch.zeros(2, 3), 1.0, 0.0)
