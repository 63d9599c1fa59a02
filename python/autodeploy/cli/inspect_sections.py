"""The sections of `autodeploy inspect`, each from an artifact or a plan to text."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from .tables import format_bytes, format_table

if TYPE_CHECKING:
    from autodeploy.artifact import Artifact, Body, Instruction, Operand, Program

_MAX_CELL = 72


def summary(artifact: Artifact) -> str:
    """Where the artifact comes from and what it holds, in a few lines."""
    program, provenance = artifact.program, artifact.provenance
    ops = Counter(instruction.op for instruction in program.instructions)
    counts = ", ".join(f"{count} {op}" for op, count in ops.most_common())
    binaries = [] if artifact.kernels is None else artifact.kernels.kernels
    size = sum(artifact.files.values()) + sum(kernel.size for kernel in binaries)
    lines = [
        f"artifact     {artifact.path} ({format_bytes(size)})",
        f"source       {provenance.source}" + (f" at {provenance.revision}" if provenance.revision else ""),
        f"remote code  {'allowed' if provenance.remote_code else 'not allowed'}",
        f"compiled by  {', '.join(f'{name} {version}' for name, version in sorted(provenance.versions.items()))}",
        f"program      {len(program.instructions)} instructions: {counts}",
        f"states       {len(program.states)}",
        f"params       {len(program.params)}, {format_bytes(param_bytes(artifact.weights))} as stored",
    ]
    if binaries:
        targets = ", ".join(dict.fromkeys(kernel.target for kernel in binaries))
        lines.append(f"kernels      {len(binaries)} for {targets}")
    facts = {key: value for key, value in program.metadata.items() if isinstance(value, int | float | str)}
    lines += [f"{key:<12} {value}" for key, value in sorted(facts.items())]
    return "\n".join(lines)


def program(artifact: Artifact, plan: dict[str, Any] | None) -> str:
    """One line per instruction, with its kernel where a plan is given; the parts of a composite are indented."""
    names = artifact.program
    kernels = {} if plan is None else {e["instruction"]: e["kernel"] for e in plan["instructions"] if not e.get("part")}
    rows = []
    for index, instruction in enumerate(names.instructions):
        kernel = kernels.get(index, "" if plan is None else "(its parts)")
        rows.append((index, *_instruction_cells(names, instruction), kernel, instruction.source))
        rows += [("", "  " + part.op, *_instruction_cells(names, part)[1:], "", "") for part in instruction.parts]
    headers = ("#", "op", "result", "operands", "attributes", "kernel", "source")
    text = format_table(headers, rows, right=(0,))
    if names.regions:
        text += "\n\nregions\n" + "\n".join(_region_line(names, index) for index in range(len(names.regions)))
    for index, body in enumerate(names.bodies):
        text += f"\n\n{_body_title(names, index)}\n{_body_table(names, body, _body_kernels(names, index, plan))}"
    return text


def states(artifact: Artifact) -> str:
    """What each mixer keeps, per token or per sequence."""
    rows = []
    for index, state in enumerate(artifact.program.states):
        components = ", ".join(f"{c.name} {c.dtype}{list(c.shape)}" for c in state.components)
        limits = ", ".join(f"{name} {getattr(state, name)}" for name in ("window", "chunk") if getattr(state, name))
        rows.append(
            (index, state.name, state.kind, components, "token" if state.kind == "paged" else "sequence", limits)
        )
    return format_table(("#", "state", "kind", "components", "per", "limits"), rows, right=(0,)) if rows else "none"


def weights(artifact: Artifact) -> str:
    """Where each param comes from, and the sources."""
    from autodeploy.weights.formats import stored_bytes
    from autodeploy.weights.unused import describe

    found = artifact.weights
    rows = []
    by_format: Counter[str] = Counter()
    for param in found["params"]:
        for place, segment in enumerate(param["segments"]):
            size = stored_bytes(segment["format"], (segment["rows"], *param["shape"][1:]) if param["shape"] else ())
            by_format[segment["format"]] += size
            name, shape = (param["name"], param["shape"]) if place == 0 else ("", "")
            rows.append(
                (name, shape, segment["rows"], segment["format"], format_bytes(size), _cut(expr_text(segment["expr"])))
            )
    headers = ("param", "shape", "rows", "format", "size", "from")
    lines = [format_table(headers, rows, right=(2, 4))] if rows else ["no params"]
    lines.append("by format: " + ", ".join(f"{fmt} {format_bytes(size)}" for fmt, size in by_format.most_common()))
    lines += [f"source {i}: {s['path']} ({format_bytes(s['size'])})" for i, s in enumerate(found["sources"])]
    report = found.get("report", {})
    lines += [f"note: {note}" for note in report.get("notes", [])]
    if report.get("unused"):
        lines.append(f"note: {describe(report['unused'])}")
    return "\n".join(lines)


def kernels(artifact: Artifact) -> str:
    """The compiled GPU kernels, which instructions they serve, and how they are launched."""
    found = artifact.kernels
    if found is None:
        return "none: the model was compiled without --target"
    served: dict[int, list[str]] = {}
    for launch in found.launches:
        for targets in launch.kernels.values():
            for index in targets.values():
                place = ".".join(str(i) for i in launch.path)
                place = place if launch.body is None else f"body {launch.body}: {place}"
                if place not in served.setdefault(index, []):
                    served[index].append(place)
    rows = []
    for index, kernel in enumerate(found.kernels):
        args = Counter(arg.type for arg in kernel.args)
        taken = ", ".join(f"{count} {kind}" for kind, count in args.items())
        places = served.get(index, [])
        text = _cut(", ".join(places))
        size = format_bytes(kernel.size)
        rows.append((index, kernel.symbol, kernel.target, kernel.num_warps, taken, size, len(places), text))
    headers = ("#", "kernel", "target", "warps", "arguments", "size", "served", "instructions")
    text = format_table(headers, rows, right=(0, 3, 5, 6)) if rows else "no kernels"
    acts = sorted({act for launch in found.launches for act in launch.kernels})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
    return f"{text}\n{len(found.launches)} instructions in {', '.join(acts) or 'no type'}; compiled by {versions}"


def memory(plan: dict[str, Any]) -> str:
    """Every byte that the engine holds, and why a preferred kernel was not taken."""
    lines = ["limits: " + ", ".join(f"{key} {value}" for key, value in plan["limits"].items())]
    rows = [(key.replace("_", " "), format_bytes(size), size) for key, size in plan["memory"].items()]
    lines.append(format_table(("memory", "", "bytes"), rows, right=(1, 2)))
    largest = sorted(plan.get("values", []), key=lambda value: -value["bytes"])[:10]
    if largest:
        value_rows = [
            (value["name"], value["bytes"], value["offset"], f"{value['first']} to {value['last']}")
            for value in largest
        ]
        lines.append("largest values of the arena")
        lines.append(format_table(("value", "bytes", "offset", "instructions"), value_rows, right=(1, 2)))
    declined = Counter(
        (entry["op"], entry["kernel"], reason) for entry in plan["instructions"] for reason in entry.get("declined", [])
    )
    if declined:
        lines.append("kernels that declined")
        rows = [(count, op, kernel, reason) for (op, kernel, reason), count in declined.most_common()]
        lines.append(format_table(("times", "op", "taken", "declined"), rows, right=(0,)))
    return "\n\n".join(lines)


def expr_text(expr: dict[str, Any]) -> str:
    """A weight expression as a formula."""
    op = expr["op"]
    if op == "tensor":
        return str(expr["name"])
    if op == "data":
        return f"constant {expr['format']}{expr['shape']}"
    parts = [
        expr_text(expr[key]) if isinstance(expr[key], dict) else str(expr[key]) for key in ("x", "y") if key in expr
    ]
    parts += [expr_text(x) for x in expr.get("xs", ())]
    if op == "slice":
        step = f":{expr['step']}" if expr.get("step", 1) != 1 else ""
        return f"{parts[0]}[{':, ' * expr['dim']}{expr['start']}:{expr['stop']}{step}]"
    if op == "cast":
        return f"{expr['format']}({parts[0]})"
    name = expr["f"] if op in ("unary", "binary") else op
    extra = [f"{key}={expr[key]}" for key in ("dim", "dims", "shape") if key in expr]
    return f"{name}({', '.join(parts + extra)})"


def param_bytes(found: dict[str, Any]) -> int:
    from autodeploy.weights.formats import stored_bytes

    return sum(
        stored_bytes(segment["format"], (segment["rows"], *param["shape"][1:]) if param["shape"] else ())
        for param in found["params"]
        for segment in param["segments"]
    )


def _instruction_cells(names: Program, instruction: Instruction) -> tuple[str, str, str, str]:
    results = ", ".join(f"{names.values[v].name} {_type(names, v)}" for v in instruction.outputs)
    operands = ", ".join(_operand_text(names, operand) for operand in instruction.inputs)
    attributes = ", ".join(f"{key}={json.dumps(value, default=str)}" for key, value in instruction.attrs.items())
    if instruction.states:
        attributes += (", " if attributes else "") + "state " + ", ".join(map(str, instruction.states))
    return instruction.op, results, _cut(operands), _cut(attributes)


def _type(names: Program, value: int) -> str:
    return f"{names.values[value].dtype}[{', '.join(map(str, names.values[value].shape))}]"


def _operand_text(names: Program, operand: Operand | None) -> str:
    if operand is None:
        return "-"
    name = names.params[operand.param].name if operand.param is not None else names.values[operand.value or 0].name
    if operand.shape is None:
        return name
    return f"{name}[{', '.join(map(str, operand.shape))}]" + (f"+{operand.offset}" if operand.offset != 0 else "")


def _region_line(names: Program, index: int) -> str:
    region = names.regions[index]
    used = sum(i.op == "region" and i.attrs.get("region") == index for i in names.instructions)
    nodes = ", ".join(node.op if node.op != "const" else str(node.value) for node in region.nodes)
    return f"  {index} ({used} times): {len(region.inputs)} inputs -> {len(region.outputs)} outputs: {_cut(nodes)}"


def _body_title(names: Program, index: int) -> str:
    body = names.bodies[index]
    used = sum(i.op == "over_keys" and i.attrs.get("body") == index for i in names.instructions)
    inputs = ", ".join(f"{given.role} {body.values[i].name}" for i, given in enumerate(body.inputs))
    return f"body {index} ({used} times), keys in blocks of {body.block}, at least {body.min_keys}: {inputs}"


def _body_kernels(names: Program, index: int, plan: dict[str, Any] | None) -> dict[int, str]:
    """Kernels of a body's instructions, of the first instruction that uses it."""
    for entry in plan["instructions"] if plan else ():
        instruction = names.instructions[entry["instruction"]]
        if instruction.op == "over_keys" and instruction.attrs["body"] == index:
            return {inner["instruction"]: inner["kernel"] for inner in entry.get("body", ())}
    return {}


def _body_table(names: Program, body: Body, kernels: dict[int, str]) -> str:
    from autodeploy.artifact import Program

    scope = Program(values=body.values, regions=names.regions)
    rows = [
        (i, *_instruction_cells(scope, instruction), kernels.get(i, ""), instruction.source)
        for i, instruction in enumerate(body.instructions)
    ]
    return format_table(("#", "op", "result", "operands", "attributes", "kernel", "source"), rows, right=(0,))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 3] + "..."
