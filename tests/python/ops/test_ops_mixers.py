"""Token mixers: any cutting of sequences into steps, and any company in a batch, gives the same results."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_batches import lengths_and_steps, run_in_steps

from autodeploy.ops import OPS, Batch, schedule
from autodeploy.ops.base import random

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def sequences_of(lengths: list[int], shapes: dict[str, tuple[int, ...]], scale: float = 1.0):
    return {
        slot: {name: random(31 * slot + i, n, *shape, scale=scale) for i, (name, shape) in enumerate(shapes.items())}
        for slot, n in enumerate(lengths, 1)
    }


def check_steps(op, sequences, fixed, attrs, steps):
    alone = {
        slot: run_in_steps(op, {slot: rows}, fixed, attrs, [Batch.of([len(next(iter(rows.values())))], slots=[slot])])
        for slot, rows in sequences.items()
    }
    found = run_in_steps(op, sequences, fixed, attrs, schedule(*steps))
    for slot, expected in alone.items():
        torch.testing.assert_close(found[slot], expected[slot], **TOLERANCE)


@settings(max_examples=40)
@given(
    lengths_and_steps(),
    st.sampled_from([(4, 2, 8, 8), (3, 3, 4, 6), (4, 1, 6, 3)]),
    st.sampled_from([{}, {"window": 1}, {"window": 4}, {"chunk": 3}, {"softcap": 1.5}, {"window": 5, "softcap": 2.0}]),
    st.sets(st.sampled_from(["sinks", "token_sinks", "slopes", "table", "lists", "lists_of_heads"])),
)
def test_attention_in_any_steps(plan, heads, options, forms):
    lengths, steps = plan
    q_heads, kv_heads, width, value_width = heads
    shapes = {"q": (q_heads, width), "k": (kv_heads, width), "v": (kv_heads, value_width)}
    attrs = {"scale": 0.4, "causal": True, "window": 0, "chunk": 0, "softcap": 0.0} | options
    fixed = {
        "sinks": random(5, q_heads) if "sinks" in forms else None,
        "slopes": random(6, q_heads) if "slopes" in forms else None,
        "bias_table": None,
        "indices": None,
    }
    if "token_sinks" in forms:
        shapes["sinks"] = (q_heads,)
    if "table" in forms:
        shapes["bias_table"] = (q_heads, 3)
    if "lists" in forms or "lists_of_heads" in forms:
        shapes["indices"] = (kv_heads, 4) if "lists_of_heads" in forms else (4,)
    sequences = sequences_of(lengths, shapes)
    for rows in sequences.values():
        if "indices" in rows:  # places from -1 to 8, before the token or not, some of them twice
            rows["indices"] = (rows["indices"].abs() * 4).long() - 1
    check_steps(OPS["attention"], sequences, {n: x for n, x in fixed.items() if n not in shapes}, attrs, steps)


def test_attention_reads_what_an_earlier_call_has_put_into_the_state():
    op = OPS["attention"]
    q, k, v = random(1, 7, 4, 8), random(2, 7, 2, 8), random(3, 7, 2, 6)
    rest = [None, None, None, None, 0.3, True, 3, 0, 0.0]
    states = op.make_states(q, k, v, *rest)
    whole = op.reference(Batch.of([7]), op.make_states(q, k, v, *rest), q, k, v, *rest)
    for batch, rows in zip(schedule({1: 4}, {1: 1}, {1: 2}), (slice(0, 4), slice(4, 5), slice(5, 7)), strict=True):
        first = op.reference(batch, states, q[rows], k[rows], v[rows], *rest)
        again = op.reference(batch, states, q[rows], None, None, *rest)
        assert torch.equal(first, again)
        torch.testing.assert_close(first, whole[rows], **TOLERANCE)


def test_attention_adds_bias_by_distance():
    q, k, v = (random(i, 5, 2, 4) for i in range(3))
    slopes, table = torch.tensor([-0.5, 0.25]), random(4, 5, 2, 3)
    i, j = torch.arange(5)[:, None], torch.arange(5)[None, :]
    bias = slopes[:, None, None] * (j - i)
    for distance in range(3):
        bias = bias + torch.where(i - j == distance, table[:, :, distance].T[:, :, None], 0.0)
    seen = torch.where(j <= i, 0.0, -math.inf)
    by_head = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*by_head, attn_mask=bias + seen, scale=0.5)
    found = torch.ops.autodeploy.attention(q, k, v, None, slopes, table, None, 0.5)
    torch.testing.assert_close(found, expected[0].transpose(0, 1), **TOLERANCE)


def test_attention_sees_listed_keys_alone():
    q, k, v = (random(i, 4, 2, 4) for i in range(3))
    lists = torch.tensor([[0, 3], [-1, 0], [1, 1], [9, 2]])
    seen = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).bool()
    by_head = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*by_head, attn_mask=seen, scale=0.5)
    found = torch.ops.autodeploy.attention(q, k, v, None, None, None, lists, 0.5)
    torch.testing.assert_close(found, expected[0].transpose(0, 1), **TOLERANCE)


@settings(max_examples=40)
@given(lengths_and_steps(), st.integers(1, 6), st.booleans(), st.sampled_from(["", "silu"]))
def test_causal_conv1d_in_any_steps(plan, width, has_bias, activation):
    lengths, steps = plan
    fixed = {"weight": random(1, 5, width), "bias": random(2, 5) if has_bias else None}
    sequences = sequences_of(lengths, {"x": (5,)})
    check_steps(OPS["causal_conv1d"], sequences, fixed, {"activation": activation}, steps)


@settings(max_examples=40)
@given(
    lengths_and_steps(),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(max),
    st.sampled_from([torch.float32, torch.int64]),
    st.booleans(),
)
def test_window_in_any_steps(plan, back, dtype, has_fill):
    lengths, steps = plan
    sequences = {
        slot: {name: (x * 2.0**40).to(dtype) for name, x in rows.items()}
        for slot, rows in sequences_of(lengths, {"x": (5,)}).items()
    }
    fixed = {"fill": torch.arange(5).to(dtype) - 2 if has_fill else None}
    check_steps(OPS["window"], sequences, fixed, {"back": back}, steps)


@settings(max_examples=40)
@given(lengths_and_steps(), st.sampled_from([1, 2, 4]), st.booleans())
def test_ssd_in_any_steps(plan, groups, softplus):
    lengths, steps = plan
    shapes = {"x": (4, 3), "dt": (4,), "b": (groups, 6), "c": (groups, 6)}
    fixed = {"a": -random(1, 4).exp(), "d": random(2, 4), "dt_bias": random(3, 4)}
    attrs = {"softplus": softplus, "dt_min": 0.0, "dt_max": 2.0}
    check_steps(OPS["ssd"], sequences_of(lengths, shapes), fixed, attrs, steps)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
def test_attention_is_scaled_dot_product_attention(causal, heads, kv_heads):
    q, k, v = random(1, 9, heads, 16), random(2, 9, kv_heads, 16), random(3, 9, kv_heads, 24)
    by_head = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*by_head, is_causal=causal, scale=0.3, enable_gqa=heads != kv_heads)
    found = torch.ops.autodeploy.attention(q, k, v, None, None, None, None, 0.3, causal)
    torch.testing.assert_close(found, expected[0].transpose(0, 1), **TOLERANCE)


@pytest.mark.parametrize(("window", "chunk"), [(1, 0), (3, 0), (100, 0), (0, 4), (0, 1), (3, 4)])
def test_windows_and_chunks_are_masks(window, chunk):
    q, k, v = (random(i, 11, 2, 8) for i in range(3))
    i, j = torch.arange(11)[:, None], torch.arange(11)[None, :]
    seen = j <= i
    if window:
        seen &= i - j < window
    if chunk:
        seen &= i // chunk == j // chunk
    by_head = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*by_head, attn_mask=seen, scale=0.5)
    found = torch.ops.autodeploy.attention(q, k, v, None, None, None, None, 0.5, True, window, chunk)
    torch.testing.assert_close(found, expected[0].transpose(0, 1), **TOLERANCE)


def test_sinks_take_a_share_and_softcap_bounds_scores():
    q, k = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)
    v = torch.ones(2, 1, 3)
    found = torch.ops.autodeploy.attention(q, k, v, torch.tensor([0.0]), None, None, None, 1.0)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([1 / 2, 2 / 3]))
    q, k = torch.full((2, 1, 4), 50.0), torch.tensor([[[50.0] * 4], [[-50.0] * 4]])
    found = torch.ops.autodeploy.attention(q, k, torch.tensor([[[1.0]], [[0.0]]]), *[None] * 4, 1.0, softcap=0.5)
    torch.testing.assert_close(found[1, 0, 0], torch.sigmoid(torch.tensor(1.0)))


def test_causal_conv1d_is_conv1d():
    x, weight, bias = random(1, 10, 6), random(2, 6, 4), random(3, 6)
    expected = F.conv1d(F.pad(x.T[None], (3, 0)), weight[:, None], bias, groups=6)[0].T
    found = torch.ops.autodeploy.causal_conv1d(x, weight, bias, "silu")
    torch.testing.assert_close(found, F.silu(expected), **TOLERANCE)
    with pytest.raises(ValueError, match='found "tanh"'):
        torch.ops.autodeploy.causal_conv1d(x, weight, bias, "tanh")


def test_window_is_unfold_and_shift():
    x, fill = random(1, 10, 6), random(2, 6)
    line = torch.cat([fill.expand(3, 6), x])
    found = torch.ops.autodeploy.window(x, fill, [3, 2, 1, 0])
    assert torch.equal(found, line.unfold(0, 4, 1).mT)
    assert torch.equal(torch.ops.autodeploy.window(x, None, [1])[:, 0], F.pad(x, (0, 0, 1, -1)))
    ids = torch.arange(10)[:, None] - 2**62
    assert torch.ops.autodeploy.window(ids, torch.tensor([-1]), [2])[:, 0, 0].tolist() == [-1, -1, *ids[:8, 0].tolist()]
    with pytest.raises(ValueError, match=r"\[window\] expected distances >= 0, one above 0, found \[0\]"):
        torch.ops.autodeploy.window(x, None, [0])
    with pytest.raises(ValueError, match=r"\[window\] expected x \[T, C\] and a fill \[C\]"):
        torch.ops.autodeploy.window(x, fill[1:], [1])


def test_ssd_is_its_closed_form():
    """y[t] = sum over s <= t of exp(a * sum of dt over (s, t]) dt[s] (c[t] . b[s]) x[s] + d x[t]."""
    tokens, heads = 7, 3
    x, b, c = random(1, tokens, heads, 4), random(2, tokens, 1, 5), random(3, tokens, 1, 5)
    dt, a, d = random(4, tokens, heads).abs(), -random(5, heads).exp(), random(6, heads, 4)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for s in range(t + 1):
            decay = torch.exp(a * dt[s + 1 : t + 1].sum(0))
            expected[t] += (decay * dt[s] * (c[t, 0] @ b[s, 0]))[:, None] * x[s]
        expected[t] += d * x[t]
    found = torch.ops.autodeploy.ssd(x, dt, a, b, c, d, None, False, 0.0, math.inf)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_shapes_that_do_not_fit_are_named():
    q, k = torch.zeros(2, 3, 4), torch.zeros(2, 2, 4)
    with pytest.raises(ValueError, match=r"\[attention\] expected q \[T, Hq, D\]"):
        torch.ops.autodeploy.attention(q, k, k, *[None] * 4, 1.0)
    x, bc = torch.zeros(2, 3, 4), torch.zeros(2, 2, 4)
    with pytest.raises(ValueError, match=r"\[ssd\] expected x \[T, H, P\]"):
        torch.ops.autodeploy.ssd(x, torch.zeros(2, 3), torch.zeros(3), bc, bc, None, None, False, 0.0, 1.0)
