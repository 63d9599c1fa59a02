"""Values of one run of a list of instructions: of a Program's step, or of a body for one tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autodeploy.artifact.dims import Dim, eval_dim
from autodeploy.artifact.program import Instruction, Operand, Region, Value

from .generic import GENERIC
from .region import run_region

Tensor = torch.Tensor


class Frame:
    """Tensors by value index, and what is needed to read operands and run the generic ops.

    Args:
        values: what the instructions say of their values.
        regions: the Program's.
        params: tensors of the Program's params; none in a body.
        dtypes: binds the Program's dtype names.
        sizes: tokens and rows of the step; in a body the tile's queries and the key blocks.
    """

    def __init__(
        self,
        values: Sequence[Value],
        regions: Sequence[Region],
        params: Sequence[Tensor],
        dtypes: dict[str, torch.dtype],
        sizes: tuple[int, int],
    ) -> None:
        self.values, self.regions, self.params = values, regions, params
        self.dtypes, self.sizes = dtypes, sizes
        self.tensors: dict[int, Tensor] = {}

    def put(self, index: int, tensor: Tensor, what: str) -> None:
        """Makes a tensor a value's, in the value's shape and dtype; `what` names it in messages."""
        value, shape = self.values[index], self.shape(index)
        if tensor.numel() != torch.Size(shape).numel():
            raise ValueError(
                f"[interpreter] expected shape {shape} of value {value.name} ({what}), found {list(tensor.shape)}"
            )
        self.tensors[index] = tensor.to(self.dtypes[value.dtype]).reshape(shape).contiguous()

    def operand(self, operand: Operand | None) -> Tensor | None:
        """The tensor that an operand is a view of, as that view."""
        if operand is None:
            return None
        storage = self.params[operand.param] if operand.param is not None else self.tensors[operand.value or 0]
        if operand.shape is None or operand.strides is None:
            return storage
        shape, strides = ([self._dim(d) for d in dims] for dims in (operand.shape, operand.strides))
        # A value may itself be a part of a tensor that an op passed on.
        return torch.as_strided(storage, shape, strides, storage.storage_offset() + self._dim(operand.offset))

    def shape(self, index: int) -> list[int]:
        return [self._dim(d) for d in self.values[index].shape]

    def run_generic(self, instruction: Instruction) -> Sequence[Tensor] | None:
        """Results of a region or of an op of the generic tail; None for any other op."""
        if instruction.op != "region" and instruction.op not in GENERIC:
            return None
        operands = [self.operand(o) for o in instruction.inputs]
        shape = self.shape(instruction.outputs[0])
        if instruction.op == "region":
            return run_region(self.regions[int(instruction.attrs["region"])], operands, self.dtypes, shape)
        results = GENERIC[instruction.op](operands, instruction.attrs, shape)
        return results if isinstance(results, tuple) else (results,)

    def _dim(self, dim: Dim) -> int:
        return eval_dim(dim, *self.sizes)
