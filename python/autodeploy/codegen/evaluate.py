"""The value of a launch's expressions (docs/kernels.md) for given tensors: what a runtime does at a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autodeploy.artifact.kernels import Expr


def evaluate(expr: Expr, inputs: Sequence[Any], outputs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """A number, or the tensor itself where a pointer is meant. Tensors have PyTorch's `shape`, `stride` and `numel`."""
    if not isinstance(expr, dict):
        return expr
    ((key, x),) = expr.items()
    tensors = {"in": inputs, "out": outputs}
    match key:
        case "in" | "out":
            return tensors[key][x]
        case "attr":
            return attrs[x]
        case "numel":
            return tensors[x[0]][x[1]].numel()
        case "size":
            return tensors[x[0]][x[1]].shape[x[2]]
        case "stride":
            return tensors[x[0]][x[1]].stride(x[2])
    a, b = (evaluate(y, inputs, outputs, attrs) for y in x)
    match key:
        case "mul":
            return a * b
        case "add":
            return a + b
        case "cdiv":
            return -(-a // b)
        case "min":
            return min(a, b)
        case "max":
            return max(a, b)
    raise ValueError(f"[kernel] expected an expression, found {expr!r}")


def grid_of(
    grid: Sequence[Expr], inputs: Sequence[Any], outputs: Sequence[Any], attrs: Mapping[str, Any]
) -> tuple[int, int, int]:
    """The number of blocks along each dim of a launch."""
    x, y, z = (int(evaluate(e, inputs, outputs, attrs)) for e in grid)
    return x, y, z
