"""The meaning of a region: a pointwise program over equally shaped tensors (docs/program.md, Region)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from autodeploy.artifact.program import Region

Tensor = torch.Tensor


def _pow(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y)


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


# What a node computes from its arguments, which are float32, int64 or bool.
POINTWISE: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": _pow,
    "min": torch.minimum,
    "max": torch.maximum,
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "sign": torch.sign,
    "square": torch.square,
    "fmod": torch.fmod,
    "floor_div": _floor_div,
    "where": torch.where,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "bit_and": torch.bitwise_and,
    "bit_or": torch.bitwise_or,
    "bit_xor": torch.bitwise_xor,
    "cast": lambda x: x,
}


def run_region(
    region: Region, inputs: Sequence[Tensor], dtypes: dict[str, torch.dtype], shape: Sequence[int] | None = None
) -> list[Tensor]:
    """Results of a region for inputs of one shape; `dtypes` binds the Program's dtype names.

    Floating arithmetic is done in float32 and rounded to a node's dtype afterwards. `shape` is needed where a region
    reads nothing.
    """
    shape = inputs[0].shape if shape is None else shape
    registers = [_wide(x) for x in inputs]
    for node in region.nodes:
        dtype = dtypes[node.dtype]
        if node.op == "const":
            result = torch.full(tuple(shape), node.value, dtype=dtype)
        else:
            result = POINTWISE[node.op](*(registers[a] for a in node.args)).to(dtype)
        registers.append(_wide(result))
    results = []
    for register in region.outputs:
        at = register - len(region.inputs)
        dtype = inputs[register].dtype if at < 0 else dtypes[region.nodes[at].dtype]
        results.append(registers[register].to(dtype))
    return results


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.is_floating_point else x
