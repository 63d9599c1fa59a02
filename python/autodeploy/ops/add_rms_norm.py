"""add_rms_norm: residual addition and the rms_norm of the sum, in one pass over memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register
from .rms_norm import normalise


@register
class AddRmsNorm(Op):
    """x, residual [M, H], weight [H] or None -> normed [M, H], sum [M, H].

    sum = x + residual, rounded to its dtype; normed = rms_norm(sum, weight, eps, offset).
    """

    name = "add_rms_norm"
    schema = "(Tensor x, Tensor residual, Tensor? weight, float eps, float offset=0.0) -> (Tensor, Tensor)"
    composite = True
    fixed_operands = ("weight",)

    def fake(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x.new_empty(x.shape), x.new_empty(x.shape)

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        offset: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = (x.float() + residual.float()).to(x.dtype)
        return normalise(total, weight, eps, offset), total

    def samples(self) -> Iterator[Sample]:
        for i, (rows, width) in enumerate([(1, 1), (1, 64), (7, 33), (5, 576)]):
            operands = {"x": random(i, rows, width), "residual": random(50 + i, rows, width)}
            yield Sample.one(f"{rows}x{width}", {**operands, "weight": random(9, width)}, eps=1e-5, offset=0.0)
            yield Sample.one(f"{rows}x{width}_plain", {**operands, "weight": None}, eps=1e-6, offset=0.0)
        yield Sample.one("offset", {**operands, "weight": random(9, 576, scale=0.1)}, eps=1e-6, offset=1.0)
