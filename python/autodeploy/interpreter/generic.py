"""The meaning of the generic ops, the token-wise tail of a graph (docs/program.md, Generic tail)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
Shape = Sequence[int]


def _reduce(x: Tensor, kind: str, dims: list[int], keepdim: bool) -> Tensor:
    match kind:
        case "sum" | "mean":
            return getattr(x, kind)(dims, keepdim=keepdim)
        case "max" | "min":
            return getattr(x, f"a{kind}")(dims, keepdim=keepdim)
        case "argmax" | "argmin":
            (dim,) = dims
            # Ties go to the lower index, which torch does not promise.
            order = torch.sort(x, dim=dim, descending=kind == "argmax", stable=True).indices.narrow(dim, 0, 1)
            return order if keepdim else order.squeeze(dim)
        case "prod" | "any" | "all":
            for dim in sorted((d % x.dim() for d in dims), reverse=True):
                x = getattr(x, kind)(dim, keepdim=keepdim)
            return x
    raise ValueError(f"[reduce] expected a known kind, found {kind!r}")


def _top_k(x: Tensor, k: int, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x, dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)


def _scatter(x: Tensor, index: Tensor, source: Tensor, dim: int, reduce: str) -> Tensor:
    # An index outside the dim writes nothing: it goes to a place behind the end that is cut off again.
    size = x.shape[dim]
    wide = torch.cat([x, x.new_zeros((*x.shape[:dim], 1, *x.shape[dim + 1 :]))], dim)
    index = torch.where(_inside(index, size), index, size)
    wide = wide.scatter_add(dim, index, source) if reduce == "add" else wide.scatter(dim, index, source)
    return wide.narrow(dim, 0, size)


def _gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    inside = _inside(index, x.shape[dim])
    found = torch.gather(x, dim, torch.where(inside, index, 0))
    return torch.where(inside, found, torch.zeros((), dtype=x.dtype))


def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    inside = _inside(index, x.shape[dim])
    found = torch.index_select(x, dim, torch.where(inside, index, 0))
    mask = inside.reshape([-1 if d == dim else 1 for d in range(x.dim())])
    return torch.where(mask, found, torch.zeros((), dtype=x.dtype))


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _arange(shape: Shape, start: float, step: float) -> Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.int64) * step + start).reshape(shape)


# op -> function(inputs, attributes, shape of the first result) -> results in the dtype of computation.
GENERIC: dict[str, Callable[[Sequence[Tensor], dict[str, Any], Shape], tuple[Tensor, ...] | Tensor]] = {
    "copy": lambda x, a, shape: x[0].clone(),
    "cat": lambda x, a, shape: torch.cat(list(x), a["dim"]),
    "reduce": lambda x, a, shape: _reduce(x[0], a["kind"], list(a["dims"]), a["keepdim"]),
    "softmax": lambda x, a, shape: torch.softmax(x[0].float(), a["dim"]),
    "log_softmax": lambda x, a, shape: torch.log_softmax(x[0].float(), a["dim"]),
    "topk": lambda x, a, shape: _top_k(x[0], a["k"], a["dim"], a["largest"]),
    "sort": lambda x, a, shape: tuple(torch.sort(x[0], dim=a["dim"], descending=a["descending"], stable=True)),
    "cumsum": lambda x, a, shape: torch.cumsum(x[0], a["dim"]),
    "matmul": lambda x, a, shape: torch.matmul(x[0], x[1]),
    "gather": lambda x, a, shape: _gather(x[0], a["dim"], x[1]),
    "scatter": lambda x, a, shape: _scatter(x[0], x[1], x[2], a["dim"], a["reduce"]),
    "index_select": lambda x, a, shape: _index_select(x[0], a["dim"], x[1]),
    "arange": lambda x, a, shape: _arange(shape, a["start"], a["step"]),
    "full": lambda x, a, shape: torch.full(shape, a["value"]),
}
