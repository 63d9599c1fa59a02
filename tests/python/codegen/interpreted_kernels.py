"""Runs generated kernels without a GPU, under Triton's interpreter; functions of libdevice are PyTorch's there."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from autodeploy.artifact.program import Instruction, Param, Region, Value
from autodeploy.codegen import region_source, triton_compile
from autodeploy.codegen.evaluate import evaluate, grid_of
from autodeploy.codegen.generate import region_launch
from autodeploy.codegen.iteration import walk_of

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_LIBDEVICE: dict[str, Callable[..., torch.Tensor]] = {
    **{n: getattr(torch, n) for n in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "floor", "ceil")},
    "rint": torch.round,
    "trunc": torch.trunc,
    "fmod": torch.fmod,
    "pow": torch.pow,
}


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """What is jitted or run in here is interpreted, with two of the interpreter's slips put right: it cuts off in casts
    to bfloat16 instead of rounding, and spreads a condition over a block as numbers of the type that was compared."""
    import triton.language as tl
    from triton import knobs
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain, splat = InterpreterBuilder.cast_impl, InterpreterBuilder.create_splat

    def cast(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return plain(self, source, to)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    def spread(self: Any, to: Any, source: Any) -> Any:
        if source.data.dtype != np.bool_:
            return splat(self, to, source)
        return TensorHandle(np.full(to.shape, source.data[0], dtype=np.bool_), tl.int1)

    with knobs.runtime.scope():
        knobs.runtime.interpret = True
        InterpreterBuilder.cast_impl, InterpreterBuilder.create_splat = cast, spread
        try:
            yield
        finally:
            InterpreterBuilder.cast_impl, InterpreterBuilder.create_splat = plain, splat


@cache
def interpreted_functions() -> ModuleType:
    """A second copy of the device functions, interpreted, with PyTorch's elementary functions."""
    from autodeploy.codegen import device_functions

    spec = importlib.util.spec_from_file_location("interpreted_device_functions", Path(device_functions.__file__))
    module = importlib.util.module_from_spec(spec)
    with interpreting():
        spec.loader.exec_module(module)
    module.libdevice = _stand_in()
    return module


def _stand_in() -> ModuleType:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def wrap(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            blocks = [a.handle.data.shape for a in args if a.type.is_block()]
            shape = np.broadcast_shapes(*blocks) if blocks else ()
            arrays = [torch.from_numpy(np.array(a.handle.data, dtype=np.float32)) for a in args]
            result = function(*arrays).numpy().reshape(shape or (1,))
            kind = tl.block_type(tl.float32, list(shape)) if shape else tl.float32
            return tl.tensor(TensorHandle(result, tl.float32), kind)

        return call

    module = ModuleType("libdevice")
    for name, function in _LIBDEVICE.items():
        setattr(module, name, wrap(function))
    return module


def run_region_kernel(
    region: Region,
    instruction: Instruction,
    values: Sequence[Value],
    params: Sequence[Param],
    act: str,
    operands: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    sizes: tuple[int, int],
) -> None:
    """Runs the kernel of a region instruction on views of its operands; fills `outputs`. The views say all of sizes."""
    walk = walk_of(instruction, values, params)
    source = region_source.region_source(region, walk.iteration, act)
    args, grid = region_launch(instruction, walk)
    views = [x.view(torch.uint8) if x.dtype == torch.bool else x for x in operands]
    made = [x.view(torch.uint8) if x.dtype == torch.bool else x for x in outputs]
    ready = [evaluate(a, views, made, instruction.attrs) for a in args]
    with interpreting():
        function = triton_compile.load_function(source, interpreted_functions())
        function[grid_of(grid, views, made, instruction.attrs)](*ready)
