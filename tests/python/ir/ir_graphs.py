"""Small ModelIRs, made from plain modules."""

from __future__ import annotations

import operator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from autodeploy.ir import ModelIR, ParamInfo
from autodeploy.ops import OPS

aten = torch.ops.aten


def tiny_ir() -> ModelIR:
    """embedding -> reshape by T -> scaling: one parameter, every kind of line a print has."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    ids = mode.from_tensor(torch.zeros(13, dtype=torch.int64), symbolic_context=context)
    with mode:
        positions = torch.empty_like(ids)
        table = torch.empty(10, 4, dtype=torch.bfloat16)
    graph = Graph()
    values = {"token_ids": ids, "positions": positions, "p_table": table}
    nodes = {}
    for name, value in values.items():
        nodes[name] = graph.placeholder(name)
        nodes[name].meta["val"] = value

    def call(name, target, *args):
        node = graph.create_node("call_function", target, args, name=name)
        with mode:
            node.meta["val"] = target(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]))
        node.meta["source"] = "model.py:1 Model.forward"
        return node

    tokens = call("tokens", aten.sym_size.int, nodes["token_ids"], 0)
    rows = call("rows", OPS["embedding"].torch_op, nodes["token_ids"], nodes["p_table"])
    halves = call("halves", aten.reshape.default, rows, [call("twice", operator.mul, tokens, 2), 2])
    wide = call("copy", aten._to_copy.default, halves)
    graph.output((call("scaled", aten.mul.Tensor, wide, 0.5),))
    params = {"p_table": ParamInfo.whole("table", (10, 4), "act")}
    return ModelIR(GraphModule(torch.nn.Module(), graph), params, {})
