"""linear_attention: attention without a softmax, its memory decaying by a scalar per head.

Lightning attention (Qin et al. 2024, arXiv:2401.04658) and retention (Sun et al. 2023, arXiv:2307.08621) have a
constant decay per head; with a gate per token it is gated linear attention with scalar gates (arXiv:2312.06635).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class LinearAttention(Op):
    """q [T, H, Dk], k [T, H, Dk], v [T, H, Dv], gate [T, H] or None, decay [H] or None -> [T, H, Dv].

    In float32, rounded once to v's dtype; `gate` and `decay` are logarithms, and add:

        s = exp(gate + decay) s + k (outer) v          [H, Dk, Dv], zero before the sequence
        y = scale * q s
    """

    name = "linear_attention"
    schema = "(Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor? decay, float scale) -> Tensor"
    mixes_tokens = True
    fixed_operands = ("decay",)

    def fake(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        gate: torch.Tensor | None,
        decay: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        return v.new_empty(v.shape)

    def state_decl(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        gate: torch.Tensor | None,
        decay: torch.Tensor | None,
        scale: float,
    ) -> list[StateDecl]:
        shape = (int(k.shape[1]), int(k.shape[2]), int(v.shape[2]))
        return [StateDecl("slot", (StateComponent("s", shape, "f32"),))]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        gate: torch.Tensor | None,
        decay: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        tokens, heads = k.shape[:2]
        if q.shape != k.shape or v.shape[:2] != k.shape[:2] or (gate is not None and gate.shape != k.shape[:2]):
            found = [tuple(t.shape) for t in (q, k, v, gate) if t is not None]
            raise ValueError(f"[linear_attention] expected q, k [T, H, Dk], v [T, H, Dv], gate [T, H], found {found}")
        log = torch.zeros(tokens, heads)
        for x in (gate, decay):
            log = log if x is None else log + x.float()
        keep = torch.exp(log)
        query, key, value = q.float() * scale, k.float(), v.float()
        out = torch.empty(v.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            s = torch.zeros(heads, k.shape[2], v.shape[2]) if earlier is None else earlier["s"]
            for t in range(seq.start, seq.stop):
                s = keep[t, :, None, None] * s + key[t, :, :, None] * value[t, :, None, :]
                out[t] = (query[t, :, :, None] * s).sum(1)
            states[0].write(seq, s=s)
        return out.to(v.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("decay", plan, 4, 16, 8)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("gate", plan, 3, 8, 33, gate=True, decay=False)
            yield _sample("both", plan, 2, 5, 80, gate=True, scale=0.25)
            yield _sample("neither", plan, 1, 7, 6, decay=False)
        yield _sample("long", "long", 2, 16, 24, gate=True, steps=({1: 131, 2: 2}, {1: 1, 2: 66}))


def _sample(
    name: str,
    plan: str,
    heads: int,
    width: int,
    value_width: int,
    gate: bool = False,
    decay: bool = True,
    scale: float = 1.0,
    steps: tuple[dict[int, int], ...] | None = None,
) -> Sample:
    made = []
    for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
        tokens = batch.num_tokens
        operands = {
            "q": random(10 * i + 1, tokens, heads, width),
            "k": random(10 * i + 2, tokens, heads, width),
            "v": random(10 * i + 3, tokens, heads, value_width),
            "gate": -random(10 * i + 4, tokens, heads).abs() if gate else None,
            "decay": -random(5, heads).exp() if decay else None,
        }
        made.append(Step(batch, operands))
    return Sample(f"{name}.{plan}", {"scale": scale}, tuple(made))
