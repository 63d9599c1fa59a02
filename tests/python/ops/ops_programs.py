"""A sample of an op as a Program of one instruction, run by the interpreter and by the C++ runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from autodeploy.artifact import Instruction, Operand, Param, Program, Region, RegionNode, State, StateComponent, Value
from autodeploy.artifact.files import CONSTANTS, Provenance
from autodeploy.artifact.writer import write_artifact
from autodeploy.interpreter import Interpreter
from autodeploy.ops import OPS, Batch, Sample
from autodeploy.ops.generic import GenericSample
from autodeploy.weights.constants import pack_constants
from autodeploy.weights.weight_program import Segment, WeightParam, WeightProgram

DTYPES = {torch.float32: "act", torch.int64: "i64", torch.bool: "bool"}
FORMATS = {torch.float32: "f32", torch.int64: "i64", torch.bool: "bool"}


class OneOp:
    """A Program of one instruction: token operands are inputs, the others params."""

    def __init__(self) -> None:
        self.program = Program(metadata={}, inputs={}, outputs={})
        for name in ("token_ids", "positions"):
            self.program.inputs[name] = self.value(name, torch.int64, ("T",))
        self.params: dict[str, torch.Tensor] = {}

    def value(self, name: str, dtype: torch.dtype, shape: tuple[Any, ...], act: str = "act") -> int:
        kind = act if dtype == torch.float32 else DTYPES[dtype]
        self.program.values.append(Value(name, kind, shape))
        return len(self.program.values) - 1

    def input(self, name: str, x: torch.Tensor, shape: tuple[Any, ...]) -> Operand:
        index = self.value(name, x.dtype, shape)
        self.program.inputs[name] = index
        return Operand(value=index)

    def param(self, name: str, x: torch.Tensor) -> Operand:
        self.program.params.append(Param(name, tuple(x.shape), DTYPES[x.dtype]))
        self.params[name] = x.contiguous()
        return Operand(param=len(self.program.params) - 1)

    def finish(self, instruction: Instruction) -> None:
        self.program.instructions.append(instruction)
        for i, out in enumerate(instruction.outputs):
            self.program.outputs[f"out{i}"] = out

    def write(self, folder: Path) -> Path:
        arrays = {name: (FORMATS[x.dtype], x.contiguous().numpy()) for name, x in self.params.items()}
        content, source, stored = pack_constants(arrays, 0)
        weights = WeightProgram(sources=[source], tensors=stored)
        for name, x in self.params.items():
            rows = x.shape[0] if x.dim() else 1
            weights.params.append(WeightParam(name, tuple(x.shape), [Segment(rows, stored[name].expr(name))]))
        return write_artifact(folder, self.program, weights.to_json(), Provenance("a test"), {CONSTANTS: content})


def as_array(x: torch.Tensor) -> np.ndarray:
    array = x.contiguous().numpy()
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def dim_of(size: int, tokens: int) -> int | str:
    factor, rest = divmod(size, tokens)
    assert rest == 0, f"{size} rows for {tokens} tokens"
    return "T" if factor == 1 else f"{factor}*T"


def program_of(name: str, sample: Sample) -> OneOp:
    """A sample of a canonical op."""
    op, made = OPS[name], OneOp()
    step = sample.steps[0]
    tokens = step.batch.num_tokens
    operands: list[Operand | None] = []
    for operand in op.operands:
        x = step.operands[operand]
        if x is None:
            operands.append(None)
        elif op.is_fixed(operand, x):
            operands.append(made.param(operand, x))
        else:
            operands.append(made.input(operand, x, (dim_of(x.shape[0], tokens), *x.shape[1:])))
    args = [step.operands[o] for o in op.operands] + [sample.attrs[a] for a in op.attributes]
    for i, decl in enumerate(op.state_decl(*args)):
        components = tuple(StateComponent(c.name, c.shape, c.dtype) for c in decl.components)
        made.program.states.append(State(f"state{i}", decl.kind, components, decl.window, decl.chunk))
    outputs = []
    for i, x in enumerate(op.expected(sample)[0]):
        rows = "R" if name == "select_rows" else dim_of(x.shape[0], tokens)
        outputs.append(made.value(f"out{i}", x.dtype, (rows, *x.shape[1:])))
    states = list(range(len(made.program.states)))
    made.finish(Instruction(name, operands, outputs, dict(sample.attrs), states, parts=parts_of(made, name, sample)))
    return made


def parts_of(made: OneOp, name: str, sample: Sample) -> list[Instruction]:
    """What a composite is made of: the addition as a region, then the norm."""
    if not OPS[name].composite:
        return []
    made.program.regions.append(Region(("act", "act"), (RegionNode("add", "act", (0, 1)),), (2,)))
    norm = name.removeprefix("add_")
    inputs = {n: Operand(value=i) for n, i in made.program.inputs.items()}
    normed, total = len(made.program.values) - 2, len(made.program.values) - 1
    params = {p.name: Operand(param=i) for i, p in enumerate(made.program.params)}
    affine = [params.get(n) for n in OPS[norm].operands[1:]]
    return [
        Instruction("region", [inputs["x"], inputs["residual"]], [total], {"region": 0}),
        Instruction(norm, [Operand(value=total), *affine], [normed], dict(sample.attrs)),
    ]


def region_of(region: dict[str, Any]) -> Region:
    nodes = (RegionNode(n["op"], n["dtype"], tuple(n["args"]), n.get("value")) for n in region["nodes"])
    return Region(tuple(region["inputs"]), tuple(nodes), tuple(region["outputs"]))


def generic_program_of(sample: GenericSample) -> OneOp:
    """A sample of a generic op; the first dim of every operand and result is static, their storage a value of T = 1."""
    made = OneOp()
    operands = []
    for i, x in enumerate(sample.operands):
        storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        whole = made.input(f"in{i}", x, ("T", storage.numel()))
        operands.append(Operand(whole.value, None, tuple(x.shape), tuple(x.stride()), x.storage_offset()))
    outputs = [made.value(f"out{i}", x.dtype, tuple(x.shape)) for i, x in enumerate(sample.expected())]
    attrs = dict(sample.attrs)
    if sample.region is not None:
        made.program.regions.append(region_of(sample.region))
        attrs = {"region": 0}
    made.finish(Instruction(sample.op, operands, outputs, attrs))
    return made


def generic_inputs(sample: GenericSample) -> dict[str, torch.Tensor]:
    return {
        f"in{i}": torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())[None] for i, x in enumerate(sample.operands)
    }


def run_interpreter(made: OneOp, steps: list[tuple[Batch, dict[str, torch.Tensor]]]) -> list[list[torch.Tensor]]:
    interpreter = Interpreter(made.program, made.params)
    results = []
    for batch, inputs in steps:
        ids = torch.zeros(batch.num_tokens, dtype=torch.int64)
        out = interpreter.step(batch, {"token_ids": ids, "positions": batch.positions(), **inputs}).outputs
        results.append([out[f"out{i}"] for i in range(len(out))])
    return results


def run_runtime(
    made: OneOp, steps: list[tuple[Batch, dict[str, torch.Tensor]]], folder: Path, threads: int, exact: bool,
    device: str = "cpu", replay: bool = False,
) -> list[list[torch.Tensor]]:
    from autodeploy._load_native import load_native

    runner = load_native().Runner(
        str(made.write(folder)),
        max_tokens=max(b.num_tokens for b, _ in steps),
        max_seqs=max(max(b.slots) for b, _ in steps),
        max_seq_len=max(max(b.kv_len) for b, _ in steps),
        num_threads=threads,
        exact=exact,
        poison=True,
        device=device,
        replay=replay,
    )
    results = []
    for batch, inputs in steps:
        out = runner.step(
            token_ids=np.zeros(batch.num_tokens, np.int64),
            positions=batch.positions().numpy(),
            query_start=np.array(batch.query_start, np.int32),
            kv_len=np.array(batch.kv_len, np.int32),
            prompt_len=np.array(batch.prompt_len, np.int32),
            slot=np.array(batch.slots, np.int32) - 1,
            has_state=np.array(batch.has_state, np.uint8),
            rows=np.array(batch.rows, np.int32),
            inputs={k: x.contiguous().numpy() for k, x in inputs.items()},
        )["outputs"]
        results.append([torch.from_numpy(np.asarray(out[f"out{i}"])) for i in range(len(out))])
    return results
