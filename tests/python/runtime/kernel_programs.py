"""Programs of one instruction, and folders that the runtime loads them from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from autodeploy._load_native import load_native
from autodeploy.artifact.dims import Dim, format_dim
from autodeploy.artifact.program import Instruction, Operand, Param, Program, Region, State, StateComponent, Value
from autodeploy.artifact.validate import validate
from autodeploy.ops import Batch

DTYPES = {torch.float32: "f32", torch.int64: "i64", torch.bool: "bool"}
FORMATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "bool"}


def native() -> ModuleType:
    """The extension module; skips the test where none was built."""
    try:
        return load_native()
    except ImportError as e:
        pytest.skip(str(e))


@dataclass
class StoredParam:
    """A param as a file holds it: raw bytes of rows in a format of docs/weight_program.md."""

    shape: tuple[int, ...]
    format: str
    data: bytes

    @classmethod
    def of(cls, x: torch.Tensor) -> StoredParam:
        raw = x.contiguous()
        raw = raw.view(torch.int16) if x.dtype == torch.bfloat16 else raw
        return cls(tuple(x.shape), FORMATS[x.dtype], raw.numpy().tobytes())


@dataclass
class Case:
    """An instruction under construction, with the Program around it."""

    op: str
    attrs: dict[str, Any] = field(default_factory=dict)
    program: Program = field(default_factory=Program)
    params: dict[str, StoredParam] = field(default_factory=dict)
    inputs: list[Operand | None] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.program.values += [Value("token_ids", "i64", ("T",)), Value("positions", "i64", ("T",))]
        self.program.inputs |= {"token_ids": 0, "positions": 1}

    def value(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> int:
        self.program.values.append(Value(name, dtype, shape))
        return len(self.program.values) - 1

    def add_input(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> None:
        """A whole operand that each step brings."""
        v = self.value(name, dtype, shape)
        self.program.inputs[name] = v
        self.inputs.append(Operand(value=v))

    def add_view(self, name: str, dtype: str, storage: tuple[Dim, ...], shape: Any, strides: Any, offset: Dim) -> None:
        """A view of an input; views of one name share its storage."""
        if name not in self.program.inputs:
            self.program.inputs[name] = self.value(name, dtype, storage)
        self.inputs.append(
            Operand(value=self.program.inputs[name], shape=tuple(shape), strides=tuple(strides), offset=offset)
        )

    def add_param(self, name: str, stored: StoredParam) -> None:
        dtype = stored.format if stored.format in ("i64", "bool") else "f32"
        self.program.params.append(Param(name, stored.shape, dtype))
        self.params[name] = stored
        self.inputs.append(Operand(param=len(self.program.params) - 1))

    def add_output(self, dtype: str, shape: tuple[Dim, ...]) -> None:
        name = f"out{len(self.outputs)}"
        self.outputs.append(self.value(name, dtype, shape))
        self.program.outputs[name] = self.outputs[-1]

    def add_states(self, decls: list[Any]) -> None:
        for i, d in enumerate(decls):
            parts = tuple(StateComponent(c.name, c.shape, c.dtype) for c in d.components)
            self.program.states.append(State(f"state{i}", d.kind, parts, d.window, d.chunk))

    def finish(self, region: Region | None = None) -> Program:
        if region is not None:
            self.program.regions.append(region)
        states = list(range(len(self.program.states)))
        instruction = Instruction(self.op, self.inputs, self.outputs, self.attrs, states, source="sample")
        self.program.instructions.append(instruction)
        validate(self.program)
        return self.program


def lead_dim(size: int, num_tokens: int) -> Dim:
    """The dim of an operand with so many rows in a step of so many tokens."""
    assert size % num_tokens == 0, f"{size} rows for {num_tokens} tokens"
    return format_dim(size // num_tokens, "T")


def write_folder(folder: Path, program: Program, params: dict[str, StoredParam]) -> Path:
    """program.json, weights.json and one file with all params, without the checks of the artifact's writer."""
    header = b"kernel test file"
    blob, tensors, entries = bytearray(header), {}, []
    for name, p in params.items():
        blob += bytes(-len(blob) % 64)
        tensors[name] = {
            "source": 0,
            "offset": len(blob),
            "nbytes": len(p.data),
            "format": p.format,
            "shape": list(p.shape),
        }
        blob += p.data
        rows = p.shape[0] if p.shape else 1
        segment = {"rows": rows, "format": p.format, "expr": {"op": "tensor", "name": name}}
        entries.append({"name": name, "shape": list(p.shape), "segments": [segment]})
    digest = hashlib.sha256(header).hexdigest()
    source = {"path": "params.raw", "size": len(blob), "header_bytes": len(header), "fingerprint": digest}
    weights = {
        "format": "autodeploy.weights",
        "version": {"major": 1, "minor": 0},
        "sources": [source],
        "tensors": tensors,
        "params": entries,
        "report": {"unused": [], "notes": []},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.raw").write_bytes(bytes(blob))
    (folder / "weights.json").write_text(json.dumps(weights))
    (folder / "program.json").write_text(json.dumps(program.to_json()))
    return folder


def step_arguments(batch: Batch) -> dict[str, Any]:
    """Arguments of Runner.step for a batch, token ids all 0."""
    return {
        "token_ids": np.zeros(batch.num_tokens, np.int64),
        "positions": batch.positions().numpy(),
        "query_start": np.array(batch.query_start, np.int32),
        "kv_len": np.array(batch.kv_len, np.int32),
        "prompt_len": np.array(batch.prompt_len, np.int32),
        "slot": np.array(batch.slots, np.int32) - 1,
        "has_state": np.array(batch.has_state, np.uint8),
        "rows": np.array(batch.rows, np.int32),
    }
