"""linear_scan: a first-order recurrence per channel, as in the RG-LRU (De et al. 2024, arXiv:2402.19427)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class LinearScan(Op):
    """x [T, C], a [T, C] -> [T, C]; in float32, rounded once to x's dtype.

    h = a * h + x, zero before the sequence; the result is h. The state holds h [C].
    """

    name = "linear_scan"
    schema = "(Tensor x, Tensor a) -> Tensor"
    mixes_tokens = True

    def fake(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape)

    def state_decl(self, x: torch.Tensor, a: torch.Tensor) -> list[StateDecl]:
        return [StateDecl("slot", (StateComponent("h", (int(x.shape[1]),), "f32"),))]

    def reference(self, batch: Batch, states: Sequence[StateStore], x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        if x.dim() != 2 or a.shape != x.shape:
            raise ValueError(f"[linear_scan] expected x and a [T, C], found {[tuple(t.shape) for t in (x, a)]}")
        source, keep = x.float(), a.float()
        out = torch.empty(x.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            h = torch.zeros(x.shape[1]) if earlier is None else earlier["h"]
            for t in range(seq.start, seq.stop):
                h = keep[t] * h + source[t]
                out[t] = h
            states[0].write(seq, h=h)
        return out.to(x.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("c24", plan, 24)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("c1", plan, 1)
            yield _sample("c301", plan, 301)


def _sample(name: str, plan: str, channels: int) -> Sample:
    steps = [
        Step(
            batch, {"x": random(5 * i + 1, n, channels), "a": torch.sigmoid(random(5 * i + 2, n, channels, scale=2.0))}
        )
        for i, batch in enumerate(schedule(*SCHEDULES[plan]))
        for n in [batch.num_tokens]
    ]
    return Sample(f"{name}.{plan}", {}, tuple(steps))
