"""Operators of a model's author: one instruction each, under its own name, with the shapes that PyTorch inferred."""

from __future__ import annotations

from typing import Any

import torch

from autodeploy.artifact.program import Attr, Program
from autodeploy.custom_ops import declared_op

from .call import Call
from .dims import ONE
from .views import View


def is_author_op(target: Any) -> bool:
    """Whether a call's target is an operator that neither PyTorch nor autodeploy defines."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims", "autodeploy")


def lower_author_op(call: Call) -> View | list[View]:
    """Emits the instruction: tensors in the order of the schema, of the model's own shapes; the rest by name.

    Operands have a contiguous last dim. Arguments that are None are no operands (tensors) or left out (others).
    """
    operands: list[View | None] = []
    attrs: dict[str, Attr] = {}
    for argument in call.node.target._schema.arguments:
        kind = str(argument.type)
        value = call[argument.name]
        if "Tensor" in kind:
            if "List" in kind:
                raise call.error(f"expected tensors one by one, found a list of them as {argument.name}")
            operands.append(None if value is None else _rows(call, value))
        elif value is not None:
            attrs[argument.name] = _attribute(call, argument.name, value)
    results = [call.new_value(call.shape(i), call.dtype(i), i) for i in range(len(call.results))]
    call.emit(call.node.target._schema.name, operands, results, attrs)
    single = isinstance(call.node.meta["val"], torch.Tensor)
    return results[0] if single else results


def _rows(call: Call, view: View) -> View:
    fits = view.ndim == 0 or view.shape[-1] == ONE or view.strides[-1] == ONE
    return view if fits else call.copy(view)


def _attribute(call: Call, name: str, value: Any) -> Attr:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return value
    raise call.error(f"expected a number, a text or a list of integers as {name}, found {value!r}")


def author_schemas(program: Program) -> dict[str, list[tuple[str, bool]]]:
    """The arguments of the author's operators in a Program, in the order of their schemas: (name, whether a tensor)."""
    schemas = {}
    for name in dict.fromkeys(i.op for i in program.instructions if "::" in i.op):
        namespace, op = name.split("::")
        schema = getattr(getattr(torch.ops, namespace), op).default._schema
        schemas[name] = [(a.name, "Tensor" in str(a.type)) for a in schema.arguments]
    return schemas


def note_author_ops(program: Program) -> None:
    """Writes metadata `author_ops`: for each operator, the file name of the library that its author names."""
    names = dict.fromkeys(i.op for i in program.instructions if "::" in i.op)
    if not names:
        return
    facts = {}
    for name in names:
        declared = declared_op(name)
        facts[name] = {"library": declared.library} if declared is not None and declared.library else {}
    program.metadata["author_ops"] = facts
