"""Token-wise ops against plain PyTorch, and their rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autodeploy.ops import OPS
from autodeploy.ops.base import random

op = torch.ops.autodeploy


def test_norms_are_those_of_pytorch():
    x, w, b = random(1, 3, 5, 8), random(2, 8), random(3, 8)
    torch.testing.assert_close(op.rms_norm(x, w, 1e-5), F.rms_norm(x, (8,), w, 1e-5))
    torch.testing.assert_close(op.rms_norm(x, w, 1e-5, 1.0), F.rms_norm(x, (8,), w + 1, 1e-5))
    torch.testing.assert_close(op.layer_norm(x, w, b, 1e-5), F.layer_norm(x, (8,), w, b, 1e-5))
    torch.testing.assert_close(op.layer_norm(x, None, None, 1e-5), F.layer_norm(x, (8,), None, None, 1e-5))


def test_residual_norms_are_their_parts():
    x, r, w, b = random(1, 4, 8), random(2, 4, 8), random(3, 8), random(4, 8)
    for dtype in (torch.float32, torch.bfloat16):
        y, s = x.to(dtype), r.to(dtype)
        normed, total = op.add_rms_norm(y, s, w, 1e-5)
        assert torch.equal(total, y + s)
        assert torch.equal(normed, op.rms_norm(y + s, w, 1e-5))
        normed, total = op.add_layer_norm(y, s, w, b, 1e-5)
        assert torch.equal(total, y + s)
        assert torch.equal(normed, op.layer_norm(y + s, w, b, 1e-5))


def test_float32_inside_one_rounding():
    x = random(1, 4, 64).bfloat16()
    assert torch.equal(op.rms_norm(x, None, 1e-6), F.rms_norm(x.float(), (64,), None, 1e-6).bfloat16())
    w = random(2, 8, 64).bfloat16()
    assert torch.equal(op.linear(x, w, None), (x.float() @ w.float().T).bfloat16())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [4, 8])
def test_rope_is_multiplication_of_complex_numbers(interleaved, rotary):
    x, angle = random(1, 5, 3, 8), random(2, 5, rotary // 2)
    turned, rest = x[..., :rotary], x[..., rotary:]
    pairs = turned.unflatten(-1, (-1, 2)) if interleaved else turned.unflatten(-1, (2, -1)).transpose(-1, -2)
    spun = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)[:, None]
    back = torch.view_as_real(spun)
    expected = back.flatten(-2) if interleaved else back.transpose(-1, -2).flatten(-2)
    found = op.rope(x, angle.cos(), angle.sin(), interleaved)
    torch.testing.assert_close(found, torch.cat([expected, rest], -1))


def test_rope_refuses_tables_that_are_too_wide():
    with pytest.raises(ValueError, match=r"\[rope\] expected cos and sin"):
        op.rope(torch.zeros(1, 1, 4), torch.zeros(1, 3), torch.zeros(1, 3))


def test_embedding_and_linear():
    ids, table = torch.tensor([[3, 0], [1, 3]]), random(1, 4, 6)
    assert torch.equal(op.embedding(ids, table), F.embedding(ids, table))
    x, w, b = random(1, 2, 3, 6), random(2, 5, 6), random(3, 5)
    torch.testing.assert_close(op.linear(x, w, b), F.linear(x, w, b))


def test_expert_linear_is_one_product_for_each_row():
    x, w, b = random(1, 4, 6), random(2, 3, 5, 6), random(3, 3, 5)
    ids = torch.tensor([2, 0, 1, 1, -1, 3, 0, 2])
    found = op.expert_linear(x, w, ids, b, 2)
    for row, e in enumerate(ids.tolist()):
        expected = w[e] @ x[row // 2] + b[e] if 0 <= e < 3 else torch.zeros(5)
        torch.testing.assert_close(found[row], expected)
    with pytest.raises(ValueError, match=r"\[expert_linear\] expected 8 ids / 3"):
        op.expert_linear(x, w, ids, b, 3)


def test_select_rows_takes_the_batch_rows():
    sample = next(s for s in OPS["select_rows"].samples() if s.name == "rows_2_5")
    ((found,),) = OPS["select_rows"].expected(sample)
    assert torch.equal(found, sample.steps[0].operands["x"][[2, 5]])
