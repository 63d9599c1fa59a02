"""Lowering: walks the canonical graph of a model and writes its Program (docs/program.md)."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from autodeploy.artifact.program import Program
from autodeploy.ir import INPUTS, ModelIR
from autodeploy.ir.over_keys import over_keys
from autodeploy.ir.region import fused_region
from autodeploy.ops import op_of

from .author_ops import is_author_op, lower_author_op, note_author_ops
from .bodies import lower_over_keys
from .builder import LoweringError, ProgramBuilder
from .call import Call, Sizes
from .canonical_ops import lower_canonical
from .generic_ops import GENERIC_OPS
from .regions import lower_region
from .view_ops import VIEW_OPS
from .views import View


def lower(model: ModelIR) -> Program:
    """The Program of a model whose graph is canonical and fused.

    View operations become strided operands, with a `copy` where an op needs rows contiguous or a view has no strides;
    canonical ops become instructions with their states; what is left of ATen becomes generic instructions. Params,
    states and regions are numbered in the order of their first use, so equal graphs give equal Programs.

    Raises:
        LoweringError: a node that no Program can hold, with its op and the line of the model that made it.
    """
    builder = ProgramBuilder()
    sizes = Sizes(model.T)
    env: dict[Node, Any] = {}
    live = _live(model)
    for node in model.graph.nodes:
        if node not in live:
            continue
        match node.op:
            case "placeholder":
                env[node] = _placeholder(builder, sizes, model, node)
            case "call_function":
                if not _is_size(node):
                    env[node] = _lower_call(Call(builder, sizes, env, node), model)
            case "output":
                _outputs(builder, model, env, node)
            case _:
                raise LoweringError(f"[lowering] expected calls of operators, found {node.op} {node.target}")
    builder.program.metadata = dict(model.metadata)
    note_author_ops(builder.program)
    return builder.program


def _live(model: ModelIR) -> set[Node]:
    """Nodes that an output or an input needs; the others have no place in the Program."""
    live = {model.input(name) for name in INPUTS}
    stack = [model.graph.output_node()]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    return live


def _placeholder(builder: ProgramBuilder, sizes: Sizes, model: ModelIR, node: Node) -> View:
    name = str(node.target)
    if name in INPUTS:
        return builder.input(name, "i64", sizes.shape(node.meta["val"].shape))
    if name in model.params:
        param = model.params[name]
        return builder.param(param.name, param.dtype, param.shape)
    if name in model.constants:
        constant = model.constants[name]
        return builder.param(constant.name, constant.dtype, tuple(constant.value.shape))
    raise LoweringError(f"[lowering] expected an input, a param or a constant, found the placeholder {name}")


def _is_size(node: Node) -> bool:
    """Whether a node computes a number from sizes: dims already say it."""
    return isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))


def _lower_call(call: Call, model: ModelIR) -> View | list[View] | None:
    target = call.node.target
    if target is operator.getitem:
        return call.env[call.node.args[0]][call.node.args[1]]
    if target is fused_region:
        return lower_region(call)
    if target is over_keys:
        return lower_over_keys(call, model.states, lambda inner: _lower_call(inner, model))
    op = op_of(target)
    if op is not None:
        return lower_canonical(call, op, model.states)
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = target._schema.name.split("::")[1]
        for table in (VIEW_OPS, GENERIC_OPS):
            handler = table.get(f"{name}.{target._overloadname}") or table.get(name)
            if handler is not None:
                return handler(call)
    if is_author_op(target):
        return lower_author_op(call)
    raise call.error("expected an op that a Program has, found one without a lowering; raise it in a transform")


def _outputs(builder: ProgramBuilder, model: ModelIR, env: dict[Node, Any], node: Node) -> None:
    for name, result in zip(model.outputs, node.args[0], strict=True):
        view = env[result]
        if not view.is_whole(builder.whole(view).shape) or view.shape != builder.whole(view).shape:
            view = builder.copy(view, str(result.meta.get("source", "")))
        builder.program.outputs[name] = view.storage.index
