"""ssd: the selective state space recurrence with scalar decay per head (Dao and Gu 2024, arXiv:2405.21060)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class Ssd(Op):
    """x [T, H, P], dt [T, H], a [H], b, c [T, G, N], d [H] or [H, P] or None, dt_bias [H] or None -> [T, H, P].

    In float32, rounded once to x's dtype; head h uses group h // (H / G):

        dt = clamp(softplus?(dt + dt_bias), dt_min, dt_max)
        state = exp(dt * a) * state + dt * x (outer) b          [H, P, N], zero before the sequence
        y = state c + d * x
    """

    name = "ssd"
    schema = (
        "(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? dt_bias, bool softplus, "
        "float dt_min, float dt_max) -> Tensor"
    )
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
        dt_min: float,
        dt_max: float,
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
        dt_min: float,
        dt_max: float,
    ) -> list[StateDecl]:
        shape = (int(x.shape[1]), int(x.shape[2]), int(b.shape[2]))
        return [StateDecl("slot", (StateComponent("h", shape, "f32"),))]

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
        dt_min: float,
        dt_max: float,
    ) -> torch.Tensor:
        heads, groups = x.shape[1], b.shape[1]
        if heads % groups or b.shape != c.shape or dt.shape != x.shape[:2]:
            found = [tuple(t.shape) for t in (x, dt, b, c)]
            raise ValueError(f"[ssd] expected x [T, H, P], dt [T, H], b and c [T, G, N], G dividing H, found {found}")
        group = torch.arange(heads) // (heads // groups)
        step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
        if softplus:
            step = torch.nn.functional.softplus(step)
        step = step.clamp(dt_min, dt_max)
        decay = torch.exp(step * a.float())
        source = x.float() * step[..., None]
        inward, outward = b.float()[:, group], c.float()[:, group]
        out = torch.empty(x.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            h = torch.zeros(heads, x.shape[2], b.shape[2]) if earlier is None else earlier["h"]
            for t in range(seq.start, seq.stop):
                h = decay[t, :, None, None] * h + source[t, :, :, None] * inward[t, :, None, :]
                out[t] = (h * outward[t, :, None, :]).sum(-1)
            states[0].write(seq, h=h)
        if d is not None:
            out = out + x.float() * (d.float() if d.dim() == 2 else d.float()[:, None])
        return out.to(x.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("plain", plan, 4, 8, 2, 16)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("one_group", plan, 5, 12, 1, 7)
            yield _sample("group_per_head", plan, 3, 16, 3, 32)
            yield _sample("bare", plan, 2, 4, 1, 8, d_dims=0, bias=False, softplus=False)
            yield _sample("d_per_channel_limits", plan, 4, 8, 2, 16, d_dims=2, limits=(0.05, 0.6))
        yield _sample("long", "long", 4, 16, 2, 24, steps=({1: 131, 2: 2}, {1: 1, 2: 66}))


def _sample(
    name: str,
    plan: str,
    heads: int,
    width: int,
    groups: int,
    states: int,
    d_dims: int = 1,
    bias: bool = True,
    softplus: bool = True,
    limits: tuple[float, float] = (0.0, math.inf),
    steps: tuple[dict[int, int], ...] | None = None,
) -> Sample:
    made = []
    for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
        tokens = batch.num_tokens
        operands = {
            "x": random(10 * i + 1, tokens, heads, width),
            "dt": random(10 * i + 2, tokens, heads) if softplus else random(10 * i + 2, tokens, heads).abs() * 0.1,
            "a": -random(3, heads).exp(),
            "b": random(10 * i + 4, tokens, groups, states),
            "c": random(10 * i + 5, tokens, groups, states),
            "d": None if d_dims == 0 else random(6, *(heads, width)[:d_dims]),
            "dt_bias": random(7, heads) if bias else None,
        }
        made.append(Step(batch, operands))
    attrs = {"softplus": softplus, "dt_min": limits[0], "dt_max": limits[1]}
    return Sample(f"{name}.{plan}", attrs, tuple(made))
