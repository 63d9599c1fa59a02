"""attention: softmax attention over each sequence's own keys (Vaswani et al. 2017, arXiv:1706.03762).

Grouped heads (arXiv:2305.13245), sliding windows (arXiv:2004.05150), logit soft capping (arXiv:2408.00118) and sinks
(a learned logit per head that takes part in the normalisation and has no value; gpt-oss model card).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule


def visible(past: int, new: int, causal: bool, window: int, chunk: int) -> torch.Tensor:
    """bool [new, past + new]: which keys each of the new queries of one sequence sees."""
    query = torch.arange(past, past + new)[:, None]
    key = torch.arange(past + new)[None, :]
    seen = key <= query if causal else torch.ones(new, past + new, dtype=torch.bool)
    if window:
        seen = seen & (query - key < window)
    if chunk:
        seen = seen & (query // chunk == key // chunk)
    return seen


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """One sequence: q [n, Hq, D], k [m, Hkv, D], v [m, Hkv, Dv] -> [n, Hq, Dv] in float32.

    seen: bool, broadcast to [Hq, n, m]; bias: float, likewise, added to the scores; sinks: [Hq], or [Hq, n].
    """
    group = q.shape[1] // k.shape[1]
    heads = torch.arange(q.shape[1]) // group
    scores = torch.einsum("nhd,mhd->hnm", q.float(), k.float()[:, heads]) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.float()
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        sink = sinks.float().reshape(q.shape[1], -1, 1).expand(-1, q.shape[0], 1)
        scores = torch.cat([scores, sink], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[0]]
    return torch.einsum("hnm,mhd->nhd", weights, v.float()[:, heads])


@register
class Attention(Op):
    """q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, Dv], sinks [Hq] or None -> [T, Hq, Dv]; in float32, rounded once.

    Query head h reads key head h // (Hq / Hkv). Query i of a sequence sees key j when j <= i (if `causal`),
    i - j < window (unless 0) and i // chunk == j // chunk (unless 0), i and j counted from the sequence's start.
    score = softcap * tanh(q.k * scale / softcap), or q.k * scale when softcap is 0.
    Not causal means that all keys of the sequence come in one step.
    """

    name = "attention"
    schema = (
        "(Tensor q, Tensor k, Tensor v, Tensor? sinks, float scale, bool causal=True, int window=0, int chunk=0, "
        "float softcap=0.0) -> Tensor"
    )
    mixes_tokens = True
    fixed_operands = ("sinks",)

    def fake(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        scale: float,
        causal: bool = True,
        window: int = 0,
        chunk: int = 0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))

    def state_decl(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        scale: float,
        causal: bool = True,
        window: int = 0,
        chunk: int = 0,
        softcap: float = 0.0,
    ) -> list[StateDecl]:
        key = StateComponent("k", (int(k.shape[1]), int(k.shape[2])), "act")
        value = StateComponent("v", (int(v.shape[1]), int(v.shape[2])), "act")
        return [StateDecl("paged", (key, value), window=window, chunk=chunk)]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        scale: float,
        causal: bool,
        window: int,
        chunk: int,
        softcap: float,
    ) -> torch.Tensor:
        if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1] or q.shape[2] != k.shape[2]:
            found = [tuple(x.shape) for x in (q, k, v)]
            raise ValueError(f"[attention] expected q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, Dv], found {found}")
        out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        for seq in batch.sequences():
            rows = slice(seq.start, seq.stop)
            keys, values = k[rows], v[rows]
            earlier = states[0].read(seq)
            if earlier is not None:
                if not causal:
                    raise ValueError("[attention] expected all keys of a non-causal attention in one step")
                keys, values = torch.cat([earlier["k"], keys]), torch.cat([earlier["v"], values])
            seen = visible(seq.past, seq.length, causal, window, chunk)
            out[rows] = attend(q[rows], keys, values, seen, scale, softcap, sinks).to(q.dtype)
            states[0].write(seq, k=keys, v=values)
        return out

    def samples(self) -> Iterator[Sample]:
        plain = _Case("gqa", 6, 2, 32, 32)
        for name in SCHEDULES:
            yield plain.sample(name)
        variants = [
            _Case("one_head", 1, 1, 8, 8),
            _Case("mha", 3, 3, 64, 64),
            _Case("mqa", 9, 1, 40, 40),
            _Case("gqa_deep", 8, 2, 128, 128),
            _Case("odd_width", 4, 2, 17, 17),
            _Case("value_narrower", 4, 4, 48, 24),
            _Case("value_wider", 4, 2, 16, 40),
            _Case("window", 4, 2, 32, 32, window=5),
            _Case("window_1", 2, 1, 16, 16, window=1),
            _Case("chunk", 4, 2, 32, 32, chunk=4),
            _Case("softcap", 4, 2, 32, 32, softcap=2.5),
            _Case("sinks", 6, 3, 32, 32, sinks=True),
            _Case("all", 4, 2, 32, 24, window=6, softcap=3.0, sinks=True),
        ]
        for case in variants:
            for name in ("one_token", "ragged", "join_and_leave"):
                yield case.sample(name)
        yield dataclasses.replace(plain, name="long", sharp=3.0).sample("long", ({1: 150, 2: 3}, {1: 1, 2: 70}))
        yield dataclasses.replace(plain, name="long_window", window=40).sample("long", ({1: 150}, {1: 1}, {1: 3}))
        yield dataclasses.replace(plain, name="bidirectional", causal=False).sample("ragged")


@dataclasses.dataclass(frozen=True)
class _Case:
    name: str
    q_heads: int
    kv_heads: int
    width: int
    value_width: int
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    sinks: bool = False
    causal: bool = True
    sharp: float = 1.0  # larger: softmax closer to one-hot

    def sample(self, plan: str, steps: tuple[dict[int, int], ...] | None = None) -> Sample:
        made = []
        sinks = random(9, self.q_heads) if self.sinks else None
        for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
            tokens = batch.num_tokens
            operands = {
                "q": random(4 * i + 1, tokens, self.q_heads, self.width, scale=self.sharp),
                "k": random(4 * i + 2, tokens, self.kv_heads, self.width),
                "v": random(4 * i + 3, tokens, self.kv_heads, self.value_width),
                "sinks": sinks,
            }
            made.append(Step(batch, operands))
        attrs = {
            "scale": self.width**-0.5,
            "causal": self.causal,
            "window": self.window,
            "chunk": self.chunk,
            "softcap": self.softcap,
        }
        return Sample(f"{self.name}.{plan}", attrs, tuple(made))
