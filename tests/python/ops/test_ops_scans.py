"""selective_scan and gated_delta_rule: any steps give the same results, and the results are what the papers define."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_batches import lengths_and_steps
from test_ops_mixers import TOLERANCE, check_steps, sequences_of

from autodeploy.ops import OPS
from autodeploy.ops.base import random


@settings(max_examples=40)
@given(lengths_and_steps(), st.integers(1, 7), st.booleans(), st.booleans())
def test_selective_scan_in_any_steps(plan, states, softplus, bare):
    lengths, steps = plan
    shapes = {"x": (5,), "dt": (5,), "b": (states,), "c": (states,)}
    fixed = {"a": -random(1, 5, states).exp(), "d": random(2, 5), "dt_bias": random(3, 5)}
    if bare:
        fixed |= {"d": None, "dt_bias": None}
    check_steps(OPS["selective_scan"], sequences_of(lengths, shapes, scale=0.7), fixed, {"softplus": softplus}, steps)


@settings(max_examples=60)
@given(
    lengths_and_steps(),
    st.sampled_from([(2, 4), (3, 3), (1, 2)]),
    st.sampled_from(["none", "head", "channel"]),
    st.booleans(),
)
def test_gated_delta_rule_in_any_steps(plan, heads, gate, l2norm):
    lengths, steps = plan
    key_heads, value_heads = heads
    shapes = {"q": (key_heads, 6), "k": (key_heads, 6), "v": (value_heads, 5), "beta": (value_heads,)}
    gate_shape = {"none": None, "head": (value_heads,), "channel": (value_heads, 6)}[gate]
    if gate_shape:
        shapes["g"] = gate_shape
    sequences = sequences_of(lengths, shapes, scale=0.4)
    for rows in sequences.values():
        rows["beta"] = torch.sigmoid(rows["beta"])
        if gate_shape:
            rows["g"] = -rows["g"].abs()
    fixed = {} if gate_shape else {"g": None}
    attrs = {"scale": 0.4, "l2norm": l2norm, "eps": 1e-6}
    check_steps(OPS["gated_delta_rule"], sequences, fixed, attrs, steps)


def test_selective_scan_is_its_closed_form():
    """y[t] = sum over s <= t of (exp(a * sum of dt over (s, t]) * dt[s] x[s] b[s]) . c[t] + d x[t]."""
    tokens, channels, states = 7, 4, 3
    x, b, c = random(1, tokens, channels), random(2, tokens, states), random(3, tokens, states)
    dt, a, d = random(4, tokens, channels).abs(), -random(5, channels, states).exp(), random(6, channels)
    expected = d * x
    for t in range(tokens):
        for s in range(t + 1):
            decay = torch.exp(a * dt[s + 1 : t + 1].sum(0)[:, None])
            expected[t] += (decay * (dt[s] * x[s])[:, None] * b[s]) @ c[t]
    found = torch.ops.autodeploy.selective_scan(x, dt, a, b, c, d, None, False)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("per_channel", [True, False])
def test_gated_delta_rule_is_its_product_of_matrices(per_channel):
    """S[t] = (I - beta k k^T) diag(exp g) S[t - 1] + beta k v^T, and y = q^T S."""
    tokens, width, value_width = 6, 4, 3
    q, k, v = random(1, tokens, 1, width), random(2, tokens, 1, width), random(3, tokens, 1, value_width)
    beta = torch.sigmoid(random(4, tokens, 1))
    g = -random(5, tokens, 1, width).abs() if per_channel else -random(5, tokens, 1).abs()
    s = torch.zeros(width, value_width)
    expected = torch.zeros_like(v)
    for t in range(tokens):
        forget = torch.diag(g[t, 0].exp().expand(width))
        kt = k[t, 0]
        s = (torch.eye(width) - beta[t] * torch.outer(kt, kt)) @ forget @ s + beta[t] * torch.outer(kt, v[t, 0])
        expected[t, 0] = 0.5 * q[t, 0] @ s
    found = torch.ops.autodeploy.gated_delta_rule(q, k, v, g, beta, 0.5)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_normalised_keys_have_length_one():
    q, k, v = random(1, 5, 2, 8), random(2, 5, 2, 8), random(3, 5, 4, 6)
    beta = torch.ones(5, 4)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (q, k)]
    found = torch.ops.autodeploy.gated_delta_rule(q, k, v, None, beta, 1.0, True, 0.0)
    expected = torch.ops.autodeploy.gated_delta_rule(*unit, v, None, beta, 1.0)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    # A full correction (beta 1, no decay) stores the value exactly: reading with the key gives it back.
    again = torch.ops.autodeploy.gated_delta_rule(unit[1], unit[1], v, None, beta, 1.0)
    torch.testing.assert_close(again, v, **TOLERANCE)


def test_shapes_that_do_not_fit_are_named():
    x, bc = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"\[selective_scan\] expected x, dt \[T, C\]"):
        torch.ops.autodeploy.selective_scan(x, x, torch.zeros(3, 5), bc, bc, None, None, False)
    q, v = torch.zeros(2, 3, 4), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match=r"\[gated_delta_rule\] expected q, k \[T, Hk, Dk\]"):
        torch.ops.autodeploy.gated_delta_rule(q, q, v, None, torch.zeros(2, 4), 1.0)
