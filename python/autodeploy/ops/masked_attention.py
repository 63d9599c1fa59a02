"""masked_attention: attention as models call it, before its mask was understood; only captured graphs have it.

Capture turns it into `attention` when mask, window and chunk can be told by attributes. What is left (a mask that the
model changed, a bias from content, an index list) has no canonical op yet, and compiling refuses it by its source line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .attention import attend, visible
from .base import Batch, Op, Sample, StateStore, Step, random, register


@register
class MaskedAttention(Op):
    """q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, Dv] -> [T, Hq, Dv], over whole sequences.

    mask: bool (True: sees) or float (added), broadcast to [Hq, T, T]. sinks: [Hq] or [Hq, T]. bias: float, broadcast to
    [Hq, T, T]. indices: i64 [T, n], the keys (rows of k) that each query may see. The rest as in `attention`.
    """

    name = "masked_attention"
    schema = (
        "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? sinks, Tensor? bias, Tensor? indices, float scale, "
        "bool causal, int window, float softcap) -> Tensor"
    )
    mixes_tokens = True
    in_program = False

    def fake(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        sinks: torch.Tensor | None,
        bias: torch.Tensor | None,
        indices: torch.Tensor | None,
        scale: float,
        causal: bool,
        window: int,
        softcap: float,
    ) -> torch.Tensor:
        return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        sinks: torch.Tensor | None,
        bias: torch.Tensor | None,
        indices: torch.Tensor | None,
        scale: float,
        causal: bool,
        window: int,
        softcap: float,
    ) -> torch.Tensor:
        tokens = q.shape[0]
        square = (q.shape[1], tokens, tokens)
        seen = torch.zeros(tokens, tokens, dtype=torch.bool)
        for seq in batch.sequences():
            rows = slice(seq.start, seq.stop)
            seen[rows, rows] = visible(0, seq.length, causal, window, 0)
        if indices is not None:
            seen = seen & torch.zeros_like(seen).scatter(1, indices, True)
        added = torch.zeros(())
        if bias is not None:
            added = bias.float()
        if mask is not None and mask.dtype == torch.bool:
            seen = seen & mask
        elif mask is not None:
            added = added + mask.float()
        return attend(q, k, v, seen, scale, softcap, sinks, added.expand(square)).to(q.dtype)

    def samples(self) -> Iterator[Sample]:
        batch = Batch.of([4, 3])
        attrs = {"scale": 0.25, "causal": True, "window": 0, "softcap": 0.0}
        operands = {"q": random(1, 7, 4, 16), "k": random(2, 7, 2, 16), "v": random(3, 7, 2, 16)}
        absent: dict[str, torch.Tensor | None] = {"mask": None, "sinks": None, "bias": None, "indices": None}
        yield Sample("plain", attrs, (Step(batch, {**operands, **absent}),))
        yield Sample("bias", attrs, (Step(batch, {**operands, **absent, "bias": random(4, 4, 7, 7)}),))
