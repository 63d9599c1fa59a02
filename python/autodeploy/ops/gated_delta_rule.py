"""gated_delta_rule: linear attention whose memory is corrected, not only added to, and forgets.

A decay per head is Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464), a decay per channel of the keys
Kimi Delta Attention (Kimi Team 2025, arXiv:2510.26692), no decay the delta rule (arXiv:2406.06484).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class GatedDeltaRule(Op):
    """q, k [T, Hk, Dk], v [T, Hv, Dv], g [T, Hv] or [T, Hv, Dk] or None, beta [T, Hv] -> [T, Hv, Dv].

    In float32, rounded once to v's dtype; value head h uses key head h // (Hv / Hk). `g` is the logarithm of the
    decay, at most 0; None means 0. With `l2norm`, q and k are first divided by sqrt(sum of squares + eps).

        state = exp(g) * state                                   [Dk, Dv] of each value head, zero before the sequence
        state = state + k (outer) (beta * (v - k state))
        y = scale * q state
    """

    name = "gated_delta_rule"
    schema = (
        "(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, float scale, bool l2norm=False, float eps=1e-06) "
        "-> Tensor"
    )
    mixes_tokens = True

    def fake(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor | None,
        beta: torch.Tensor,
        scale: float,
        l2norm: bool = False,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        return v.new_empty(v.shape)

    def state_decl(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor | None,
        beta: torch.Tensor,
        scale: float,
        l2norm: bool = False,
        eps: float = 1e-6,
    ) -> list[StateDecl]:
        shape = (int(v.shape[1]), int(k.shape[2]), int(v.shape[2]))
        return [StateDecl("slot", (StateComponent("s", shape, "f32"),))]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor | None,
        beta: torch.Tensor,
        scale: float,
        l2norm: bool,
        eps: float,
    ) -> torch.Tensor:
        heads, key_heads, width = v.shape[1], k.shape[1], k.shape[2]
        gate_fits = g is None or g.shape in (v.shape[:2], (*v.shape[:2], width))
        if q.shape != k.shape or heads % key_heads or beta.shape != v.shape[:2] or not gate_fits:
            found = [None if t is None else tuple(t.shape) for t in (q, k, v, g, beta)]
            raise ValueError(
                "[gated_delta_rule] expected q, k [T, Hk, Dk], v [T, Hv, Dv], g [T, Hv] or [T, Hv, Dk], beta [T, Hv], "
                f"Hk dividing Hv, found {found}"
            )
        group = torch.arange(heads) // (heads // key_heads)
        query, key, value, rate = q.float(), k.float(), v.float(), beta.float()
        if l2norm:
            query, key = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps) for x in (query, key))
        query, key = scale * query[:, group], key[:, group]
        decay = torch.ones(*v.shape[:2], 1) if g is None else torch.exp(g.float())
        decay = decay[..., None] if decay.dim() == 2 else decay
        out = torch.empty(v.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            s = torch.zeros(heads, width, v.shape[2]) if earlier is None else earlier["s"]
            for t in range(seq.start, seq.stop):
                s = decay[t, :, :, None] * s
                held = (key[t, :, :, None] * s).sum(1)
                s = s + key[t, :, :, None] * (rate[t, :, None] * (value[t] - held))[:, None, :]
                out[t] = (query[t, :, :, None] * s).sum(1)
            states[0].write(seq, s=s)
        return out.to(v.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("per_head", plan, 2, 4, 16, 16)
            yield _sample("per_channel", plan, 3, 3, 16, 16, gate="channel")
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("odd_widths", plan, 1, 3, 7, 21)
            yield _sample("odd_channels", plan, 1, 2, 19, 5, gate="channel")
            yield _sample("no_decay", plan, 2, 2, 8, 12, gate="none")
            yield _sample("given_as_they_are", plan, 2, 4, 12, 8, l2norm=False)
        yield _sample("strong_decay", "ragged", 1, 2, 16, 32, decay=30.0)
        yield _sample("long", "long", 1, 2, 16, 24, steps=({1: 131, 2: 2}, {1: 1, 2: 66}))
        yield _sample("long_per_channel", "long", 1, 2, 16, 24, gate="channel", steps=({1: 131, 2: 2}, {1: 1, 2: 66}))
        yield _sample("long_strong_decay", "long", 2, 2, 24, 40, decay=30.0, steps=({1: 131, 2: 40}, {2: 70, 1: 33}))
        yield _sample("long_no_decay", "long", 2, 2, 33, 17, gate="none", steps=({1: 100, 2: 2}, {1: 1, 2: 66}))


def _sample(
    name: str,
    plan: str,
    key_heads: int,
    heads: int,
    width: int,
    value_width: int,
    gate: str = "head",
    l2norm: bool = True,
    decay: float = 1.0,
    steps: tuple[dict[int, int], ...] | None = None,
) -> Sample:
    made = []
    gate_shape = {"head": (heads,), "channel": (heads, width)}
    for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
        tokens = batch.num_tokens
        norm = 1.0 if l2norm else width**-0.5
        operands = {
            "q": random(10 * i + 1, tokens, key_heads, width),
            "k": random(10 * i + 2, tokens, key_heads, width, scale=norm),
            "v": random(10 * i + 3, tokens, heads, value_width),
            "g": None if gate == "none" else -decay * random(10 * i + 4, tokens, *gate_shape[gate]).abs(),
            "beta": torch.sigmoid(random(10 * i + 5, tokens, heads)),
        }
        made.append(Step(batch, operands))
    attrs = {"scale": width**-0.5, "l2norm": l2norm, "eps": 1e-6}
    return Sample(f"{name}.{plan}", attrs, tuple(made))
