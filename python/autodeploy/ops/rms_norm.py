"""rms_norm: root mean square normalisation over the last dim (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register


def normalise(x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float) -> torch.Tensor:
    """float32 x / sqrt(mean(x^2) + eps) * (offset + weight), rounded once to x's dtype."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * (weight.float() + offset)
    return wide.to(x.dtype)


@register
class RmsNorm(Op):
    """x [M, H], weight [H] or None -> [M, H]. y = x / sqrt(mean(x^2) + eps) * (offset + weight), in float32.

    Without a weight `offset` has no effect.
    """

    name = "rms_norm"
    schema = "(Tensor x, Tensor? weight, float eps, float offset=0.0) -> Tensor"
    fixed_operands = ("weight",)

    def fake(self, x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0) -> torch.Tensor:
        return x.new_empty(x.shape)

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        offset: float,
    ) -> torch.Tensor:
        return normalise(x, weight, eps, offset)

    def samples(self) -> Iterator[Sample]:
        for i, (rows, width) in enumerate([(1, 1), (1, 64), (7, 33), (5, 576), (3, 1031)]):
            x, w = random(i, rows, width), random(100 + i, width)
            yield Sample.one(f"{rows}x{width}", {"x": x, "weight": w}, eps=1e-5, offset=0.0)
        x = random(7, 4, 48)
        yield Sample.one("offset", {"x": x, "weight": random(8, 48, scale=0.1)}, eps=1e-6, offset=1.0)
        yield Sample.one("no_weight", {"x": x, "weight": None}, eps=1e-6, offset=0.0)
        yield Sample.one("heads", {"x": random(9, 5, 3, 40), "weight": random(10, 40)}, eps=1e-6, offset=0.0)
        yield Sample.one("tiny", {"x": x * 1e-6, "weight": random(8, 48)}, eps=1e-5, offset=0.0)
        yield Sample.one("large", {"x": x * 1e4, "weight": random(8, 48)}, eps=1e-5, offset=0.0)
