"""Finds the first instruction that the runtime computes otherwise than its reference.

The interpreter runs each instruction on the operands that the runtime had (tapped), so errors do not add up from one
instruction to the next, and a small tolerance names the instruction that is wrong and not one that merely inherits it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from numpy.typing import NDArray

from autodeploy.interpreter import Interpreter
from autodeploy.testing.compare import first_difference
from autodeploy.testing.tolerances import OP_TOLERANCE

from .backends import step_inputs
from .report import Culprit
from .schedule import PlannedStep


class Tapped(Protocol):
    """A backend whose values can be looked at."""

    def tapped(self, planned: PlannedStep, values: Sequence[int]) -> Mapping[int, NDArray]: ...

    def kernel(self, instruction: int) -> str: ...


def find_culprit(
    interpreter: Interpreter, runtime: Tapped, steps: Sequence[PlannedStep], tolerance: float | None = None
) -> Culprit | None:
    """Replays `steps` on both and returns the first instruction that differs, or None.

    Args:
        interpreter, runtime: with no sequence in them yet.
        tolerance: largest error of one op; default: the table's, by dtype.
    """
    program = interpreter.program
    interpreter.reset()
    for count, planned in enumerate(steps):
        observed = {
            i: torch.from_numpy(array).reshape(tuple(array.shape))
            for i, array in runtime.tapped(planned, range(len(program.values))).items()
        }
        for made in interpreter.replay(planned.batch, step_inputs(planned), observed):
            if made.value not in observed:
                continue
            value = program.values[made.value]
            limit = OP_TOLERANCE[value.dtype]
            if tolerance is not None and limit:
                limit = tolerance
            found = observed[made.value].reshape(made.result.shape)
            difference = first_difference(found, made.result, limit)
            if difference is not None:
                return Culprit(
                    step=count,
                    instruction=made.index,
                    op=made.instruction.op,
                    kernel=runtime.kernel(made.index),
                    source=made.instruction.source or "an unknown line",
                    value=f"{value.name} {value.dtype}{list(made.result.shape)}",
                    difference=str(difference),
                )
    return None
