"""linear: a matrix product with weights stored row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register


@register
class Linear(Op):
    """x [M, K], weight [N, K], bias [N] or None -> [M, N] = x weight^T + bias, in x's dtype."""

    name = "linear"
    schema = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
    weight_operands = ("weight",)
    fixed_operands = ("weight", "bias")

    def fake(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        product = x.float() @ weight.float().T
        if bias is not None:
            product = product + bias.float()
        return product.to(x.dtype)

    def samples(self) -> Iterator[Sample]:
        shapes = [(1, 32, 1), (1, 576, 192), (2, 64, 33), (3, 96, 160), (8, 256, 49), (17, 64, 64), (65, 128, 31)]
        for i, (rows, inner, outer) in enumerate(shapes):
            x, weight = random(i, rows, inner), random(50 + i, outer, inner, scale=inner**-0.5)
            yield Sample.one(f"{rows}x{inner}x{outer}", {"x": x, "weight": weight, "bias": None})
            bias = random(90 + i, outer)
            yield Sample.one(f"{rows}x{inner}x{outer}_bias", {"x": x, "weight": weight, "bias": bias})
        yield Sample.one("odd_inner", {"x": random(1, 4, 37), "weight": random(2, 5, 37), "bias": random(3, 5)})
        yield Sample.one("leading_dims", {"x": random(1, 3, 2, 64), "weight": random(2, 7, 64), "bias": None})
