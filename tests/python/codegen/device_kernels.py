"""Runs generated kernels as an artifact's: compiled, written, loaded by the runtime, launched on a device."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kernel_programs import StoredParam, native, step_arguments, write_folder

from autodeploy.artifact.files import dump_json
from autodeploy.artifact.kernels import digest
from autodeploy.artifact.program import Instruction, Operand, Param, Program, Region, Value
from autodeploy.codegen.generate import Generated, generate
from autodeploy.codegen.targets import parse_targets
from autodeploy.ops import Batch


def put_kernels(folder: Path, program: Program, made: Generated) -> None:
    """Adds compiled kernels to a folder that `write_folder` has written."""
    made.kernels.program = digest((folder / "program.json").read_bytes())
    (folder / "kernels.json").write_bytes(dump_json(made.kernels.to_json()))
    (folder / "kernels").mkdir(exist_ok=True)
    for name, content in made.binaries.items():
        (folder / "kernels" / name).write_bytes(content)


def run_on_device(
    region: Region,
    instruction: Instruction,
    values: Sequence[Value],
    params: Sequence[Param],
    act: str,
    operands: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    sizes: tuple[int, int],
    *,
    device: str = "cuda",
    targets: str = "cuda:90",
    compiled_act: str = "",
) -> dict[str, object]:
    """As `run_region_kernel`, in a step of T tokens and R rows; returns what the plan says of the instruction.

    `compiled_act` is the type that kernels are compiled for, where it is another than the one they are asked for.
    """
    assert not params
    tokens, rows = sizes
    program = Program(values=[Value("token_ids", "i64", ("T",)), Value("positions", "i64", ("T",)), *values])
    program.inputs = {"token_ids": 0, "positions": 1}
    inputs = {}
    for i, (o, view) in enumerate(zip(instruction.inputs, operands, strict=True)):
        program.inputs[f"in{i}"] = o.value + 2
        storage = view.untyped_storage().nbytes() // view.element_size()
        inputs[f"in{i}"] = to_numpy(torch.as_strided(view, (storage,), (1,), 0))
    program.outputs = {f"out{i}": v + 2 for i, v in enumerate(instruction.outputs)}
    moved = [replace(o, value=o.value + 2) for o in instruction.inputs if isinstance(o, Operand)]
    program.regions = [region]
    program.instructions = [Instruction("region", moved, [v + 2 for v in instruction.outputs], {"region": 0})]
    with tempfile.TemporaryDirectory(prefix="autodeploy-region-") as name:
        folder = write_folder(Path(name), program, dict[str, StoredParam]())
        chosen = parse_targets(targets, compiled_act or act)
        put_kernels(folder, program, generate(program, chosen, cache_folder=_cache_folder()))
        limits = {"max_tokens": tokens, "max_seqs": 1, "max_seq_len": tokens}
        runner = native().Runner(name, **limits, num_threads=1, poison=True, device=device, act=act)
        batch = Batch.of([tokens], rows=list(range(min(rows, tokens))))
        found = runner.step(**step_arguments(batch), inputs=inputs)["outputs"]
        plan = runner.plan()["instructions"][0]
    for i, out in enumerate(outputs):
        out.copy_(to_torch(found[f"out{i}"], out.dtype).reshape(out.shape))
    return plan


@functools.cache
def _cache_folder() -> Path:
    """Kernels of this test run."""
    folder = tempfile.TemporaryDirectory(prefix="autodeploy-kernels-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()


def to_torch(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(x.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(x)
