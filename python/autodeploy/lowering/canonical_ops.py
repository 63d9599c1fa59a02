"""Canonical ops: instructions of the same name, their states, and the decompositions of composites."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autodeploy.artifact.op_table import OPS as OP_TABLE
from autodeploy.artifact.program import Attr, Instruction, Region, RegionNode, State, StateComponent
from autodeploy.ops import Op, StateDecl

from .builder import ParamRef, ProgramBuilder
from .call import Call
from .dims import ONE
from .generic_ops import index_select
from .layout import row_rank
from .views import View, broadcast_shapes

Attributes = dict[str, Attr]


def lower_canonical(call: Call, op: Op, states: dict[str, StateDecl]) -> View | list[View]:
    """Emits the instruction of a canonical op; returns its result, or results."""
    if not op.in_program:
        raise call.error("expected an op of a Program, found one that a transform should have replaced")
    arguments = {name: call[name] for name in (*op.operands, *op.attributes)}
    operands: list[View | None] = [arguments[name] for name in op.operands]
    attrs = {name: _attribute(arguments[name]) for name in op.attributes}
    # An earlier instruction has put what this one would store into the same state.
    reads_state = bool(op.stored_operands) and any(call.builder.has_state(s) for s in call.node.meta.get("states", ()))
    fallback = _without_weight_param(call, op, operands, attrs)
    if fallback is not None:
        return fallback

    if reads_state:
        operands = [None if name in op.stored_operands else v for name, v in zip(op.operands, operands, strict=True)]
    operands, gone = _without_single_rows(op, operands)
    results = [
        call.new_value([s for d, s in enumerate(call.shape(i)) if d not in gone], call.dtype(i), i)
        for i in range(len(call.results))
    ]
    placed = [call.laid_out(op.name, v) for v in operands]
    parts = PARTS[op.name](call, placed, results, attrs) if op.name in PARTS else []
    call.emit(
        op.name,
        placed,
        results,
        attrs,
        states=[call.builder.state(program_state(name, states[name])) for name in call.node.meta.get("states", ())],
        alias=[pair for pair in ALIASES.get(op.name, ()) if may_alias(call.builder, placed, results, *pair)],
        parts=parts,
    )
    shaped = [call.viewed(r, lambda v, i=i: v.reshape(call.shape(i))) for i, r in enumerate(results)]
    return shaped[0] if op.num_results == 1 else shaped


def _attribute(value: object) -> Attr:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list) and all(isinstance(v, int) for v in value):
        return value
    raise ValueError(f"[attribute] expected a number, a text or a list of integers, found {value!r}")


def program_state(name: str, decl: StateDecl) -> State:
    """A declared state as the Program has it."""
    components = tuple(StateComponent(c.name, tuple(c.shape), c.dtype) for c in decl.components)
    return State(name, decl.kind, components, decl.window, decl.chunk)


def _without_single_rows(op: Op, operands: Sequence[View | None]) -> tuple[list[View | None], list[int]]:
    """Drops row dimensions of size 1 (the batch dimension, mostly) from every operand that has rows in common."""
    rules = OP_TABLE[op.name].inputs
    shared = [i for i, r in enumerate(rules) if r.shape.split()[0] == "M*" and operands[i] is not None]
    if not shared:
        return list(operands), []
    first = operands[shared[0]]
    assert first is not None
    rows = row_rank(rules[shared[0]], first)
    gone = [d for d in range(rows) if first.shape[d] == ONE]
    if len(gone) == rows and rows:
        gone = gone[1:]  # a single token without tokens around it keeps one row
    return [v.squeeze(gone) if i in shared and v is not None else v for i, v in enumerate(operands)], gone


# What may be computed in place: (result, operand) where no element of the result reads that operand at a place that an
# earlier one has overwritten, whatever order a kernel chooses within a row.
ALIASES: dict[str, list[tuple[int, int]]] = {
    "rope": [(0, 0)],
    "add_rms_norm": [(1, 1)],
    "add_layer_norm": [(1, 1)],
}


def may_alias(
    builder: ProgramBuilder, operands: Sequence[View | None], results: Sequence[View], result: int, operand: int
) -> bool:
    """Whether a result may take over an operand's storage: a value read whole, in order, by this operand alone."""
    view, made = operands[operand], results[result]
    if view is None or isinstance(view.storage, ParamRef) or view.dtype != made.dtype:
        return False
    if builder.is_input(view) or not view.is_whole(builder.whole(view).shape) or view.shape != made.shape:
        return False
    return all(v is None or v.storage != view.storage for i, v in enumerate(operands) if i != operand)


# Decompositions.


def _add_norm_parts(
    norm: str,
) -> Callable[[Call, Sequence[View | None], Sequence[View], Attributes], list[Instruction]]:
    def parts(
        call: Call, operands: Sequence[View | None], results: Sequence[View], attrs: Attributes
    ) -> list[Instruction]:
        x, residual, *rest = operands
        normed, total = results
        assert x is not None
        assert residual is not None
        region = Region((x.dtype, residual.dtype), (RegionNode("add", total.dtype, (0, 1)),), (2,))
        index = call.builder.region(region)
        return [
            call.builder.instruction("region", [x, residual], [total], {"region": index}, source=call.source),
            call.builder.instruction(norm, [total, *rest], [normed], attrs, source=call.source),
        ]

    return parts


PARTS = {"add_rms_norm": _add_norm_parts("rms_norm"), "add_layer_norm": _add_norm_parts("layer_norm")}


# Weights that are no parameter.


def _without_weight_param(
    call: Call, op: Op, operands: Sequence[View | None], attrs: Attributes
) -> View | list[View] | None:
    """A generic way for ops whose weight is computed, or is part of a parameter; None where it is a whole parameter."""
    for i, name in enumerate(op.operands):
        view = operands[i]
        if name not in op.weight_operands or view is None:
            continue
        whole = call.builder.whole(view)
        if isinstance(view.storage, ParamRef) and view.normalized() == whole:
            continue
        if op.name not in _GENERIC_FORMS:
            raise call.error(f"expected a whole parameter as {name}, found one that is computed in the graph")
        return _GENERIC_FORMS[op.name](call, operands)
    return None


def _linear_form(call: Call, operands: Sequence[View | None]) -> View:
    x, weight, bias = operands
    assert x is not None
    assert weight is not None
    rows = x.squeeze([d for d in range(x.ndim - 1) if x.shape[d] == ONE])
    while rows.ndim < 2:
        rows = rows.unsqueeze(0)
    batch = list(rows.shape[:-2])
    columns = weight.transpose(0, 1).expand([*batch, -1, -1])
    value = call.new_value([*rows.shape[:-1], weight.shape[0]], call.dtype())
    call.emit("matmul", [rows, columns], [value], {})
    if bias is not None:
        region = Region((value.dtype, bias.dtype), (RegionNode("add", value.dtype, (0, 1)),), (2,))
        total = call.new_value(value.shape, value.dtype)
        spread = bias.expand(list(broadcast_shapes(value.shape, bias.shape)))
        call.emit("region", [value, spread], [total], {"region": call.builder.region(region)})
        value = total
    return call.viewed(value, lambda v: v.reshape(call.shape()))


def _embedding_form(call: Call, operands: Sequence[View | None]) -> View:
    ids, weight = operands
    assert ids is not None
    assert weight is not None
    return index_select(call, weight, 0, ids)


_GENERIC_FORMS = {"linear": _linear_form, "embedding": _embedding_form}
