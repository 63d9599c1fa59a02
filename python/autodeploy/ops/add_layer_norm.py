"""add_layer_norm: residual addition and the layer_norm of the sum, in one pass over memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register
from .layer_norm import normalise


@register
class AddLayerNorm(Op):
    """x, residual [M, H], weight [H] or None, bias [H] or None -> normed [M, H], sum [M, H].

    sum = x + residual, rounded to its dtype; normed = layer_norm(sum, weight, bias, eps).
    """

    name = "add_layer_norm"
    schema = "(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)"
    composite = True
    fixed_operands = ("weight", "bias")

    def fake(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x.new_empty(x.shape), x.new_empty(x.shape)

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = (x.float() + residual.float()).to(x.dtype)
        return normalise(total, weight, bias, eps), total

    def samples(self) -> Iterator[Sample]:
        for i, (rows, width) in enumerate([(1, 2), (1, 64), (7, 33), (5, 768)]):
            operands = {"x": random(i, rows, width), "residual": random(50 + i, rows, width)}
            affine = {"weight": random(9, width), "bias": random(8, width)}
            yield Sample.one(f"{rows}x{width}", {**operands, **affine}, eps=1e-5)
            yield Sample.one(f"{rows}x{width}_plain", {**operands, "weight": None, "bias": None}, eps=1e-6)
        yield Sample.one("no_bias", {**operands, "weight": random(9, 768), "bias": None}, eps=1e-6)
