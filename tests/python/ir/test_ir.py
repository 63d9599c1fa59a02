"""The IR: verifier messages, printed form, copies, and running in another type."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ir_graphs import aten, tiny_ir

from autodeploy.ir import ModelIR, ParamInfo, Segment
from autodeploy.ir.dialect import ATEN, CANONICAL, VerifyError, verify
from autodeploy.ir.printer import format_expr, format_ir
from autodeploy.ir.retype import retyped
from autodeploy.ops import OPS


def node_of(ir: ModelIR, name: str) -> torch.fx.Node:
    return next(n for n in ir.graph.nodes if n.name == name)


def test_a_good_graph_passes():
    verify(tiny_ir(), ATEN, "test")
    verify(tiny_ir(), CANONICAL, "test")


def test_printed_form():
    assert format_ir(tiny_ir()) == (
        "input token_ids: i64 [T]\n"
        "input positions: i64 [T]\n"
        "param p_table: act [10, 4] <- 10: table\n"
        "tokens: T = aten.sym_size(token_ids, 0)  ; model.py:1 Model.forward\n"
        "rows: act [T, 4] = autodeploy.embedding(token_ids, p_table)  ; model.py:1 Model.forward\n"
        "twice: 2*T = mul(tokens, 2)  ; model.py:1 Model.forward\n"
        "halves: act [2*T, 2] = aten.reshape(rows, [twice, 2])  ; model.py:1 Model.forward\n"
        "copy: act [2*T, 2] = aten._to_copy(halves)  ; model.py:1 Model.forward\n"
        "scaled: act [2*T, 2] = aten.mul(copy, 0.5)  ; model.py:1 Model.forward\n"
        "return logits=scaled\n"
    )


def test_expressions_print_on_one_line():
    expr = {"op": "binary", "f": "add", "x": {"op": "cat", "xs": [{"op": "tensor", "name": "a"}], "dim": 0}, "y": 1.0}
    assert format_expr(expr) == "binary(f=add, x=cat(xs=[a], dim=0), y=1.0)"


def replace_target(ir: ModelIR, name: str, target) -> None:
    node_of(ir, name).target = target


BREAKS = {
    "an operator that writes": (lambda ir: replace_target(ir, "scaled", aten.mul_.Tensor), r"aten\.mul_ \(scaled at"),
    "an operator of no dialect": (lambda ir: replace_target(ir, "scaled", aten.fft_fft.default), r"aten\.fft_fft"),
    "a Python function": (lambda ir: replace_target(ir, "scaled", torch.mul), "model.py:1 Model.forward"),
    "a node without a value": (lambda ir: node_of(ir, "scaled").meta.pop("val"), "a value on every node"),
    "a node without a source": (lambda ir: node_of(ir, "scaled").meta.pop("source"), "a source line on every node"),
    "a parameter without a placeholder": (
        lambda ir: ir.params.update(q=ParamInfo.whole("q", (1,), "act")),
        "a placeholder for every parameter",
    ),
    "an unknown placeholder": (lambda ir: ir.params.clear(), "found p_table"),
    "a parameter of another shape": (
        lambda ir: ir.params.update(p_table=ParamInfo.whole("table", (11, 4), "act")),
        r"parameter table as \(11, 4\) act, found \(10, 4\) act",
    ),
    "segments of another height": (
        lambda ir: ir.params["p_table"].segments.append(Segment(1, {"op": "tensor", "name": "x"})),
        "10|segments of table",
    ),
    "other outputs": (lambda ir: setattr(ir, "outputs", ("a", "b")), "expected outputs"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_verifier_names_what_is_wrong(name):
    change, message = BREAKS[name]
    ir = tiny_ir()
    change(ir)
    with pytest.raises(VerifyError, match=message) as error:
        verify(ir, ATEN, "after_something")
    assert str(error.value).startswith("[after_something] expected ")


def test_masks_end_with_the_aten_dialect():
    ir = tiny_ir()
    node = node_of(ir, "copy")
    node.target = OPS["mask"].torch_op
    verify(ir, ATEN, "test")
    with pytest.raises(VerifyError, match=r"dialect CANONICAL, found autodeploy\.mask \(copy at model\.py:1"):
        verify(ir, CANONICAL, "test")


def test_a_copy_is_independent():
    ir = tiny_ir()
    twin = ir.copy()
    text = format_ir(ir)
    assert format_ir(twin) == text
    scaled = node_of(twin, "scaled")
    scaled.replace_all_uses_with(node_of(twin, "copy"))
    twin.graph.erase_node(scaled)
    twin.params["p_table"].segments.append(Segment(3, {"op": "tensor", "name": "more"}))
    assert format_ir(ir) == text


def test_retyped_graphs_run_in_another_type():
    ir = tiny_ir()
    node = node_of(ir, "copy")
    node.kwargs = {"dtype": torch.bfloat16}
    table = torch.randn(10, 4)
    ids = torch.tensor([1, 9, 0])
    (found,) = retyped(ir, torch.float32)(ids, ids, table)
    assert torch.equal(found, table[ids].reshape(6, 2) * 0.5)
    (narrow,) = ir.graph_module(ids, ids, table.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert node.kwargs["dtype"] is torch.bfloat16


def test_param_expr_needs_one_segment():
    info = ParamInfo.whole("a", (4, 2), "act")
    assert info.expr == {"op": "tensor", "name": "a"}
    joined = dataclasses.replace(info, segments=[*info.segments, *info.segments])
    with pytest.raises(ValueError, match=r"\[param\] expected a to have one segment, found 2"):
        _ = joined.expr
