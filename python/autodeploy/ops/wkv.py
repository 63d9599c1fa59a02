"""wkv: a weighted mean of values whose weights decay per channel (Peng et al. 2023, arXiv:2305.13048, appendix D)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class Wkv(Op):
    """k [T, C], v [T, C], decay [C], bonus [C] -> [T, C]; in float32, rounded once to v's dtype.

    y[t] = (sum of exp(k[s] + (t - 1 - s) decay) v[s] over s < t, + exp(bonus + k[t]) v[t]) / (the same without v).

    The state holds the sums over earlier tokens, `num` and `den` [C], both divided by exp(`max`), the largest exponent
    among them [C], so that no exponential overflows.
    """

    name = "wkv"
    schema = "(Tensor k, Tensor v, Tensor decay, Tensor bonus) -> Tensor"
    mixes_tokens = True
    fixed_operands = ("decay", "bonus")

    def fake(self, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, bonus: torch.Tensor) -> torch.Tensor:
        return v.new_empty(v.shape)

    def state_decl(self, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, bonus: torch.Tensor) -> list[StateDecl]:
        shape = (int(k.shape[1]),)
        return [StateDecl("slot", tuple(StateComponent(name, shape, "f32") for name in ("num", "den", "max")))]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        k: torch.Tensor,
        v: torch.Tensor,
        decay: torch.Tensor,
        bonus: torch.Tensor,
    ) -> torch.Tensor:
        if k.dim() != 2 or v.shape != k.shape or decay.shape != k.shape[1:] or bonus.shape != decay.shape:
            found = [tuple(t.shape) for t in (k, v, decay, bonus)]
            raise ValueError(f"[wkv] expected k and v [T, C], decay and bonus [C], found {found}")
        key, value, w, u = k.float(), v.float(), decay.float(), bonus.float()
        out = torch.empty(v.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            if earlier is None:
                num, den, top = torch.zeros_like(w), torch.zeros_like(w), torch.full_like(w, -torch.inf)
            else:
                num, den, top = earlier["num"], earlier["den"], earlier["max"]
            for t in range(seq.start, seq.stop):
                now = key[t] + u
                m = torch.maximum(top, now)
                past, own = torch.exp(top - m), torch.exp(now - m)
                out[t] = (past * num + own * value[t]) / (past * den + own)
                m = torch.maximum(top + w, key[t])
                past, own = torch.exp(top + w - m), torch.exp(key[t] - m)
                num, den, top = past * num + own * value[t], past * den + own, m
            states[0].write(seq, num=num, den=den, max=top)
        return out.to(v.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("c24", plan, 24)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("c3", plan, 3)
            yield _sample("c301", plan, 301)
            yield _sample("large_keys", plan, 40, 60.0)


def _sample(name: str, plan: str, channels: int, scale: float = 1.0) -> Sample:
    decay, bonus = -random(1, channels).exp(), random(2, channels)
    steps = []
    for i, batch in enumerate(schedule(*SCHEDULES[plan])):
        k, v = (random(5 * i + j, batch.num_tokens, channels) for j in (3, 4))
        steps.append(Step(batch, {"k": k * scale, "v": v, "decay": decay, "bonus": bonus}))
    return Sample(f"{name}.{plan}", {}, tuple(steps))
