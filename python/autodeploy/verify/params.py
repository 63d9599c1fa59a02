"""Params of an artifact as tensors: its weight program evaluated, quantized weights dequantized to float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from autodeploy.artifact import Artifact
from autodeploy.weights.evaluate import evaluate
from autodeploy.weights.formats import Stored, is_float
from autodeploy.weights.weight_program import WeightProgram


def load_params(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Every param by name: float32, or the integers and bools that it stores.

    Raises:
        ValueError: a source is missing or has another size than when the artifact was compiled.
    """
    program = WeightProgram.from_json(artifact.weights)
    absent = [name for name, t in program.tensors.items() if t.source is None]
    if absent:
        raise ValueError(
            f"[weights] expected weights for {absent[0]}, found an artifact that was compiled from a configuration "
            "alone (load_format=dummy); compile a checkpoint"
        )
    files = [_map(artifact.path, source.path, source.size) for source in program.sources]

    def read(name: str) -> Stored:
        t = program.tensors[name]
        assert t.source is not None
        return Stored.from_bytes(t.format, t.shape, files[t.source][t.offset : t.offset + t.nbytes])

    params: dict[str, torch.Tensor] = {}
    for param in program.params:
        made = [evaluate(segment.expr, read) for segment in param.segments]
        arrays = [m.to_f32() if is_float(m.format) else m.data for m in made]
        joined = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        # A copy: a mapped file must not be written through a tensor, nor outlive this call.
        params[param.name] = torch.from_numpy(np.array(joined).reshape(param.shape))
    return params


def _map(folder: Path, path: str, size: int) -> np.ndarray:
    file = folder / path
    found = file.stat().st_size if file.is_file() else None
    if found != size:
        problem = "none" if found is None else f"{found} bytes"
        raise ValueError(f"[weights] expected {size} bytes at {file}, found {problem}; compile the model again")
    return np.memmap(file, dtype=np.uint8, mode="r") if size else np.zeros(0, np.uint8)
