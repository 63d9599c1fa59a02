"""Calls that compute nothing go; those that do stay."""

from __future__ import annotations

import pytest
import torch
from transform_graphs import capture_function, check, ops

from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.normal_forms import NormalForms

NOTHING = {
    "neutral numbers": lambda x, pos, p: ((x * 1.0 + 0.0) / 1 - 0) ** 1,
    "copies": lambda x, pos, p: x.clone().contiguous().detach(),
    "dropout": lambda x, pos, p: torch.dropout(x, 0.5, False),
    "conversions": lambda x, pos, p: x.float().to(torch.bfloat16).to(x.dtype),
    "views": lambda x, pos, p: x.reshape(1, -1, 2, 4).reshape(1, -1, 8)[:, :, :8].expand(1, -1, 8),
    "permutations": lambda x, pos, p: x.permute(2, 0, 1).permute(1, 2, 0),
    "double negation": lambda x, pos, p: x.neg().neg(),
    "cat of one": lambda x, pos, p: torch.cat([x], -1),
    "unused": lambda x, pos, p: (x.exp().sum(), x)[1],
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_left(name):
    ir = capture_function(NOTHING[name])
    check(ir, CleanUp(), NormalForms(), CleanUp())
    assert set(ops(ir)) == {"aten.embedding", "aten.unsqueeze", "aten.squeeze"}


KEPT = {
    "rounding": lambda x, pos, p: (x.float() * 1.5).to(torch.bfloat16).float(),
    "broadcast": lambda x, pos, p: x[..., :1] + torch.zeros(8, dtype=x.dtype),
    "other numbers": lambda x, pos, p: (x * 2 + 1) / 3 - 1,
    "part": lambda x, pos, p: x[..., 1:],
}


@pytest.mark.parametrize("name", KEPT)
def test_what_computes_is_kept(name):
    ir = capture_function(KEPT[name])
    check(ir, CleanUp(), NormalForms(), CleanUp())
    assert len(ops(ir)) > 3
