"""Pointwise programs compute what ATen computes, and regions are maximal, convex and computed once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transform_graphs import capture_function, check, count, ops

from autodeploy.artifact import Region
from autodeploy.ir import ModelIR
from autodeploy.ir.region import fused_region, parse_region, region_text
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.common_subexpressions import CommonSubexpressions
from autodeploy.transforms.fold_constants import FoldConstants
from autodeploy.transforms.fuse_regions import FuseRegions
from autodeploy.transforms.nodes import bound
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.pointwise import POINTWISE, RegionBuilder
from autodeploy.transforms.token_major import TokenMajor

aten = torch.ops.aten
X = torch.tensor([-25.0, -3.5, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0, 2.5, 7.0, 30.0])
Y = torch.tensor([2.0, -1.5, 3.0, 0.5, -4.0, 1.0, -2.0, 7.0, 1.0, -0.25, 3.0, 2.0])
P = X.abs() + 0.1
N, M = torch.arange(-6, 6), torch.tensor([3, -2, 5, 1, -1, 4, 2, 2, -3, 3, 1, 7])
B, C = X > 0, Y > 0

CALLS = [
    *((op, (X, Y)) for op in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)),
    *((op, (X, Y)) for op in (aten.minimum.default, aten.maximum.default, aten.fmod.Tensor, aten.remainder.Tensor)),
    *((op, (N, M)) for op in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.fmod.Tensor)),
    *((op, (N, M)) for op in (aten.remainder.Tensor, aten.floor_divide.default, aten.bitwise_and.Tensor)),
    *((op, (N, M)) for op in (aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor, aten.lt.Tensor, aten.eq.Tensor)),
    *((op, (B, C)) for op in (aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default)),
    *((op, (B, C)) for op in (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor)),
    *((op, (X, Y)) for op in (aten.ge.Tensor, aten.gt.Tensor, aten.le.Tensor, aten.ne.Tensor)),
    *((op, (X, 0.5)) for op in (aten.eq.Scalar, aten.gt.Scalar, aten.clamp_min.default, aten.clamp_max.default)),
    *((op, (X,)) for op in (aten.neg.default, aten.abs.default, aten.exp.default, aten.expm1.default)),
    (aten.exp2.default, (X,)),
    *((op, (P,)) for op in (aten.log.default, aten.log2.default, aten.log10.default, aten.log1p.default)),
    *((op, (P,)) for op in (aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default)),
    *((op, (X,)) for op in (aten.sin.default, aten.cos.default, aten.tanh.default, aten.sigmoid.default)),
    *((op, (X,)) for op in (aten.silu.default, aten.relu.default, aten.gelu.default, aten.erf.default)),
    *((op, (X,)) for op in (aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default)),
    *((op, (X,)) for op in (aten.sign.default, aten.square.default, aten.softplus.default, aten.log_sigmoid.default)),
    *((op, (X,)) for op in (aten.leaky_relu.default, aten.elu.default, aten.hardswish.default, aten.mish.default)),
    *((op, (X,)) for op in (aten.hardsigmoid.default, aten.relu6.default, aten.hardtanh.default, aten.isnan.default)),
    *((op, (X,)) for op in (aten.isinf.default, aten.logical_not.default)),
    *((aten.pow.Tensor_Scalar, (P, e)) for e in (1, 2, 3, 0.5, -0.5, -1, 2.7)),
    (aten.pow.Tensor_Tensor, (P, Y)),
    (aten.pow.Scalar, (2.5, Y)),
    (aten.pow.Tensor_Scalar, (N, 3)),
    (aten.add.Tensor, (X, Y), {"alpha": 2.5}),
    (aten.add.Tensor, (X, N)),
    (aten.mul.Tensor, (X, B)),
    (aten.sub.Tensor, (X, 3), {"alpha": 0.5}),
    (aten.rsub.Scalar, (X, 1.5)),
    (aten.div.Tensor_mode, (X, Y), {"rounding_mode": "floor"}),
    (aten.div.Tensor_mode, (X, Y), {"rounding_mode": "trunc"}),
    (aten.div.Tensor_mode, (N, M), {"rounding_mode": "trunc"}),
    (aten.gelu.default, (X,), {"approximate": "tanh"}),
    (aten.softplus.default, (X, 2.0, 5.0)),
    (aten.clamp.default, (X, -1.0, None)),
    (aten.clamp.default, (X, -1.0, 2)),
    (aten.clamp.Tensor, (X, Y, None)),
    (aten.threshold.default, (X, 0.3, -7.0)),
    (aten.where.self, (B, X, Y)),
    (aten.where.ScalarSelf, (B, 2.0, Y)),
    (aten.where.ScalarOther, (B, X, -3.0)),
    (aten.masked_fill.Scalar, (X, C, -9.0)),
    (aten.addcmul.default, (X, Y, P), {"value": 0.5}),
    (aten.addcdiv.default, (X, Y, P)),
    (aten.lerp.Scalar, (X, Y, 0.3)),
    (aten.lerp.Tensor, (X, Y, P)),
    (aten.lt.Tensor, (N, X)),
    (aten.bitwise_not.default, (N,)),
    (aten.bitwise_not.default, (B,)),
    (aten.to.dtype, (X, torch.int64)),
    (aten.to.dtype, (N, torch.float32)),
    (aten.to.dtype, (X, torch.bool)),
    (aten.to.dtype, (B, torch.float32)),
]


def _title(call):
    kinds = {torch.float32: "f", torch.int64: "i", torch.bool: "b"}
    return f"{call[0]}-{''.join(kinds[a.dtype] for a in call[1] if torch.is_tensor(a))}"


@pytest.mark.parametrize("call", CALLS, ids=_title)
def test_op(call):
    """Each op's region program, run by the Program interpreter, against the op itself."""
    target, args = call[:2]
    kwargs = call[2] if len(call) > 2 else {}
    expected = target(*args, **kwargs)
    graph = torch.fx.Graph()
    holders = [graph.placeholder(f"x{i}") if torch.is_tensor(a) else a for i, a in enumerate(args)]
    node = graph.call_function(target, tuple(holders), kwargs)
    builder = RegionBuilder()
    kinds = {torch.float32: "f32", torch.int64: "i64", torch.bool: "bool"}
    registers = {h: builder.input(kinds[a.dtype]) for h, a in zip(holders, args, strict=True) if torch.is_tensor(a)}
    arguments = {k: registers[v] if isinstance(v, torch.fx.Node) else v for k, v in bound(node).items()}
    name = f"aten.{target._schema.name.removeprefix('aten::')}"
    result = POINTWISE[name](builder, arguments, kinds[expected.dtype])
    text = region_text(builder.finish([result]))
    assert region_text(parse_region(text)) == text
    found = fused_region(*(a for a in args if torch.is_tensor(a)), program=text)
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True), (found, expected)


def test_every_op_is_tested():
    tested = {f"aten.{c[0]._schema.name.removeprefix('aten::')}" for c in CALLS}
    aliases = {"aten._to_copy", "aten.true_divide", "aten.divide", "aten.multiply", "aten.subtract", "aten.negative",
               "aten.clip", "aten.__and__", "aten.__or__", "aten.__xor__"}  # fmt: skip
    assert set(POINTWISE) - tested == aliases


def fused(function, **parameters) -> ModelIR:
    ir = capture_function(function, **parameters)
    passes = (CleanUp(), NormalForms(), CleanUp(), TokenMajor(), CleanUp(), CommonSubexpressions(), FoldConstants())
    for transform in passes:
        transform.run(ir)
    return check(ir, FuseRegions())


def programs(ir: ModelIR) -> list[Region]:
    return [parse_region(n.kwargs["program"]) for n in ir.graph.nodes if n.target is fused_region]


def test_chain_is_one_region():
    ir = fused(lambda x, pos, p: F.silu(x * 2.0) * (x - 1.0) + p["v"], v=(8,))
    (region,) = programs(ir)
    assert region.inputs == ("act", "act")
    assert [node.op for node in region.nodes if node.op != "const"] == ["mul", "silu", "sub", "mul", "add"]
    assert [node.dtype for node in region.nodes if node.op == "const"] == ["f32", "f32"]


def test_conversions_stay():
    (region,) = programs(fused(lambda x, pos, p: ((x.float() * 3).to(torch.bfloat16).float() + 1).to(x.dtype)))
    assert [n.dtype for n in region.nodes if n.op == "cast"] == ["f32", "act", "f32", "act"]


def test_smaller_values_are_computed_once():
    ir = fused(lambda x, pos, p: x * (x.mean(-1, keepdim=True) + 1.0).exp())
    shapes = [tuple(map(str, n.meta["val"].shape))[1] for n in ir.graph.nodes if n.target is fused_region]
    assert shapes == ["1", "8"], "the exponential per token, the product per channel"


def test_small_conversions_are_done_by_the_reader():
    (region,) = programs(fused(lambda x, pos, p: x * pos[..., None].to(torch.float32)))
    assert region.inputs == ("act", "i64")


def test_several_results():
    def function(x, pos, p):
        y = (x * 2).cos()
        return torch.cat([y, y.exp(), y.exp() + 1], -1)

    (region,) = programs(fused(function))
    assert [region.nodes[r - 1].op for r in region.outputs] == ["cos", "exp", "add"]


def test_convex():
    """y feeds a product whose result meets y again: one region would have to wait for itself."""

    def function(x, pos, p):
        y = x.exp()
        return y + (y @ p["w"]).sin() + y

    ir = fused(function, w=(8, 8))
    assert len(programs(ir)) == 2
    ir.graph.lint()


def test_two_regions_that_would_wait_for_each_other():
    def function(x, pos, p):
        a, b = x.exp(), x.cos()
        a2, b2 = (a @ p["w"]), (b @ p["w"])
        return torch.cat([a + b2, b + a2], -1)[..., 4:12] + a2.sin() * b2.cos()

    ir = fused(function, w=(8, 8))
    ir.graph.lint()
    assert not set(ops(ir)) & set(POINTWISE)


def test_constants_of_one_element_and_filled_tensors():
    ir = fused(lambda x, pos, p: torch.where(x > 0, x * torch.tensor(2.5), torch.zeros_like(x)))
    (region,) = programs(ir)
    assert region.inputs == ("act",)
    assert sorted(n.value for n in region.nodes if n.op == "const") == [0.0, 0.0, 2.5]
    assert count(ir, "aten.full") == 0
    assert not ir.constants


def test_what_no_weight_expression_says_is_a_region_without_tokens():
    ir = fused(lambda x, pos, p: x * F.softplus(p["v"]) + p["w"].sum().sin(), v=(8,), w=(2, 3))
    shapes = [len(n.meta["val"].shape) for n in ir.graph.nodes if n.target is fused_region]
    assert shapes == [1, 0, 2]
    assert not set(ops(ir)) & set(POINTWISE)


def test_equal_regions_have_equal_texts():
    ir = fused(lambda x, pos, p: (((x * 2).exp() @ p["w"]) * 2).exp() @ p["w"], w=(8, 8))
    texts = [n.kwargs["program"] for n in ir.graph.nodes if n.target is fused_region]
    assert len(texts) == 2
    assert len(set(texts)) == 1
