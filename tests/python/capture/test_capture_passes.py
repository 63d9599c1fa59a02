"""Capture's passes on small graphs: writes become values, guards are proved, masks are read, hooks are strict."""

from __future__ import annotations

import types

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from autodeploy.capture import hooks
from autodeploy.capture.attention_hook import attention_forward
from autodeploy.capture.errors import CaptureError
from autodeploy.capture.export import export_prefill
from autodeploy.capture.functionalize import functionalize
from autodeploy.capture.guards import counterexample, discharge
from autodeploy.capture.hook_state import capturing
from autodeploy.capture.kernel_hooks import KERNELS
from autodeploy.capture.mask_hook import boolean_mask
from autodeploy.capture.mask_kind import MaskKind, describe
from autodeploy.capture.sizes import fold_sizes

# --- writes


def written(function, *args: torch.Tensor) -> tuple[GraphModule, torch.Tensor]:
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    program = torch.export.export(Module(), args, strict=False)
    graph = functionalize(program.graph_module.graph)
    assert not [n for n in graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False)]
    return GraphModule(torch.nn.Module(), graph), function(*[a.clone() for a in args])


def into_slices(x):
    out = x.new_empty(2, 6)
    out[:, :2] = x[:, 2:]
    out[:, 2:] = x * 2
    return out + 1


def view_read_after_write(x):
    y = x * 1
    row, turned = y[0], y.t()
    y.mul_(3)
    return row.sum() + turned[1, 0] + y


def through_a_chain_of_views(x):
    y = x + 0
    y.t()[1:3].unsqueeze(0).add_(10)
    return y


def into_a_part_of_a_split(x):
    y = x * 1
    left, right = y.split([1, 3], dim=1)
    right.div_(2)
    left.add_(right[:, :1])
    return y, left, right


def copy_is_left_alone(x):
    y = x * 1
    before = y.t().contiguous()
    y.zero_()
    return before, y


def reshaped_and_permuted(x):
    y = x * 1
    y.view(-1).clamp_(max=0.5)
    y.view(2, 2, 2).permute(2, 0, 1)[1].sub_(7)
    return y


def select_and_scatter(x):
    y = x * 1
    y[1].masked_fill_(y[1] > 0, -1)
    y.scatter_(1, torch.zeros(2, 1, dtype=torch.int64), 5.0)
    return y


@pytest.mark.parametrize(
    "function",
    [
        into_slices,
        view_read_after_write,
        through_a_chain_of_views,
        into_a_part_of_a_split,
        copy_is_left_alone,
        reshaped_and_permuted,
        select_and_scatter,
    ],
)
def test_writes_become_values(function):
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    module, expected = written(function, x)
    found = module(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from(["set", "mul", "add"])), max_size=8))
def test_any_order_of_writes_and_reads(program):
    """Views taken early, written and read in any order."""

    def function(x):
        base = x * 1
        views = [base, base.t(), base[0], base[:, 1:3], base.view(-1)[2:6], base.t()[1:]]
        total = base.sum() * 0
        for target, source, kind in program:
            value = views[source].sum()
            match kind:
                case "set":
                    views[target].copy_(value)
                case "mul":
                    views[target].mul_(0.5)
                case _:
                    views[target].add_(value)
            total = total + views[(target + source) % 6].sum() * 0.1
        return base, total

    x = torch.arange(8.0).reshape(2, 4)
    module, expected = written(function, x)
    for a, b in zip(module(x), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_writes_into_inputs_are_refused():
    with pytest.raises(CaptureError, match="into a parameter or an input"):
        written(lambda x: x.mul_(2), torch.randn(2, 2))


# --- guards

T = sympy.Symbol("s0", integer=True, positive=True)


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (sympy.Ge(T, 1), None),
        (sympy.Le(sympy.Min(8, T), T), None),
        (sympy.Eq(T * sympy.Min(64, 64 * T), 64 * T), None),
        (sympy.Ne(T, 2), 2),
        (sympy.Le(T, 4095), 4096),
        (sympy.Ne(T, 5003), 5003),
        (sympy.Gt(T, 1), 1),
        (sympy.true, None),
        (sympy.false, 1),
        (sympy.Ge(sympy.Symbol("u0", integer=True), 0), 0),
    ],
)
def test_guards_are_proved_or_have_a_counterexample(expr, expected):
    assert counterexample(expr) == expected


class Shifts(torch.nn.Module):
    """A sequence one token late, in Python that may branch on how many tokens there are."""

    def __init__(self, branch: int):
        super().__init__()
        self.branch, self.config = branch, None

    def forward(self, input_ids, **kwargs):
        x = input_ids[..., None].float()
        y = torch.cat([x.new_zeros(1, 1, 1), x[:, :-1].contiguous()], dim=1)
        if x.shape[1] == self.branch:
            y = y + 1
        return types.SimpleNamespace(logits=y)


def test_only_branches_of_the_model_are_guards():
    program, _ = export_prefill(Shifts(0))
    discharge(program.graph_module.graph)
    program, _ = export_prefill(Shifts(2))
    with pytest.raises(CaptureError, match="fails for T = 2"):
        discharge(program.graph_module.graph)


# --- masks


@pytest.fixture(autouse=True, scope="module")
def installed():
    hooks.install()


def test_mask_functions_are_read():
    from transformers import masking_utils as m

    padding = torch.zeros(1, dtype=torch.int64)
    assert describe(m.causal_mask_function) == MaskKind(True)
    assert describe(m.bidirectional_mask_function) == MaskKind()
    assert describe(m.sliding_window_causal_mask_function(7)) == MaskKind(True, window=7)
    assert describe(m.chunked_causal_mask_function(5, padding)) == MaskKind(True, chunk=5)
    both = m.and_masks(m.sliding_window_causal_mask_function(7), m.sliding_window_overlay(3))
    assert describe(both) == MaskKind(True, window=3)
    assert describe(m.sliding_window_causal_mask_function(0)).window == -1


def test_masks_without_a_canonical_form_are_refused():
    from transformers import masking_utils as m

    either = m.or_masks(m.causal_mask_function, m.sliding_window_overlay(3))
    with pytest.raises(CaptureError, match=r"\[mask\] expected causal, window and chunk overlays, found or_masks"):
        describe(either)
    with pytest.raises(CaptureError, match="found two_halves"):
        describe(two_halves)
    with capturing() as state:
        state.positions = torch.arange(3)
        with pytest.raises(CaptureError, match=r"\[mask\] expected known arguments, found tokens_of_images"):
            boolean_mask(mask_function=m.causal_mask_function, tokens_of_images=1)
        with pytest.raises(CaptureError, match="expected no offsets, found 2, 0"):
            boolean_mask(mask_function=m.causal_mask_function, q_offset=2)


def two_halves(batch, head, query, key):
    return query // 2 == key // 2


# --- hooks


def attention_arguments(tokens: int = 3):
    q = torch.randn(1, 2, tokens, 4)
    return torch.nn.Module(), q, q, q, None


def test_attention_takes_no_unknown_argument():
    with capturing():
        with pytest.raises(
            CaptureError, match=r"\[attention\] .* found head_gate at test_capture_passes\.py:\d+ test_att"
        ):
            attention_forward(*attention_arguments(), head_gate=torch.ones(2))
        out, weights = attention_forward(
            *attention_arguments(), head_gate=None, use_cache=False, position_ids=torch.ones(1)
        )
    assert out.shape == (1, 3, 2, 4)
    assert weights is None


def test_attention_over_other_keys_is_refused():
    module, q, _, _, _ = attention_arguments()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    q, k = (mode.from_tensor(x, static_shapes=False) for x in (q, torch.randn(1, 2, 5, 4)))
    with capturing(), pytest.raises(CaptureError, match="expected as many keys as tokens"):
        attention_forward(module, q, k, k, None)


def test_hooks_outside_of_a_capture_are_an_error():
    with pytest.raises(CaptureError, match="only while a model is captured"):
        attention_forward(*attention_arguments())


def conv(hidden_states, weight, bias=None, activation=None, **kwargs):
    raise AssertionError("the hook replaces this")


def scan(hidden_states, dt, A, B, C, chunk_size, D=None, dt_softplus=False, initial_states=None, **kwargs):
    raise AssertionError("the hook replaces this")


def test_kernels_by_name_are_strict_about_arguments():
    x, weight = torch.randn(1, 3, 5), torch.randn(3, 4)
    hook = KERNELS["causal_conv1d_fn"]
    out = hook("causal_conv1d_fn", conv, (x, weight), {"activation": "swish", "use_cache": True, "seq_idx": None})
    reference = torch.nn.functional.conv1d(torch.nn.functional.pad(x, (3, 0)), weight[:, None], groups=3)
    torch.testing.assert_close(out, torch.nn.functional.silu(reference))
    with pytest.raises(CaptureError, match=r"\[causal_conv1d_fn\] expected no seq_idx.*starting from a state"):
        hook("causal_conv1d_fn", conv, (x, weight), {"seq_idx": torch.zeros(1)})
    with pytest.raises(CaptureError, match="expected activation silu or none, found tanh"):
        hook("causal_conv1d_fn", conv, (x, weight, None, "tanh"), {})
    with pytest.raises(CaptureError, match=r"expected x \[1, C, T\] and weight \[C, K\]"):
        hook("causal_conv1d_fn", conv, (x, weight[:2]), {})
    with pytest.raises(CaptureError, match="expected arguments"):
        hook("causal_conv1d_fn", conv, (), {})


def test_the_state_space_kernel_by_name():
    x, dt, a = torch.randn(1, 4, 2, 3), torch.rand(1, 4, 2), -torch.rand(2)
    bc = torch.randn(1, 4, 1, 5)
    hook = KERNELS["mamba_chunk_scan_combined"]
    out = hook("scan", scan, (x, dt, a, bc, bc, 256), {"D": torch.ones(2), "z": None})
    expected = torch.ops.autodeploy.ssd(x[0], dt[0], a, bc[0], bc[0], torch.ones(2), None, False, 0.0, float("inf"))
    assert torch.equal(out[0], expected)
    with pytest.raises(CaptureError, match=r"expected no initial_states"):
        hook("scan", scan, (x, dt, a, bc, bc, 256), {"initial_states": torch.zeros(1)})
    with pytest.raises(CaptureError, match="expected no z,"):
        hook("scan", scan, (x, dt, a, bc, bc, 256), {"z": torch.zeros(1)})


def selective(hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, **kwargs):
    raise AssertionError("the hook replaces this")


def test_the_selective_scan_by_name():
    x, dt, a, z = torch.randn(1, 3, 4), torch.randn(1, 3, 4), -torch.rand(3, 5), torch.randn(1, 3, 4)
    b, c, d = torch.randn(1, 5, 4), torch.randn(1, 5, 4), torch.ones(3)
    hook = KERNELS["selective_scan_fn"]
    options = {"D": d, "z": z, "delta_bias": d, "delta_softplus": True, "use_mambapy": True}
    out = hook("scan", selective, (x, dt, a, b, c), options)
    rows = [t[0].T for t in (x, dt, b, c)]
    expected = torch.ops.autodeploy.selective_scan(rows[0], rows[1], a, rows[2], rows[3], d, d, True)
    torch.testing.assert_close(out[0], expected.T * torch.nn.functional.silu(z[0]))
    assert hook("scan", selective, (x, dt, a, b, c), {"return_last_state": True})[1] is None
    with pytest.raises(CaptureError, match=r"expected states and dt \[1, C, T\]"):
        hook("scan", selective, (x, dt, a, b[0], c), {})


def delta(query, key, value, g, beta, chunk_size=64, initial_state=None, use_qk_l2norm_in_kernel=False, **kwargs):
    raise AssertionError("the hook replaces this")


@pytest.mark.parametrize("name", ["chunk_gated_delta_rule", "chunk_kda", "fused_recurrent_kda"])
def test_the_delta_rule_by_name(name):
    q, k, v, beta = torch.randn(1, 5, 2, 4), torch.randn(1, 5, 2, 4), torch.randn(1, 5, 4, 3), torch.rand(1, 5, 4)
    g = -torch.rand(1, 5, 4, 4) if name.endswith("kda") else -torch.rand(1, 5, 4)
    hook = KERNELS[name]
    out, final = hook(name, delta, (q, k, v, g, beta), {"use_qk_l2norm_in_kernel": True, "cu_seqlens": None})
    expected = torch.ops.autodeploy.gated_delta_rule(q[0], k[0], v[0], g[0], beta[0], 0.5, True, 1e-6)
    assert torch.equal(out[0], expected)
    assert final is None
    with pytest.raises(CaptureError, match=r"expected no initial_state.*starting from a state"):
        hook(name, delta, (q, k, v, g, beta), {"initial_state": torch.zeros(1)})
    with pytest.raises(CaptureError, match="expected no scale,"):
        hook(name, delta, (q, k, v, g, beta), {"scale": 2.0})


# --- sizes


@pytest.mark.parametrize(("take", "whole"), [(lambda x, n: x[:, -n:], True), (lambda x, n: x[:, 1 - n :], False)])
def test_slices_from_the_end_that_take_all_begin_at_0(take, whole):
    class Module(torch.nn.Module):
        def forward(self, ids):
            return take(ids * 2, ids.shape[1])[0]

    ids = torch.arange(9)[None]
    program = torch.export.export(Module(), (ids,), dynamic_shapes=({1: torch.export.Dim("T", min=4, max=64)},))
    graph = program.graph_module.graph
    # As in a capture: the token ids are [T].
    graph_ids = next(n for n in graph.nodes if n.op == "placeholder")
    graph_ids.meta["val"] = graph_ids.meta["val"][0]
    fold_sizes(graph, graph_ids)
    (cut,) = (n for n in graph.nodes if n.target is torch.ops.aten.slice.Tensor and n.args[1] == 1)
    assert (cut.args[2] == 0) == whole
