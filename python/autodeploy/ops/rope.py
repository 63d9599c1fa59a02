"""rope: rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register


@register
class Rope(Op):
    """x [T, Hn, D], cos [T, R2], sin [T, R2] -> [T, Hn, D], in float32, rounded once.

    The first 2*R2 channels of each head turn pairwise, (a, b) -> (a cos - b sin, b cos + a sin); the rest pass. Pair i
    is channels (i, i + R2), or (2i, 2i + 1) when `interleaved`.
    """

    name = "rope"
    schema = "(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor"

    def fake(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
        return x.new_empty(x.shape)

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        interleaved: bool,
    ) -> torch.Tensor:
        half = cos.shape[-1]
        if 2 * half > x.shape[-1] or cos.shape != sin.shape:
            raise ValueError(f"[rope] expected cos and sin [T, <= {x.shape[-1] // 2}], found {cos.shape}, {sin.shape}")
        c, s = cos.float()[:, None, :], sin.float()[:, None, :]
        turned = x[..., : 2 * half].float()
        a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
        first, second = a * c - b * s, b * c + a * s
        joined = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
        return torch.cat([joined.to(x.dtype), x[..., 2 * half :]], -1)

    def samples(self) -> Iterator[Sample]:
        for i, (tokens, heads, width, half) in enumerate(
            [(1, 1, 2, 1), (5, 9, 64, 32), (3, 4, 80, 16), (7, 2, 34, 17)]
        ):
            angle = random(i, tokens, half) * 3.0
            operands = {"x": random(10 + i, tokens, heads, width), "cos": angle.cos(), "sin": angle.sin()}
            for interleaved in (False, True):
                name = f"{tokens}x{heads}x{width}_r{2 * half}" + ("_interleaved" if interleaved else "")
                yield Sample.one(name, operands, interleaved=interleaved)
