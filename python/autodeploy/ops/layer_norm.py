"""layer_norm: normalisation to mean 0 and variance 1 over the last dim (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register


def normalise(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """float32 (x - mean) / sqrt(variance + eps) * weight + bias, rounded once to x's dtype."""
    wide = x.float()
    wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * weight.float()
    if bias is not None:
        wide = wide + bias.float()
    return wide.to(x.dtype)


@register
class LayerNorm(Op):
    """x [M, H], weight [H] or None, bias [H] or None -> [M, H], in float32. The variance is the biased one."""

    name = "layer_norm"
    schema = "(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor"
    fixed_operands = ("weight", "bias")

    def fake(self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        return x.new_empty(x.shape)

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        return normalise(x, weight, bias, eps)

    def samples(self) -> Iterator[Sample]:
        for i, (rows, width) in enumerate([(1, 2), (1, 64), (7, 33), (5, 768)]):
            x, w, b = random(i, rows, width), random(100 + i, width), random(200 + i, width)
            yield Sample.one(f"{rows}x{width}", {"x": x, "weight": w, "bias": b}, eps=1e-5)
        x = random(7, 4, 48)
        yield Sample.one("no_bias", {"x": x, "weight": random(8, 48), "bias": None}, eps=1e-6)
        yield Sample.one("plain", {"x": x, "weight": None, "bias": None}, eps=1e-6)
        yield Sample.one("shifted", {"x": x + 100.0, "weight": random(8, 48), "bias": random(9, 48)}, eps=1e-5)
        yield Sample.one("heads", {"x": random(9, 5, 3, 40), "weight": random(10, 40), "bias": None}, eps=1e-6)
