"""What runs an artifact step by step: the interpreter and the C++ runtime, behind one face."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from autodeploy.interpreter import Interpreter

from .schedule import PlannedStep

Logits = NDArray[np.float32]


class Backend(Protocol):
    """Runs planned steps in order; sequences keep their states by slot."""

    name: str

    def step(self, planned: PlannedStep) -> Logits:
        """Logits [R, V] of the step's wanted rows."""
        ...


class InterpreterBackend:
    """The Program interpreter as a backend."""

    name = "interpreter"

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter

    def step(self, planned: PlannedStep) -> Logits:
        result = self.interpreter.step(planned.batch, step_inputs(planned))
        return result.outputs["logits"].float().numpy()


class RuntimeBackend:
    """The C++ runtime as a backend.

    `exact` forbids 8-bit activations; with `poison` no values share memory, and each is NaN until it is written.
    `device`, `act` and `replay` are those of the extension module's Runner.
    """

    def __init__(
        self,
        artifact: Path,
        limits: dict[str, int],
        num_threads: int = 1,
        exact: bool = True,
        poison: bool = False,
        plugins: Sequence[str] = (),
        device: str = "cpu",
        act: str = "float32",
        replay: bool = False,
    ) -> None:
        from autodeploy._load_native import load_native

        self.name = f"runtime, {num_threads} thread{'s' if num_threads > 1 else ''}{'' if exact else ', int8'}"
        more: dict[str, Any] = {"plugins": list(plugins)} if plugins else {}
        if device != "cpu":
            self.name = f"{device}, {act}{', replayed' if replay else ''}"
            more |= {"device": device, "act": act, "replay": replay}
        self.runner = load_native().Runner(
            str(artifact), num_threads=num_threads, exact=exact, poison=poison, **limits, **more
        )

    def step(self, planned: PlannedStep) -> Logits:
        return as_float32(self._run(planned, [])["logits"])

    def tapped(self, planned: PlannedStep, values: Iterable[int]) -> dict[int, NDArray]:
        """Values of a step by their index in the Program; those that only live inside a kernel are missing."""
        return {int(k): v for k, v in self._run(planned, list(values))["taps"].items()}

    def kernel(self, instruction: int) -> str:
        """Name of the kernel that serves an instruction, "" where its parts are run."""
        chosen = self.runner.plan()["instructions"]
        return next((c["kernel"] for c in chosen if c["instruction"] == instruction and not c.get("part")), "")

    def _run(self, planned: PlannedStep, taps: list[int]) -> dict:
        batch = planned.batch
        return self.runner.step(
            token_ids=np.array(planned.token_ids, np.int64),
            positions=np.array(planned.positions, np.int64),
            query_start=np.array(batch.query_start, np.int32),
            kv_len=np.array(batch.kv_len, np.int32),
            slot=np.array(batch.slots, np.int32) - 1,  # it numbers slots from 0
            has_state=np.array(batch.has_state, np.uint8),
            rows=np.array(batch.rows, np.int32),
            taps=taps,
            prompt_len=np.array(batch.prompt_len, np.int32),
        )


def as_float32(logits: NDArray) -> Logits:
    """Logits in float32; uint16 are the bits of bfloat16."""
    if logits.dtype == np.uint16:
        return (logits.astype(np.uint32) << 16).view(np.float32)
    return logits.astype(np.float32, copy=False)


def step_inputs(planned: PlannedStep) -> dict[str, torch.Tensor]:
    """The Program's inputs of a step."""
    return {"token_ids": torch.tensor(planned.token_ids), "positions": torch.tensor(planned.positions)}


def limits_of(steps: Iterable[PlannedStep]) -> dict[str, int]:
    """Largest sizes over all steps: what a runtime is to be made for."""
    steps = list(steps)
    return {
        "max_tokens": max(s.batch.num_tokens for s in steps),
        "max_seqs": max(max(s.batch.slots) for s in steps),
        "max_seq_len": max(max(s.batch.kv_len) for s in steps),
    }
