"""Region instructions with random operands: run as generated kernels and by the reference, and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from interpreted_kernels import TORCH, run_region_kernel

from autodeploy.artifact.dims import Dim, eval_dim, mul_dims
from autodeploy.artifact.program import Instruction, Operand, Param, Region, Value
from autodeploy.interpreter.region import run_region

Run = Callable[..., None]


@dataclass(frozen=True)
class View:
    """An operand: a strided view of a storage of its own, or (no strides) a whole value."""

    dtype: str
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...] | None = None
    offset: Dim = 0
    storage: tuple[Dim, ...] | None = None


@dataclass
class Made:
    """An instruction with everything it names."""

    region: Region
    instruction: Instruction
    values: list[Value]
    params: list[Param] = field(default_factory=list)


def instruction_of(region: Region, views: Sequence[View], shape: Sequence[Dim]) -> Made:
    """The instruction that applies a region to views."""
    values = [Value(f"in{i}", v.dtype, v.storage or v.shape) for i, v in enumerate(views)]
    dtypes = [*region.inputs, *(n.dtype for n in region.nodes)]
    outputs = list(range(len(values), len(values) + len(region.outputs)))
    values += [Value(f"out{o}", dtypes[r], tuple(shape)) for o, r in enumerate(region.outputs)]
    operands = [Operand(i) if v.strides is None else Operand(i, None, v.shape, v.strides, v.offset)
                for i, v in enumerate(views)]  # fmt: skip
    return Made(region, Instruction("region", operands, outputs, {"region": 0}), values)


def dtypes_of(act: str) -> dict[str, torch.dtype]:
    return {"act": TORCH[act], "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}


def random_tensor(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    if dtype == torch.int64:
        return torch.randint(-9, 10, tuple(shape), generator=generator)
    return (2.0 * torch.randn(tuple(shape), generator=generator)).to(dtype)


def poison(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A result that nobody has written yet."""
    value = {torch.bool: True, torch.int64: -(2**62) + 3}.get(dtype, float("nan"))
    return torch.full(tuple(shape), value, dtype=dtype)


def run_made(
    made: Made, act: str, sizes: tuple[int, int], seed: int = 0, operands: Sequence[torch.Tensor] | None = None,
    run: Run = run_region_kernel, refer: bool = True,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
    """(found, expected) results for random storages, in a step of these sizes (T and R, or N and S).

    `refer` is False where the reference gives the region no meaning: nothing is expected then.
    """
    generator = torch.Generator().manual_seed(seed)
    types = dtypes_of(act)

    def dims(shape: Sequence[Dim]) -> list[int]:
        return [eval_dim(d, *sizes) for d in shape]

    storages: dict[tuple[str, int], torch.Tensor] = {}
    views = []
    for o in made.instruction.inputs:
        assert o is not None
        is_value = o.value is not None
        tensor = made.values[o.value] if is_value else made.params[o.param or 0]
        key = ("v", o.value) if is_value else ("p", o.param)
        if key not in storages:
            storages[key] = random_tensor([eval_dim(mul_dims(tensor.shape), *sizes)], types[tensor.dtype], generator)
        shape = o.shape if o.shape is not None else tensor.shape
        strides = dims(o.strides) if o.strides is not None else list(torch.empty(dims(shape), device="meta").stride())
        views.append(torch.as_strided(storages[key], dims(shape), strides, eval_dim(o.offset, *sizes)))
    if operands is not None:
        views = list(operands)
    outputs = [poison(dims(made.values[v].shape), types[made.values[v].dtype]) for v in made.instruction.outputs]
    shape = dims(made.values[made.instruction.outputs[0]].shape)
    expected = run_region(made.region, views, types, shape) if refer else []
    run(made.region, made.instruction, made.values, made.params, act, views, outputs, sizes)
    return outputs, expected


def ulps(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of two tensors of one dtype, in units of the last place of the expected value or of 2^-10 of
    the largest one, whichever is greater. Equal infinities and NaNs agree."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if not found.dtype.is_floating_point:
        return 0.0 if torch.equal(found, expected) else float("inf")
    a, b = found.double(), expected.double()
    same = (a == b) | (a.isnan() & b.isnan())
    finite = b[b.isfinite()].abs()
    floor = float(finite.max()) * 2.0**-10 if finite.numel() else 1.0
    unit = torch.clamp(b.abs(), min=max(floor, 1e-37)) * torch.finfo(found.dtype).eps
    error = torch.where(same, 0.0, (a - b).abs() / unit)
    error = torch.where(same | (a.isfinite() & b.isfinite()), error, float("inf"))
    return float(error.max()) if error.numel() else 0.0


def check(
    made: Made, act: str, sizes: tuple[int, int], limit: float, seed: int = 0, run: Run = run_region_kernel
) -> None:
    """Fails where a result is further than `limit` ulps from the reference."""
    found, expected = run_made(made, act, sizes, seed, run=run)
    for o, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = ulps(a, b)
        assert error <= limit, f"result {o} in {act} at {sizes}: {error:.3g} ulp from the reference"
