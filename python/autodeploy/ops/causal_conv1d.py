"""causal_conv1d: a depthwise convolution over each sequence's last K tokens, and an activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class CausalConv1d(Op):
    """x [T, C], weight [C, K >= 2], bias [C] or None -> [T, C]; `activation` is "" or "silu"; in float32, rounded once.

    y[t, c] = sum over j of weight[c, j] * x[t - (K - 1) + j, c] + bias[c]; tokens before the sequence are zero.
    The state holds the last K - 1 inputs [K - 1, C], oldest first.
    """

    name = "causal_conv1d"
    schema = '(Tensor x, Tensor weight, Tensor? bias, str activation="") -> Tensor'
    mixes_tokens = True
    fixed_operands = ("weight", "bias")

    def fake(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = ""
    ) -> torch.Tensor:
        return x.new_empty(x.shape)

    def state_decl(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = ""
    ) -> list[StateDecl]:
        shape = (int(weight.shape[1]) - 1, int(weight.shape[0]))
        return [StateDecl("conv", (StateComponent("x", shape, "act"),))]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str,
    ) -> torch.Tensor:
        if activation not in ("", "silu"):
            raise ValueError(f'[causal_conv1d] expected activation "" or "silu", found "{activation}"')
        width = weight.shape[1]
        out = x.new_empty(x.shape)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            history = x.new_zeros(width - 1, x.shape[1]) if earlier is None else earlier["x"]
            line = torch.cat([history, x[seq.start : seq.stop]])
            wide = line.float()
            total = sum(wide[j : j + seq.length] * weight[:, j].float() for j in range(width))
            if bias is not None:
                total = total + bias.float()
            if activation == "silu":
                total = total * torch.sigmoid(total)
            out[seq.start : seq.stop] = total.to(x.dtype)
            states[0].write(seq, x=line[seq.length :])
        return out

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("k4_silu_bias", plan, 24, 4, True, "silu")
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("k3", plan, 17, 3, False, "")
            yield _sample("k2_bias", plan, 5, 2, True, "")
            yield _sample("k7", plan, 40, 7, False, "silu")


def _sample(name: str, plan: str, channels: int, width: int, has_bias: bool, activation: str) -> Sample:
    weight, bias = random(1, channels, width), random(2, channels) if has_bias else None
    steps = [
        Step(batch, {"x": random(3 + i, batch.num_tokens, channels), "weight": weight, "bias": bias})
        for i, batch in enumerate(schedule(*SCHEDULES[plan]))
    ]
    return Sample(f"{name}.{plan}", {"activation": activation}, tuple(steps))
