"""Runs a Program step by step over the references of its ops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from autodeploy.artifact.program import Instruction, Program
from autodeploy.ops import OPS, Batch, StateComponent, StateDecl, StateStore

from .author_ops import run_author_op
from .body import over_keys
from .frame import Frame

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
        frame = self._frame(batch, inputs)
        values = frame.tensors
        for _ in self._instructions(batch, frame):
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
        frame = self._frame(batch, inputs)
        for made in self._instructions(batch, frame):
            yield made
            if made.value in observed:
                frame.put(made.value, observed[made.value], f"observed {made.instruction.op}")

    def _frame(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Frame:
        sizes = (batch.num_tokens, len(batch.rows))
        frame = Frame(self.program.values, self.program.regions, self.params, self.dtypes, sizes)
        for name, index in self.program.inputs.items():
            if name not in inputs:
                raise ValueError(f"[interpreter] expected the input {name}, found {', '.join(inputs) or 'none'}")
            frame.put(index, inputs[name], f"input {name}")
        return frame

    def _instructions(self, batch: Batch, frame: Frame) -> Iterator[InstructionResult]:
        for number, instruction in _flattened(self.program.instructions, self.use_parts):
            results = self._run(batch, frame, instruction)
            for index, result in zip(instruction.outputs, results, strict=True):
                frame.put(index, result, f"{instruction.op} at {instruction.source}")
            for index in instruction.outputs:
                yield InstructionResult(number, instruction, index, frame.tensors[index])

    def _run(self, batch: Batch, frame: Frame, instruction: Instruction) -> Sequence[Tensor]:
        results = frame.run_generic(instruction)
        if results is not None:
            return results
        operands = [frame.operand(o) for o in instruction.inputs]
        states = [self.states[s] for s in instruction.states]
        if instruction.op == "over_keys":
            body = self.program.bodies[int(instruction.attrs["body"])]
            return over_keys(body, self.program.regions, self.dtypes, batch, states, operands)
        if "::" in instruction.op:
            return run_author_op(instruction, operands)
        if instruction.op not in OPS:
            raise ValueError(f"[interpreter] expected a known op, found {instruction.op} at {instruction.source}")
        return OPS[instruction.op].run(batch, states, operands, instruction.attrs)


def _flattened(instructions: Sequence[Instruction], use_parts: bool) -> Iterator[tuple[int, Instruction]]:
    """(index in the Program, instruction) in execution order, composites opened where asked."""
    for i, instruction in enumerate(instructions):
        if use_parts and instruction.parts:
            for _, part in _flattened(instruction.parts, use_parts):
                yield i, part
        else:
            yield i, instruction
