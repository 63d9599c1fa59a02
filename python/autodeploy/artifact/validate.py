"""Checks a Program as a whole: everything that a reader may rely on afterwards.

1. Names are unique, dtypes and dims legal, indices in range.
2. SSA: a value is written once, by the caller or one instruction, before it is read; every output is written. Values
   that only the parts of a composite write are not visible outside it.
3. A view lies within its storage for all T >= R >= 1.
4. Each op is known, its operands, results, attributes and states are those of op_table.py, and their shapes agree. An
   author's operator (`namespace::name`) has no table: its plug-in checks it when it is loaded.
5. Regions read registers that exist.
6. Bodies are programs of their own: rules 2 to 4 hold in them for all N >= 1 and for all S that bring the keys asked
   for; they hold ops of BODY_OPS, no params and no states. A weight operand is a fixed input, whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .dims import PROGRAM_SCOPE, Dim, Poly, Scope, body_scope, numel_poly, parse_dim
from .errors import ArtifactError
from .fields import MAX_RANK
from .op_rules import RULES, Site
from .op_table import ANY, BODY_OPS, FLOAT, OPS, REGION_BOOL_OPS, REGION_OPS, In, OpSpec
from .program import DTYPES, Body, Instruction, Operand, Program, Region, State
from .shape_match import Tensor, match_shape

_AUTHOR_OP = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*")
STATE_KINDS = ("paged", "slot", "conv")


def validate(program: Program) -> None:
    """Raises ArtifactError naming the first thing that breaks a rule of docs/program.md."""
    _check_tensors(program)
    for i, state in enumerate(program.states):
        _check_state(state, f"states[{i}]")
    for i, region in enumerate(program.regions):
        _check_region(region, f"regions[{i}]")
    for i, body in enumerate(program.bodies):
        _check_body(program, body, f"bodies[{i}]")
    _check_inputs(program)

    written = set(program.inputs.values())
    for i, instruction in enumerate(program.instructions):
        _check_instruction(program, instruction, f"instructions[{i}] {instruction.op}", written)
    for name, v in program.outputs.items():
        _index(v, len(program.values), f"outputs.{name}", "value")
        if v not in written:
            raise ArtifactError(f"[outputs.{name}] value {v} is never written")


def _check_tensors(program: Program) -> None:
    params = [(f"params[{i}]", p.dtype, p.shape) for i, p in enumerate(program.params)]
    values = [(f"values[{i}]", v.dtype, v.shape) for i, v in enumerate(program.values)]
    for where, dtype, shape in [*params, *values]:
        _check_tensor(dtype, shape, where, PROGRAM_SCOPE)
        for dim in shape:
            if parse_dim(dim)[1] and where.startswith("params"):
                raise ArtifactError(f"[{where}] expected integer dims, found {dim}")
    _unique((p.name for p in program.params), "params")
    _unique((s.name for s in program.states), "states")


def _check_tensor(dtype: str, shape: tuple[Dim, ...], where: str, scope: Scope) -> None:
    _dtype(dtype, where)
    if len(shape) > MAX_RANK:
        raise ArtifactError(f"[{where}] expected at most {MAX_RANK} dims, found {len(shape)}")
    scope.check(shape, where)


def _check_inputs(program: Program) -> None:
    for name, v in program.inputs.items():
        _index(v, len(program.values), f"inputs.{name}", "value")
        value = program.values[v]
        if name in ("token_ids", "positions") and (value.dtype, value.shape) != ("i64", ("T",)):
            raise ArtifactError(f'[inputs.{name}] expected i64 ["T"], found {value.dtype} {list(value.shape)}')
    if len(set(program.inputs.values())) != len(program.inputs):
        raise ArtifactError("[inputs] expected a value of its own for each input, found one that is named twice")


def _check_state(state: State, where: str) -> None:
    if state.kind not in STATE_KINDS:
        raise ArtifactError(f"[{where}] expected the kind {', '.join(STATE_KINDS)}, found {state.kind!r}")
    if not state.components:
        raise ArtifactError(f"[{where}] expected at least one component")
    if state.window < 0 or state.chunk < 0 or (state.kind != "paged" and (state.window or state.chunk)):
        raise ArtifactError(f"[{where}] window and chunk are for paged states and >= 0")
    _unique((c.name for c in state.components), f"{where}.components")
    for c in state.components:
        # Tokens may leave integers and flags behind; what is summed up over tokens is floating.
        legal = DTYPES if state.kind != "slot" else ("act", "f32")
        if c.dtype not in legal:
            raise ArtifactError(f"[{where}.{c.name}] expected a dtype of {', '.join(legal)}, found {c.dtype!r}")
        if not c.shape or any(not isinstance(d, int) or d <= 0 for d in c.shape):
            raise ArtifactError(f"[{where}.{c.name}] expected positive integer dims, found {list(c.shape)}")


def _check_region(region: Region, where: str) -> None:
    dtypes = list(region.inputs)
    for d in dtypes:
        _dtype(d, where)
    for i, node in enumerate(region.nodes):
        here = f"{where}.nodes[{i}] {node.op}"
        _dtype(node.dtype, here)
        arity = REGION_OPS.get(node.op)
        if arity is None:
            raise ArtifactError(f"[{here}] unknown region op")
        if len(node.args) != arity:
            raise ArtifactError(f"[{here}] expected {arity} registers, found {len(node.args)}")
        for r in node.args:
            _index(r, len(dtypes), here, "register")
        if (node.op == "const") != (node.value is not None):
            raise ArtifactError(f"[{here}] a value belongs to const and to nothing else")
        if node.op in REGION_BOOL_OPS and node.dtype != "bool":
            raise ArtifactError(f"[{here}] expected the dtype bool, found {node.dtype}")
        if node.op == "where" and dtypes[node.args[0]] != "bool":
            raise ArtifactError(f"[{here}] expected a bool condition, found {dtypes[node.args[0]]}")
        dtypes.append(node.dtype)
    if not region.outputs:
        raise ArtifactError(f"[{where}] expected at least one output")
    for r in region.outputs:
        _index(r, len(dtypes), where, "register")


def _check_body(program: Program, body: Body, where: str) -> None:
    if body.block < 1 or body.min_keys < 0:
        raise ArtifactError(f"[{where}] expected block >= 1 and min_keys >= 0, found {body.block} and {body.min_keys}")
    scope = body_scope(body.block, body.min_keys)
    for i, v in enumerate(body.values):
        _check_tensor(v.dtype, v.shape, f"{where}.values[{i}]", scope)
    if len(body.inputs) > len(body.values):
        raise ArtifactError(f"[{where}] expected a value for each input, found {len(body.values)} values")
    for i, given in enumerate(body.inputs):
        here, value = f"{where}.inputs[{i}]", body.values[i]
        if (given.dtype, given.shape) != (value.dtype, value.shape):
            found = f"{value.dtype} {list(value.shape)}"
            raise ArtifactError(f"[{here}] expected value {i} to be {given.dtype} {list(given.shape)}, found {found}")
        _check_body_input(given.role, given.shape, body.block, here)

    # What an instruction of a body may name: the body's values and the program's regions, nothing else.
    inner = Program(values=body.values, regions=program.regions)
    written = set(range(len(body.inputs)))
    for i, instruction in enumerate(body.instructions):
        here = f"{where}.instructions[{i}] {instruction.op}"
        if instruction.op not in BODY_OPS or instruction.parts:
            raise ArtifactError(f"[{here}] expected an op that a body may hold, without parts")
        _check_instruction(inner, instruction, here, written, scope)
        for operand, rule in zip(instruction.inputs, OPS[instruction.op].inputs, strict=False):
            if rule.weight and operand is not None and not _is_fixed(body, operand):
                raise ArtifactError(f"[{here}] expected a whole fixed input for {rule.name}, found another operand")
    if not body.outputs:
        raise ArtifactError(f"[{where}] expected at least one output")
    for output in body.outputs:
        _index(output, len(body.values), f"{where}.outputs", "value")
        if output not in written:
            raise ArtifactError(f"[{where}.outputs] value {output} is never written")
        shape = body.values[output].shape
        if not shape or parse_dim(shape[0])[1] != "N" or not all(isinstance(d, int) for d in shape[1:]):
            raise ArtifactError(f"[{where}.outputs] expected the shape [N, ...], found {list(shape)}")


def _check_body_input(role: str, shape: tuple[Dim, ...], block: int, where: str) -> None:
    if role not in ("query", "key", "fixed"):
        raise ArtifactError(f"[{where}] expected the role query, key or fixed, found {role!r}")
    rest = shape if role == "fixed" else shape[1:]
    symbolic = parse_dim(shape[0]) if shape else (0, "")
    legal = {"fixed": True, "query": symbolic[1] == "N", "key": symbolic == (block, "S")}[role]
    if not legal or not all(isinstance(d, int) and d > 0 for d in rest):
        expected = {"fixed": "positive integer dims", "query": "[N, ...]", "key": f"[{block}*S, ...]"}[role]
        raise ArtifactError(f"[{where}] expected {expected} for the role {role}, found {list(shape)}")


def _is_fixed(body: Body, operand: Operand) -> bool:
    v = operand.value
    return v is not None and v < len(body.inputs) and body.inputs[v].role == "fixed" and operand.shape is None


def _check_instruction(
    program: Program, ins: Instruction, where: str, written: set[int], scope: Scope = PROGRAM_SCOPE
) -> None:
    """Checks one instruction and adds what it writes to `written`."""
    spec = OPS.get(ins.op)
    if spec is None and "::" in ins.op:
        if scope.in_body:
            raise ArtifactError(f"[{where}] expected an op of docs/program.md in a body")
        _check_author_op(program, ins, where, written)
        return
    if spec is None:
        raise ArtifactError(f"[{where}] unknown op: this artifact needs a newer autodeploy")
    _check_attrs(ins, spec, where)
    _check_states(program, ins, spec, where)

    tensors: list[Tensor | None] = []
    for i, (operand, rule) in enumerate(zip(ins.inputs, _input_rules(ins, spec, where), strict=True)):
        here = f"{where} operand {i} ({rule.name})"
        tensors.append(_check_operand(program, operand, rule, here, written, scope))
    if len(ins.outputs) != len(spec.outputs) and not spec.any_results:
        raise ArtifactError(f"[{where}] expected {len(spec.outputs)} results, found {len(ins.outputs)}")
    for v in ins.outputs:
        _index(v, len(program.values), where, "value")
        if v in written:
            raise ArtifactError(f"[{where}] value {v} ({program.values[v].name}) is written twice")
    if len(set(ins.outputs)) != len(ins.outputs):
        raise ArtifactError(f"[{where}] one value stands twice among the results")
    results = [Tensor(program.values[v].dtype, program.values[v].shape) for v in ins.outputs]

    bound: dict[str, tuple[Dim, ...]] = {}
    for rule, tensor in zip(_input_rules(ins, spec, where), tensors, strict=True):
        if tensor is not None:
            match_shape(rule.shape, tensor.shape, bound, f"{where} {rule.name}", scope.in_body)
    for pattern, tensor in zip(spec.outputs, results, strict=False):
        match_shape(pattern, tensor.shape, bound, f"{where} result", scope.in_body)
    if ins.op in RULES:
        RULES[ins.op](Site(program, ins, tensors, results, where, scope))
    for out_position, in_position in ins.alias:
        _index(out_position, len(ins.outputs), f"{where}.alias", "result")
        _index(in_position, len(ins.inputs), f"{where}.alias", "operand")
    if ins.parts:
        _check_parts(program, ins, where, written)
    written.update(ins.outputs)


def _check_author_op(program: Program, ins: Instruction, where: str, written: set[int]) -> None:
    """An operator of the model's author: what it reads and writes, its results' shapes being the Program's word."""
    if not _AUTHOR_OP.fullmatch(ins.op):
        raise ArtifactError(f"[{where}] expected an op of docs/program.md or namespace::name, found {ins.op!r}")
    if ins.states or ins.alias or ins.parts or not ins.outputs:
        raise ArtifactError(f"[{where}] expected an author's operator with results, without states, aliases and parts")
    for i, operand in enumerate(ins.inputs):
        rule = In(f"{i}", dtype=ANY, optional=True)
        _check_operand(program, operand, rule, f"{where} operand {i}", written, PROGRAM_SCOPE)
    for name, x in ins.attrs.items():
        if isinstance(x, list) and not all(isinstance(y, int) for y in x):
            raise ArtifactError(f"[{where}] expected {name} to be a number, a text or integers, found {x!r}")
    for v in ins.outputs:
        _index(v, len(program.values), where, "value")
        if v in written:
            raise ArtifactError(f"[{where}] value {v} ({program.values[v].name}) is written twice")
        written.add(v)


def _check_parts(program: Program, ins: Instruction, where: str, written: set[int]) -> None:
    inner = set(written)
    for i, part in enumerate(ins.parts):
        _check_instruction(program, part, f"{where}.parts[{i}] {part.op}", inner)
    missing = set(ins.outputs) - inner
    if missing:
        raise ArtifactError(f"[{where}] its parts never write value {min(missing)}")
    used = {s for part in ins.parts for s in part.states}
    if not used <= set(ins.states):
        raise ArtifactError(f"[{where}] its parts use state {min(used - set(ins.states))}, which it does not name")


def _input_rules(ins: Instruction, spec: OpSpec, where: str) -> tuple[In, ...]:
    rules = spec.inputs
    if spec.variadic:
        # A region may read nothing: constants alone.
        rules = rules[:-1] + rules[-1:] * (len(ins.inputs) - len(rules) + 1)
        if len(ins.inputs) < 1 and not spec.any_results:
            raise ArtifactError(f"[{where}] expected at least one operand")
    if len(ins.inputs) != len(rules):
        raise ArtifactError(f"[{where}] expected {len(rules)} operands (null for absent ones), found {len(ins.inputs)}")
    return rules


def _check_operand(
    program: Program, operand: Operand | None, rule: In, where: str, written: set[int], scope: Scope
) -> Tensor | None:
    if operand is None:
        if not rule.optional:
            raise ArtifactError(f"[{where}] is required and absent")
        return None
    storage: tuple[Dim, ...]
    if (operand.value is None) == (operand.param is None):
        raise ArtifactError(f"[{where}] expected a value or a param")
    if operand.value is not None:
        v = _index(operand.value, len(program.values), where, "value")
        if v not in written:
            raise ArtifactError(f"[{where}] value {v} ({program.values[v].name}) is read before it is written")
        dtype, storage = program.values[v].dtype, program.values[v].shape
    else:
        assert operand.param is not None
        p = program.params[_index(operand.param, len(program.params), where, "param")]
        dtype, storage = p.dtype, p.shape
    if rule.weight and operand.shape is not None and operand.param is not None:
        raise ArtifactError(f"[{where}] expected a whole param for a weight, found a view")
    if dtype != rule.dtype and rule.dtype != ANY and not (rule.dtype == FLOAT and dtype in ("act", "f32")):
        raise ArtifactError(f"[{where}] expected the dtype {rule.dtype}, found {dtype}")
    _check_view(operand, storage, where, scope)
    return Tensor(dtype, operand.shape if operand.shape is not None else storage)


def _check_view(operand: Operand, storage: tuple[Dim, ...], where: str, scope: Scope) -> None:
    if (operand.shape is None) != (operand.strides is None):
        raise ArtifactError(f"[{where}] a view needs both shape and strides")
    if operand.shape is None or operand.strides is None:
        return
    if len(operand.shape) != len(operand.strides) or len(operand.shape) > MAX_RANK:
        raise ArtifactError(
            f"[{where}] expected as many strides as dims and at most {MAX_RANK}, found {list(operand.strides)} for "
            f"{list(operand.shape)}"
        )
    scope.check((*operand.shape, *operand.strides, operand.offset), where)
    if any(parse_dim(d)[0] == 0 for d in operand.shape):
        return  # reads nothing
    one = Poly.of(1)
    end = Poly.of(operand.offset) + one
    for dim, stride in zip(operand.shape, operand.strides, strict=True):
        end = end + (Poly.of(dim) - one) * Poly.of(stride)
    if not (numel_poly(storage) - end).is_never_negative(scope):
        raise ArtifactError(
            f"[{where}] the view shape {list(operand.shape)} strides {list(operand.strides)} offset {operand.offset} "
            f"may leave its storage of shape {list(storage)}"
        )


def _check_attrs(ins: Instruction, spec: OpSpec, where: str) -> None:
    for name in ins.attrs:
        if name not in spec.attrs:
            raise ArtifactError(f'[{where}] unknown attribute "{name}": this artifact needs a newer autodeploy')
    for name, kind in spec.attrs.items():
        if name not in ins.attrs:
            raise ArtifactError(f'[{where}] the attribute "{name}" is missing')
        x = ins.attrs[name]
        if isinstance(kind, tuple):
            if x not in kind:
                raise ArtifactError(f"[{where}] expected {name} to be one of {list(kind)}, found {x!r}")
            continue
        number = isinstance(x, (int, float)) and not isinstance(x, bool)
        legal = {
            "bool": isinstance(x, bool),
            "int": number and isinstance(x, int),
            "float": number,
            "ints": isinstance(x, list) and all(isinstance(y, int) for y in x),
        }[kind]
        if not legal:
            raise ArtifactError(f"[{where}] expected {name} to be of type {kind}, found {x!r}")


def _check_states(program: Program, ins: Instruction, spec: OpSpec, where: str) -> None:
    if spec.may_lack_state and not ins.states:
        return
    if len(ins.states) != len(spec.states):
        raise ArtifactError(f"[{where}] expected {len(spec.states)} states, found {len(ins.states)}")
    for s, kind in zip(ins.states, spec.states, strict=True):
        state = program.states[_index(s, len(program.states), where, "state")]
        if state.kind != kind:
            raise ArtifactError(f"[{where}] expected a {kind} state, found {state.name} of kind {state.kind}")
        # The op's own rule says which integers and flags it keeps; all others keep floats.
        wrong = [c for c in state.components if c.dtype not in ("act", "f32")]
        if wrong and not spec.may_lack_state and kind != "conv":
            raise ArtifactError(f"[{where}] expected a state of act or f32, found {wrong[0].name} of {wrong[0].dtype}")


def _dtype(dtype: str, where: str) -> None:
    if dtype not in DTYPES:
        raise ArtifactError(f"[{where}] expected a dtype of {', '.join(DTYPES)}, found {dtype!r}")


def _index(i: int, size: int, where: str, what: str) -> int:
    if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < size:
        raise ArtifactError(f"[{where}] expected a {what} index below {size}, found {i!r}")
    return i


def _unique(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise ArtifactError(f"[{where}] found an empty name")
        if name in seen:
            raise ArtifactError(f"[{where}] the name {name!r} stands twice")
        seen.add(name)
