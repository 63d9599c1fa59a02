"""A Program as text for people: one line per param, state, region node and instruction."""

from __future__ import annotations

import json
from collections.abc import Iterator

from autodeploy.artifact.dims import Dim, mul_dims
from autodeploy.artifact.errors import ArtifactError
from autodeploy.artifact.program import Body, Instruction, Operand, Program, Region, State, number_to_json

_LONGEST_FACT = 160  # longer facts are shown by their number of entries


def format_program(program: Program, sources: bool = True) -> str:
    """The whole Program, stable for equal Programs; `sources` adds the model's line to each instruction."""
    return "\n".join(_lines(program, sources)) + "\n"


def _lines(program: Program, sources: bool) -> Iterator[str]:
    yield f"program {program.version[0]}.{program.version[1]}"
    for key, fact in sorted(program.metadata.items()):
        text = json.dumps(fact, sort_keys=True)
        yield f"  {key} = {text if len(text) <= _LONGEST_FACT else f'({len(fact)} entries)'}"
    yield f"params ({len(program.params)})"
    for i, param in enumerate(program.params):
        yield f"  p{i} {param.name}: {param.dtype}{_dims(param.shape)}"
    yield f"states ({len(program.states)})"
    for i, state in enumerate(program.states):
        yield f"  s{i} {_state(state)}"
    yield f"regions ({len(program.regions)})"
    for i, region in enumerate(program.regions):
        yield from _region(i, region)
    if program.bodies:
        yield f"bodies ({len(program.bodies)})"
    for i, body in enumerate(program.bodies):
        yield from _body(i, body, sources)
    yield f"inputs {', '.join(_value(program, v) for v in program.inputs.values())}"
    yield f"instructions ({len(program.instructions)})"
    for i, instruction in enumerate(program.instructions):
        yield from _instruction(program, f"{i}", instruction, "  ", sources)
    yield f"outputs {', '.join(f'{name} = {_value(program, v)}' for name, v in program.outputs.items())}"


def _dims(dims: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(d).replace("*", "") for d in dims) + "]"


def _state(state: State) -> str:
    parts = ", ".join(f"{c.name} {c.dtype}{_dims(c.shape)}" for c in state.components)
    limits = "".join(f" {n}={getattr(state, n)}" for n in ("window", "chunk") if getattr(state, n))
    return f"{state.name}: {state.kind}{limits} ({parts})"


def _region(index: int, region: Region) -> Iterator[str]:
    count = len(region.inputs)
    dtypes = [*region.inputs, *(n.dtype for n in region.nodes)]
    arguments = ", ".join(f"%{i} {d}" for i, d in enumerate(region.inputs))
    results = ", ".join(f"%{r} {dtypes[r]}" for r in region.outputs)
    yield f"  r{index} ({arguments}) -> {results}"
    for i, node in enumerate(region.nodes):
        what = json.dumps(number_to_json(node.value)) if node.op == "const" else ", ".join(f"%{a}" for a in node.args)
        yield f"     %{count + i} {node.dtype} = {node.op}({what})"


def _body(index: int, body: Body, sources: bool) -> Iterator[str]:
    scope = Program(values=body.values)
    arguments = ", ".join(f"{given.role} {_value(scope, i)}" for i, given in enumerate(body.inputs))
    yield f"  b{index} ({arguments})  {{block={body.block}; min_keys={body.min_keys}}}"
    for i, instruction in enumerate(body.instructions):
        yield from _instruction(scope, f"{i}", instruction, "    ", sources)
    yield f"     -> {', '.join(_value(scope, v) for v in body.outputs)}"


def _value(program: Program, index: int) -> str:
    value = program.values[index]
    return f"%{value.name}: {value.dtype}{_dims(value.shape)}"


def _operand(program: Program, operand: Operand | None) -> str:
    if operand is None:
        return "-"
    if operand.param is not None:
        name = f"p{operand.param}"
    else:
        assert operand.value is not None
        name = f"%{program.values[operand.value].name}"
    if operand.shape is None or operand.strides is None:
        return name
    offset = f" +{operand.offset}".replace("*", "") if operand.offset != 0 else ""
    strides = "" if _is_row_major(operand.shape, operand.strides) else f" by {_dims(operand.strides)}"
    return f"{name}{{{_dims(operand.shape)}{strides}{offset}}}"


def _is_row_major(shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> bool:
    try:
        return all(stride == mul_dims(shape[i + 1 :]) for i, stride in enumerate(strides))
    except ArtifactError:  # a product that no dim can be
        return False


def _instruction(program: Program, label: str, instruction: Instruction, indent: str, sources: bool) -> Iterator[str]:
    results = ", ".join(_value(program, v) for v in instruction.outputs)
    operands = ", ".join(_operand(program, o) for o in instruction.inputs)
    attrs = dict(instruction.attrs)
    op = instruction.op
    if op in ("region", "over_keys"):
        kind = "region" if op == "region" else "body"
        op = f"{op} {kind[0]}{attrs.pop(kind)}"
    notes = [f"{k}={json.dumps(number_to_json(v))}" for k, v in sorted(attrs.items())]
    if instruction.states:
        notes.append("state " + ", ".join(f"s{s}" for s in instruction.states))
    notes += [f"result {out} may replace operand {operand}" for out, operand in instruction.alias]
    line = f"{indent}{label:>4} {results} = {op}({operands})" + (f"  {{{'; '.join(notes)}}}" if notes else "")
    yield line + (f"  # {instruction.source}" if sources and instruction.source else "")
    for i, part in enumerate(instruction.parts):
        yield from _instruction(program, f"{label}.{i}", part, indent + "  ", sources)
