"""The meaning of an author's operator is its PyTorch implementation, where the module that defines it was imported."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autodeploy.artifact.program import Instruction

Tensor = torch.Tensor


def run_author_op(instruction: Instruction, operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Results of an instruction whose op is "namespace::name".

    Raises:
        ValueError: PyTorch knows no operator of that name.
    """
    namespace, _, name = instruction.op.partition("::")
    try:
        op = getattr(getattr(torch.ops, namespace), name).default
    except AttributeError:
        raise ValueError(
            f"[interpreter] expected the PyTorch operator {instruction.op} ({instruction.source}), found none: import "
            "the module that defines it, or load its checkpoint with remote code allowed"
        ) from None
    tensors = iter(operands)
    arguments = {}
    for argument in op._schema.arguments:
        if "Tensor" in str(argument.type):
            arguments[argument.name] = next(tensors)
        elif argument.name in instruction.attrs:
            arguments[argument.name] = instruction.attrs[argument.name]
        else:
            arguments[argument.name] = None
    results = op(**arguments)
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)
