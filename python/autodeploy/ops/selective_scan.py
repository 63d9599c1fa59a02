"""selective_scan: the state space recurrence with a decay per channel and state (Gu and Dao 2023, arXiv:2312.00752)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class SelectiveScan(Op):
    """x, dt [T, C], a [C, N], b, c [T, N], d [C] or None, dt_bias [C] or None -> [T, C].

    In float32, rounded once to x's dtype:

        dt = softplus?(dt + dt_bias)
        state = exp(dt (outer) 1 * a) * state + (dt * x) (outer) b          [C, N], zero before the sequence
        y = state c + d * x
    """

    name = "selective_scan"
    schema = "(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? dt_bias, bool softplus) -> Tensor"
    mixes_tokens = True
    fixed_operands = ("a", "d", "dt_bias")

    def fake(
        self,
        x: torch.Tensor,
        dt: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        softplus: bool,
    ) -> torch.Tensor:
        return x.new_empty(x.shape)

    def state_decl(
        self,
        x: torch.Tensor,
        dt: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        softplus: bool,
    ) -> list[StateDecl]:
        return [StateDecl("slot", (StateComponent("h", (int(a.shape[0]), int(a.shape[1])), "f32"),))]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        dt: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        softplus: bool,
    ) -> torch.Tensor:
        if dt.shape != x.shape or b.shape != c.shape or a.shape != (x.shape[1], b.shape[1]):
            found = [tuple(t.shape) for t in (x, dt, a, b, c)]
            raise ValueError(f"[selective_scan] expected x, dt [T, C], a [C, N], b and c [T, N], found {found}")
        step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
        if softplus:
            step = torch.nn.functional.softplus(step)
        rate, source, inward, outward = a.float(), step * x.float(), b.float(), c.float()
        out = torch.empty(x.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            h = torch.zeros(a.shape) if earlier is None else earlier["h"]
            for t in range(seq.start, seq.stop):
                h = torch.exp(step[t, :, None] * rate) * h + source[t, :, None] * inward[t]
                out[t] = h @ outward[t]
            states[0].write(seq, h=h)
        if d is not None:
            out = out + x.float() * d.float()
        return out.to(x.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("plain", plan, 24, 16)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("odd", plan, 19, 5)
            yield _sample("wide_state", plan, 8, 40)
            yield _sample("bare", plan, 6, 3, skip=False, bias=False, softplus=False)
        yield _sample("large_steps", "ragged", 33, 8, scale=12.0)
        yield _sample("long", "long", 20, 16, steps=({1: 131, 2: 2}, {1: 1, 2: 66}))


def _sample(
    name: str,
    plan: str,
    channels: int,
    states: int,
    skip: bool = True,
    bias: bool = True,
    softplus: bool = True,
    scale: float = 1.0,
    steps: tuple[dict[int, int], ...] | None = None,
) -> Sample:
    made = []
    for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
        tokens = batch.num_tokens
        dt = random(10 * i + 2, tokens, channels, scale=scale)
        operands = {
            "x": random(10 * i + 1, tokens, channels),
            "dt": dt if softplus else dt.abs() * 0.1,
            "a": -random(3, channels, states).exp(),
            "b": random(10 * i + 4, tokens, states),
            "c": random(10 * i + 5, tokens, states),
            "d": random(6, channels) if skip else None,
            "dt_bias": random(7, channels) if bias else None,
        }
        made.append(Step(batch, operands))
    return Sample(f"{name}.{plan}", {"softplus": softplus}, tuple(made))
