"""Convolutions over tokens that models write out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transform_graphs import capture_function, check, count, random_weights, run

from autodeploy.ops import Batch, Memory
from autodeploy.transforms import TransformError, run_pipeline
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.raise_convolution import RaiseConvolution


def _padded_by_the_call(x, pos, p):
    y = F.conv1d(x.transpose(1, 2), p["w"], p["b"], padding=3, groups=8)[..., : x.shape[1]]
    return F.silu(y).transpose(1, 2)


def _padded_before(x, pos, p):
    return F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), p["w"], groups=8).transpose(1, 2)


@pytest.mark.parametrize("function", [_padded_by_the_call, _padded_before])
def test_causal_convolution(function):
    ir = capture_function(function, w=(8, 1, 4), b=(8,))
    for transform in (CleanUp(), NormalForms(), CleanUp()):
        transform.run(ir)
    check(ir, RaiseConvolution())
    (call,) = [n for n in ir.graph.nodes if "causal_conv1d" in str(n.target)]
    assert call.args[3] == ("silu" if function is _padded_by_the_call else "")
    assert count(ir, "aten.conv1d") == count(ir, "aten.silu") == 0


def test_in_steps():
    ir = capture_function(_padded_by_the_call, w=(8, 1, 4), b=(8,))
    weights, ids = random_weights(ir), torch.arange(11)
    expected = run(ir, weights, ids)
    run_pipeline(ir)
    assert ir.states["causal_conv1d.0"].kind == "conv"
    memory, found = Memory(), []
    for start, stop in ((0, 2), (2, 3), (3, 11)):
        batch = Batch.of([stop - start], past=[start])
        found.append(run(ir, weights, ids[start:stop], batch.positions(), batch, memory))
    assert torch.allclose(torch.cat(found), expected, atol=1e-5)


OTHERS = {
    "sees the next token": lambda x, pos, p: F.conv1d(F.pad(x.mT, (2, 1)), p["w"], groups=8).mT,
    "mixes channels": lambda x, pos, p: F.conv1d(F.pad(x.mT, (3, 0)), p["dense"]).mT,
    "skips tokens": lambda x, pos, p: F.conv1d(F.pad(x.mT, (6, 0)), p["w"], groups=8, dilation=2).mT,
    "pads with ones": lambda x, pos, p: F.conv1d(F.pad(x.mT, (3, 0), value=1.0), p["w"], groups=8).mT,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_refused(name):
    with pytest.raises(TransformError, match=r"\[token axis\] (constant_pad_nd|pad|conv1d)"):
        run_pipeline(capture_function(OTHERS[name], w=(8, 1, 4), dense=(8, 8, 4)))
