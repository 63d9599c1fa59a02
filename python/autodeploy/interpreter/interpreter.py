"""Runs a Program step by step over the references of its ops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from autodeploy.artifact.dims import eval_dim
from autodeploy.artifact.program import Instruction, Operand, Program
from autodeploy.ops import OPS, Batch, StateComponent, StateDecl, StateStore

from .generic import GENERIC
from .region import run_region

Tensor = torch.Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step computed: `outputs` by their Program names, and every value that was asked for, by value index."""

    outputs: dict[str, Tensor]
    values: dict[int, Tensor]


@dataclass(frozen=True)
class InstructionResult:
    """A value that an instruction made; `index` is its place in the Program (of a part: that of its composite)."""

    index: int
    instruction: Instruction
    value: int
    result: Tensor


class Interpreter:
    """Holds a Program, its params and the states of all sequences, as a model runner does.

    Args:
        program: a Program that `validate` accepts.
        params: every param by name. Floating params are taken to `act` (or float32) as the Program says.
        act: the type that the Program's `act` stands for.
        use_parts: run the decomposition of a composite instead of its own reference.
    """

    def __init__(
        self,
        program: Program,
        params: Mapping[str, Tensor],
        act: torch.dtype = torch.float32,
        use_parts: bool = False,
    ) -> None:
        self.program = program
        self.dtypes = {"act": act, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
        self.use_parts = use_parts
        self.params: list[Tensor] = []
        for param in program.params:
            if param.name not in params:
                raise ValueError(f"[interpreter] expected the param {param.name}, found none of that name")
            tensor = params[param.name]
            if tuple(tensor.shape) != tuple(param.shape):
                found = f"found {tuple(tensor.shape)}"
                raise ValueError(f"[interpreter] expected shape {param.shape} of param {param.name}, {found}")
            self.params.append(tensor.to(self.dtypes[param.dtype]).contiguous())
        self.reset()

    def reset(self) -> None:
        """Forgets all sequences."""
        self.states = [
            StateStore(
                StateDecl(
                    state.kind,
                    tuple(StateComponent(c.name, c.shape, c.dtype) for c in state.components),
                    state.window,
                    state.chunk,
                )
            )
            for state in self.program.states
        ]

    @torch.no_grad()
    def step(self, batch: Batch, inputs: Mapping[str, Tensor], taps: Iterable[int] | None = ()) -> StepResult:
        """Runs one step.

        Args:
            batch: who is scheduled (ragged: prefill chunks and decodes in any mix).
            inputs: the Program's inputs by name, e.g. `token_ids` i64 [T].
            taps: indices of values to return besides the outputs; None for all.

        Raises:
            ValueError: an input is missing or has another shape than the Program says.
        """
        values = self._inputs(batch, inputs)
        for _ in self._instructions(batch, values):
            pass
        wanted = values.keys() if taps is None else [t for t in taps if t in values]
        return StepResult(
            {name: values[index] for name, index in self.program.outputs.items()}, {i: values[i] for i in wanted}
        )

    @torch.no_grad()
    def replay(
        self, batch: Batch, inputs: Mapping[str, Tensor], observed: Mapping[int, Tensor]
    ) -> Iterator[InstructionResult]:
        """Runs one step, each instruction on the values that were `observed` elsewhere where there are such.

        Yields every result as computed here, before the observed value takes its place: an instruction is compared on
        equal operands, and an error is not carried on.
        """
        values = self._inputs(batch, inputs)
        for made in self._instructions(batch, values):
            yield made
            if made.value in observed:
                what = f"observed {made.instruction.op}"
                values[made.value] = self._checked(batch, made.value, observed[made.value], what)

    def _inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> dict[int, Tensor]:
        values: dict[int, Tensor] = {}
        for name, index in self.program.inputs.items():
            if name not in inputs:
                raise ValueError(f"[interpreter] expected the input {name}, found {', '.join(inputs) or 'none'}")
            values[index] = self._checked(batch, index, inputs[name], f"input {name}")
        return values

    def _instructions(self, batch: Batch, values: dict[int, Tensor]) -> Iterator[InstructionResult]:
        for number, instruction in _flattened(self.program.instructions, self.use_parts):
            results = self._run(batch, values, instruction)
            for index, result in zip(instruction.outputs, results, strict=True):
                values[index] = self._checked(batch, index, result, f"{instruction.op} at {instruction.source}")
            for index in instruction.outputs:
                yield InstructionResult(number, instruction, index, values[index])

    def _run(self, batch: Batch, values: Mapping[int, Tensor], instruction: Instruction) -> Sequence[Tensor]:
        operands = [self._operand(batch, values, o) for o in instruction.inputs]
        shape = self._shape(batch, instruction.outputs[0])
        if instruction.op == "region":
            return run_region(self.program.regions[int(instruction.attrs["region"])], operands, self.dtypes, shape)
        if instruction.op in GENERIC:
            results = GENERIC[instruction.op](operands, instruction.attrs, shape)
            return results if isinstance(results, tuple) else (results,)
        if instruction.op not in OPS:
            raise ValueError(f"[interpreter] expected a known op, found {instruction.op} at {instruction.source}")
        states = [self.states[s] for s in instruction.states]
        return OPS[instruction.op].run(batch, states, operands, instruction.attrs)

    def _operand(self, batch: Batch, values: Mapping[int, Tensor], operand: Operand | None) -> Tensor | None:
        if operand is None:
            return None
        storage = self.params[operand.param] if operand.param is not None else values[operand.value]
        if operand.shape is None:
            return storage
        shape, strides = ([self._dim(batch, d) for d in dims] for dims in (operand.shape, operand.strides))
        # A value may itself be a part of a tensor that an op passed on.
        return torch.as_strided(storage, shape, strides, storage.storage_offset() + self._dim(batch, operand.offset))

    def _checked(self, batch: Batch, index: int, tensor: Tensor, what: str) -> Tensor:
        value = self.program.values[index]
        shape = self._shape(batch, index)
        if tensor.numel() != torch.Size(shape).numel():
            raise ValueError(
                f"[interpreter] expected shape {shape} of value {value.name} ({what}), found {list(tensor.shape)}"
            )
        return tensor.to(self.dtypes[value.dtype]).reshape(shape).contiguous()

    def _shape(self, batch: Batch, index: int) -> list[int]:
        return [self._dim(batch, d) for d in self.program.values[index].shape]

    @staticmethod
    def _dim(batch: Batch, dim: int | str) -> int:
        return eval_dim(dim, batch.num_tokens, len(batch.rows))


def _flattened(instructions: Sequence[Instruction], use_parts: bool) -> Iterator[tuple[int, Instruction]]:
    """(index in the Program, instruction) in execution order, composites opened where asked."""
    for i, instruction in enumerate(instructions):
        if use_parts and instruction.parts:
            for _, part in _flattened(instruction.parts, use_parts):
                yield i, part
        else:
            yield i, instruction
