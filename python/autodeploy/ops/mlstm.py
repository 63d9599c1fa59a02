"""mlstm: a matrix memory with exponential gates and a stabiliser (Beck et al. 2024, arXiv:2405.04517)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


@register
class Mlstm(Op):
    """q [T, H, Dk], k [T, H, Dk], v [T, H, Dv], input_gate [T, H], forget_gate [T, H] -> [T, H, Dv].

    In float32, rounded once to v's dtype; the gates are pre-activations:

        m' = max(logsigmoid(forget_gate) + m, input_gate)
        keep = exp(logsigmoid(forget_gate) + m - m'), add = exp(input_gate - m')
        c = keep c + add k (outer) v,  n = keep n + add k
        y = scale q c / (max(|scale q . n|, exp(-m')) + eps)

    The state holds c [H, Dk, Dv], n [H, Dk] and m [H], all zero before the sequence.
    """

    name = "mlstm"
    schema = "(Tensor q, Tensor k, Tensor v, Tensor input_gate, Tensor forget_gate, float scale, float eps) -> Tensor"
    mixes_tokens = True

    def fake(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        input_gate: torch.Tensor,
        forget_gate: torch.Tensor,
        scale: float,
        eps: float,
    ) -> torch.Tensor:
        return v.new_empty(v.shape)

    def state_decl(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        input_gate: torch.Tensor,
        forget_gate: torch.Tensor,
        scale: float,
        eps: float,
    ) -> list[StateDecl]:
        heads, width, value_width = int(k.shape[1]), int(k.shape[2]), int(v.shape[2])
        components = (
            StateComponent("c", (heads, width, value_width), "f32"),
            StateComponent("n", (heads, width), "f32"),
            StateComponent("m", (heads,), "f32"),
        )
        return [StateDecl("slot", components)]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        input_gate: torch.Tensor,
        forget_gate: torch.Tensor,
        scale: float,
        eps: float,
    ) -> torch.Tensor:
        gates = (input_gate, forget_gate)
        if q.shape != k.shape or v.shape[:2] != k.shape[:2] or any(g.shape != k.shape[:2] for g in gates):
            found = [tuple(t.shape) for t in (q, k, v, *gates)]
            raise ValueError(f"[mlstm] expected q, k [T, H, Dk], v [T, H, Dv] and gates [T, H], found {found}")
        query, key, value = q.float() * scale, k.float(), v.float()
        let, forget = input_gate.float(), torch.nn.functional.logsigmoid(forget_gate.float())
        heads, width = k.shape[1:]
        out = torch.empty(v.shape, dtype=torch.float32)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            if earlier is None:
                c, n, m = torch.zeros(heads, width, v.shape[2]), torch.zeros(heads, width), torch.zeros(heads)
            else:
                c, n, m = earlier["c"], earlier["n"], earlier["m"]
            for t in range(seq.start, seq.stop):
                top = torch.maximum(forget[t] + m, let[t])
                keep, add = torch.exp(forget[t] + m - top), torch.exp(let[t] - top)
                added = add[:, None] * key[t]
                c = keep[:, None, None] * c + added[:, :, None] * value[t, :, None, :]
                n = keep[:, None] * n + added
                m = top
                weight = torch.maximum((query[t] * n).sum(1).abs(), torch.exp(-m)) + eps
                out[t] = (query[t, :, :, None] * c).sum(1) / weight[:, None]
            states[0].write(seq, c=c, n=n, m=m)
        return out.to(v.dtype)

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("plain", plan, 4, 16, 8)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("wide_values", plan, 2, 5, 81)
            yield _sample("strong_gates", plan, 3, 8, 12, gates=8.0)
        yield _sample("long", "long", 2, 16, 24, steps=({1: 131, 2: 2}, {1: 1, 2: 66}))


def _sample(
    name: str,
    plan: str,
    heads: int,
    width: int,
    value_width: int,
    gates: float = 1.0,
    steps: tuple[dict[int, int], ...] | None = None,
) -> Sample:
    made = []
    for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
        tokens = batch.num_tokens
        operands = {
            "q": random(10 * i + 1, tokens, heads, width),
            "k": random(10 * i + 2, tokens, heads, width),
            "v": random(10 * i + 3, tokens, heads, value_width),
            "input_gate": random(10 * i + 4, tokens, heads, scale=gates),
            "forget_gate": random(10 * i + 5, tokens, heads, scale=gates) + 2.0,
        }
        made.append(Step(batch, operands))
    return Sample(f"{name}.{plan}", {"scale": width**-0.5, "eps": 1e-6}, tuple(made))
