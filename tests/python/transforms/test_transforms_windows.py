"""Windows over tokens that models write out."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from transform_graphs import capture_function, check, count, random_weights, run

from autodeploy.ops import Batch, Memory
from autodeploy.transforms import TransformError, run_pipeline
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.raise_windows import RaiseWindows


def _padded_by_the_call(x, pos, p):
    y = F.conv1d(x.transpose(1, 2), p["w"], p["b"], padding=3, groups=8)[..., : x.shape[1]]
    return F.silu(y).transpose(1, 2)


def _padded_before(x, pos, p):
    return F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), p["w"], groups=8).transpose(1, 2)


def _dilated(x, pos, p):
    y = F.pad(x.mT, (9, 0))[..., -(9 + x.shape[1]) :]
    return F.silu(F.conv1d(y, p["w"], p["b"], groups=8, dilation=3)).mT


def _dense(x, pos, p):
    return F.conv1d(F.pad(x.mT, (3, 0)), p["dense"], p["b"]).mT


def _grouped_after_depthwise(x, pos, p):
    y = F.conv1d(F.pad(x.mT, (3, 0)), p["w"][..., :2], p["b"], groups=8)
    return F.conv1d(y, p["grouped"], p["b"], groups=4).mT


def _padded_with_ones(x, pos, p):
    return F.conv1d(F.pad(x.mT, (3, 0), value=1.0), p["w"], groups=8).mT


def _one_tap(x, pos, p):
    return F.conv1d(x.mT, p["dense"][..., :1], p["b"]).mT


def _zero_pad(x, pos, p):
    return x * 0.25 + torch.nn.ZeroPad2d((0, 0, 1, -1))(x)


def _cat_and_cut(x, pos, p):
    first = F.linear(x.new_zeros(1, 1, 8), p["square"], p["b"])
    return torch.cat([first, F.linear(x, p["square"], p["b"])[:, :-1]], dim=1)


def _written(x, pos, p):
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return x - y


def _rolled(x, pos, p):
    y = torch.roll(x, 1, 1)
    y[:, 0] = p["b"]
    return x - y


def _two_back(x, pos, p):
    return x + F.pad(x, (0, 0, 2, 0))[:, : x.shape[1]]


def _dynamic(x, pos, p):
    windows = F.pad(x.mT, (3, 0))[..., -(x.shape[1] + 3) :].unfold(-1, 4, 1).flip(-1).transpose(1, 2)
    weights = F.linear(x, p["mix"])
    return (windows * weights.unsqueeze(2)).sum(-1)


def _before_pointwise(x, pos, p):
    """Arithmetic on a padded line."""
    y = torch.cat([x.new_full((1, 2, 8), 0.5), x], dim=1) * 2.0 + 1.0
    shifted = torch.cat([y.new_full((1, 1, 8), 2.0), y[:, :-1]], dim=1)
    return (y - shifted)[:, -x.shape[1] :]


def _ids(x):
    """Small integers of the tokens, some of them 0."""
    return (x[..., 0] * 40.0).to(torch.int64).abs() % 4


def _shifted_in_segments(ids, shift):
    """Ids `shift` places back, or 0 where a 0 stands in between."""
    places = torch.arange(ids.shape[1])
    last = torch.cummax(torch.where(ids == 0, places, -1), dim=1).values
    start = torch.cat([last.new_full((1, 1), -1), last[:, :-1]], dim=1) + 1
    source = places - shift
    found = ids.gather(1, source.clamp_min(0).unsqueeze(0).expand(1, -1))
    valid = (places.unsqueeze(0) - start >= shift) & (source.unsqueeze(0) >= 0)
    return torch.where(valid, found, ids.new_full((), 0))


def _segments_behind_padding(x, pos, p):
    ids = _ids(x)
    line = torch.cat([ids.new_full((1, 3), 0), ids], dim=-1)
    mixed = line * 2305843009213693951
    for shift in (1, 2, 3):
        mixed = torch.bitwise_xor(mixed, _shifted_in_segments(line, shift) * (2**61 + 12345 * shift))
    hashed = torch.remainder(mixed.unsqueeze(-1), p["b"].new_tensor([7, 11, 13], dtype=torch.int64).view(1, 1, -1))
    return hashed[:, -ids.shape[1] :].to(x.dtype)


def _segments(x, pos, p):
    ids = _ids(x)
    places = torch.arange(ids.shape[1])
    last = torch.cummax(torch.where(ids == 0, places, -1), dim=1).values
    since = places.unsqueeze(0) - last
    return torch.stack([(since > 2), (since < 1), (since >= 4) & (places >= 5)], -1).to(x.dtype)


WEIGHTS = {"w": (8, 1, 4), "b": (8,), "dense": (8, 8, 4), "grouped": (8, 2, 3), "square": (8, 8), "mix": (4, 8)}
RAISED = {
    "causal_conv1d": [_padded_by_the_call, _padded_before, _dilated],
    "window": [
        _dense, _grouped_after_depthwise, _padded_with_ones, _zero_pad, _cat_and_cut, _written, _rolled, _two_back,
        _dynamic, _before_pointwise, _segments_behind_padding, _segments,
    ],
    "linear": [_one_tap],
}  # fmt: skip
CASES = [pytest.param(f, op, id=f.__name__) for op, functions in RAISED.items() for f in functions]


@pytest.mark.parametrize(("function", "op"), CASES)
def test_raised(function, op):
    ir = capture_function(function, **WEIGHTS)
    CleanUp().run(ir)
    check(ir, RaiseWindows())
    assert count(ir, f"autodeploy.{op}" if op != "linear" else "aten.linear") >= 1
    assert not [x for x in ir.graph.nodes if "conv1d" in str(x.target) and "aten" in str(x.target)]


@pytest.mark.parametrize(("function", "op"), CASES)
def test_in_steps(function, op):
    ir = capture_function(function, **WEIGHTS)
    weights, ids = random_weights(ir), torch.arange(11)
    expected = run(ir, weights, ids)
    run_pipeline(ir)
    assert all(s.kind == "conv" for s in ir.states.values())
    for cuts in ((0, 2, 3, 11), range(12)):
        memory, found = Memory(), []
        for start, stop in itertools.pairwise(cuts):
            batch = Batch.of([stop - start], past=[start])
            found.append(run(ir, weights, ids[start:stop], batch.positions(), batch, memory))
        assert torch.allclose(torch.cat(found), expected, atol=1e-5)


def test_activation():
    ir = capture_function(_padded_by_the_call, **WEIGHTS)
    CleanUp().run(ir)
    RaiseWindows().run(ir)
    (call,) = [x for x in ir.graph.nodes if "causal_conv1d" in str(x.target)]
    assert call.args[3] == "silu"
    assert count(ir, "aten.silu") == 0


def test_spread_weights_are_made_while_loading():
    ir = capture_function(_dilated, **WEIGHTS)
    run_pipeline(ir)
    (call,) = [x for x in ir.graph.nodes if "causal_conv1d" in str(x.target)]
    assert call.args[1].op == "placeholder"
    assert tuple(call.args[1].meta["val"].shape) == (8, 10)
    assert ir.states["causal_conv1d.0"].components[0].shape == (9, 8)


def _far_marks(x, pos, p):
    """The distance itself, which grows without bound."""
    places = torch.arange(x.shape[1])
    last = torch.cummax(torch.where(x[..., 0] > 0, places, -1), dim=1).values
    return (places.unsqueeze(0) - last).unsqueeze(-1).to(x.dtype)


OTHERS = {
    "how far back a mark is": _far_marks,
    "gathers ahead": lambda x, pos, p: x.gather(
        1, (torch.arange(x.shape[1] + 1)[1:] % 5)[None, :, None].expand(1, -1, 8)
    ),
    "the first token again": lambda x, pos, p: x.gather(
        1, (torch.arange(x.shape[1]) - 1).clamp_min(0)[None, :, None].expand(1, -1, 8)
    ),
    "sees the next token": lambda x, pos, p: F.conv1d(F.pad(x.mT, (2, 1)), p["w"], groups=8).mT,
    "centred": lambda x, pos, p: F.conv1d(x.mT, p["w"][..., :3], groups=8, padding=1).mT,
    "pads behind": lambda x, pos, p: F.pad(x, (0, 0, -1, 1)),
    "strides": lambda x, pos, p: F.conv1d(F.pad(x.mT, (3, 0)), p["w"], groups=8, stride=2).mT,
    "rolls": lambda x, pos, p: torch.roll(x, 1, 1),
    "rolls back": lambda x, pos, p: torch.roll(x, -1, 1),
    "first token everywhere": lambda x, pos, p: torch.cat([x[:, :1], x[:, :-1]], dim=1),
    "windows ahead": lambda x, pos, p: F.pad(x.mT, (0, 3)).unfold(-1, 4, 1).sum(-1).mT,
    "last tokens first": lambda x, pos, p: torch.cat([x.flip(1)[:, :1], x[:, :-1]], dim=1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused(name):
    with pytest.raises(TransformError, match=r"\[token axis\] [\w.]+ at transform_graphs.py:\d+"):
        run_pipeline(capture_function(OTHERS[name], **WEIGHTS))
