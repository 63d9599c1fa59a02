"""`over_keys`: its body becomes a small program over one sequence's queries and keys (docs/program.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from autodeploy.artifact.program import Body, BodyInput
from autodeploy.ir.over_keys import BodyIR, body_of
from autodeploy.ops import StateDecl

from .builder import ProgramBuilder
from .call import Call, Sizes
from .canonical_ops import program_state
from .dims import Dim
from .views import Shape, View

LowerCall = Callable[[Call], Any]


def lower_over_keys(call: Call, states: dict[str, StateDecl], lower_call: LowerCall) -> list[View]:
    """Emits the instruction, and its body where it is new; returns its results."""
    body = body_of(call.node)
    assert body is not None
    operands = [call.resolve(x) for x in call.node.args]
    placed = [v if v.is_contiguous(1) else call.copy(v) for v in operands]
    results = [call.new_value(call.shape(i), call.dtype(i), i) for i in range(len(call.results))]
    index = call.builder.body(call.node.kwargs["body"], lambda: _lower_body(body, call, lower_call))
    names = call.node.meta.get("states", ())
    call.emit(
        "over_keys",
        placed,
        results,
        {"body": index},
        states=[call.builder.state(program_state(name, states[name])) for name in names],
    )
    return results


class _BodyBuilder(ProgramBuilder):
    """Builds a body: dims in N and S, which may be multiplied, and the regions of the Program around it."""

    symbols = ("N", "S")

    def __init__(self, outer: ProgramBuilder):
        super().__init__()
        self._outer = outer

    def check_shape(self, shape: Shape) -> None:
        """Values of a body may pair queries with keys."""

    def is_fixed(self, size: Dim) -> bool:
        """Any dim of a body may be worked along: its sequence is alone."""
        return True

    def region(self, region: Any) -> int:
        return self._outer.region(region)


def _lower_body(body: BodyIR, call: Call, lower_call: LowerCall) -> Body:
    builder = _BodyBuilder(call.builder)
    sizes = Sizes(body.T)
    env: dict[Node, Any] = {}
    inputs = []
    for node, role in zip(body.operands(), body.roles, strict=True):
        value = node.meta["val"]
        dtype = Call(builder, sizes, env, node).dtype()
        shape = sizes.shape(value.shape)
        env[node] = builder.input(str(node.target), dtype, shape)
        inputs.append(BodyInput(role, dtype, tuple(d.to_json(builder.symbols) for d in shape)))
    for node in body.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], (torch.Tensor, tuple, list)):
            env[node] = lower_call(Call(builder, sizes, env, node))
    outputs = []
    for result in body.output_nodes():
        view = env[result]
        whole = builder.whole(view)
        if builder.is_input(view) or not view.is_whole(whole.shape) or view.shape != whole.shape:
            view = builder.copy(view, str(result.meta.get("source", "")))
        outputs.append(view.storage.index)
    program = builder.program
    return Body(inputs, body.block, body.min_keys, program.values, program.instructions, outputs)
