"""attention: softmax attention over each sequence's own keys (Vaswani et al. 2017, arXiv:1706.03762).

Grouped heads (arXiv:2305.13245), sliding windows (arXiv:2004.05150), logit soft capping (arXiv:2408.00118), sinks
(a learned logit per head, or per token and head, that takes part in the normalisation and has no value; gpt-oss model
card), slopes of a linear bias (ALiBi, arXiv:2108.12409), a bias by distance that every token brings along (after Shaw
et al. 2018, arXiv:1803.02155), and lists of the keys that a token may see (sparse attention; arXiv:2512.02556).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .base import (
    SCHEDULES,
    Batch,
    Op,
    Sample,
    SequenceSlice,
    StateComponent,
    StateDecl,
    StateStore,
    Step,
    random,
    register,
    schedule,
)


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
    weights = torch.where(seen.any(-1, keepdim=True), weights, 0.0)
    return torch.einsum("hnm,mhd->nhd", weights, v.float()[:, heads])


def distance_bias(
    past: int, keys: int, table: torch.Tensor | None, slopes: torch.Tensor | None, new: int
) -> torch.Tensor | None:
    """float [Hq, new, keys]: what is added to the scores of one sequence's new tokens; None when nothing is.

    table: [new, Hq, R], by distance; slopes: [Hq].
    """
    distance = torch.arange(past, past + new)[:, None] - torch.arange(keys)[None, :]
    bias = None if slopes is None else -slopes.float()[:, None, None] * distance
    if table is not None:
        by_head = table.float().transpose(0, 1)
        near = (distance >= 0) & (distance < table.shape[-1])
        place = distance.clamp(0, table.shape[-1] - 1).expand(by_head.shape[0], -1, -1)
        added = torch.gather(by_head, 2, place).masked_fill(~near, 0.0)
        bias = added if bias is None else bias + added
    return bias


def _listed(indices: torch.Tensor, keys: int, heads: int) -> torch.Tensor:
    """bool [Hq or 1, n, keys]: the keys of a list, [n, m] or [n, Hkv, m]."""
    lists = indices[:, None] if indices.dim() == 2 else indices
    place = torch.where((lists >= 0) & (lists < keys), lists, keys)
    seen = torch.zeros(*lists.shape[:2], keys + 1, dtype=torch.bool).scatter(2, place, True)[..., :keys]
    seen = seen.transpose(0, 1)
    return seen if indices.dim() == 2 else seen.repeat_interleave(heads // seen.shape[0], 0)


@register
class Attention(Op):
    """q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, Dv] -> [T, Hq, Dv]; in float32, rounded once.

    Query head h reads key head h // (Hq / Hkv). Query i of a sequence sees key j when j <= i (if `causal`),
    i - j < window (unless 0), i // chunk == j // chunk (unless 0), i and j counted from the sequence's start, and j is
    in its list (if there are `indices`).
    score = softcap * tanh(q.k * scale / softcap), or q.k * scale when softcap is 0; to this are added
    slopes[h] * (j - i) and, where 0 <= i - j < R, bias_table[i, h, i - j].

    sinks [Hq] or [T, Hq]; slopes [Hq]; bias_table [T, Hq, R]; indices i64 [T, n] or [T, Hkv, n]: positions of keys in
    the token's own sequence, in any order; those outside of it (-1) and those named before are passed over.
    k and v are both absent where the call reads the keys and values that an earlier call of the step has put into the
    same state. Not causal means that all keys of the sequence come in one step. A token that sees nothing gives zeros.
    """

    name = "attention"
    schema = (
        "(Tensor q, Tensor? k, Tensor? v, Tensor? sinks, Tensor? slopes, Tensor? bias_table, Tensor? indices, "
        "float scale, bool causal=True, int window=0, int chunk=0, float softcap=0.0) -> Tensor"
    )
    mixes_tokens = True
    fixed_operands = ("sinks", "slopes")
    stored_operands = ("k", "v")

    def fake(self, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None, *rest: Any) -> torch.Tensor:
        if v is None:
            raise ValueError("[attention] expected keys and values in a graph; only a Program shares states")
        return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))

    def is_fixed(self, name: str, x: torch.Tensor) -> bool:
        return super().is_fixed(name, x) and x.dim() == 1

    def state_decl(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        sinks: torch.Tensor | None,
        slopes: torch.Tensor | None,
        bias_table: torch.Tensor | None,
        indices: torch.Tensor | None,
        scale: float,
        causal: bool = True,
        window: int = 0,
        chunk: int = 0,
        softcap: float = 0.0,
    ) -> list[StateDecl]:
        if k is None or v is None:
            raise ValueError("[attention] expected keys and values where a state is declared, found none")
        key = StateComponent("k", (int(k.shape[1]), int(k.shape[2])), "act")
        value = StateComponent("v", (int(v.shape[1]), int(v.shape[2])), "act")
        return [StateDecl("paged", (key, value), window=window, chunk=chunk)]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        sinks: torch.Tensor | None,
        slopes: torch.Tensor | None,
        bias_table: torch.Tensor | None,
        indices: torch.Tensor | None,
        scale: float,
        causal: bool,
        window: int,
        chunk: int,
        softcap: float,
    ) -> torch.Tensor:
        self._check(q, k, v, sinks, slopes, bias_table, indices)
        out = None
        for seq in batch.sequences():
            rows = slice(seq.start, seq.stop)
            keys, values = self._keys_and_values(seq, states[0], k, v, causal)
            seen = visible(seq.past, seq.length, causal, window, chunk)
            if indices is not None:
                seen = seen & _listed(indices[rows], len(keys), q.shape[1])
            bias = distance_bias(
                seq.past, len(keys), None if bias_table is None else bias_table[rows], slopes, seq.length
            )
            sink = sinks[rows].T if sinks is not None and sinks.dim() == 2 else sinks
            result = attend(q[rows], keys, values, seen, scale, softcap, sink, bias).to(q.dtype)
            if out is None:
                out = q.new_empty(q.shape[0], *result.shape[1:])
            out[rows] = result
        assert out is not None
        return out

    @staticmethod
    def _check(
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        sinks: torch.Tensor | None,
        slopes: torch.Tensor | None,
        bias_table: torch.Tensor | None,
        indices: torch.Tensor | None,
    ) -> None:
        if (k is None) != (v is None):
            raise ValueError("[attention] expected keys and values, or neither of them")
        if k is not None and v is not None:
            if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1] or q.shape[2] != k.shape[2]:
                found = [tuple(x.shape) for x in (q, k, v)]
                raise ValueError(f"[attention] expected q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, Dv], found {found}")
        tokens, heads = q.shape[:2]
        legal = {
            "sinks": (sinks, sinks is None or tuple(sinks.shape) in ((heads,), (tokens, heads))),
            "slopes": (slopes, slopes is None or tuple(slopes.shape) == (heads,)),
            "bias_table": (bias_table, bias_table is None or tuple(bias_table.shape[:-1]) == (tokens, heads)),
            "indices": (indices, indices is None or (indices.dim() in (2, 3) and indices.shape[0] == tokens)),
        }
        for name, (x, ok) in legal.items():
            if not ok and x is not None:
                where = f"{tokens} tokens and {heads} heads"
                raise ValueError(f"[attention] expected {name} for {where}, found {tuple(x.shape)}")

    @staticmethod
    def _keys_and_values(
        seq: SequenceSlice, state: StateStore, k: torch.Tensor | None, v: torch.Tensor | None, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a sequence; this step's are put into the state, or are there already."""
        if k is None or v is None:
            there = state.written(seq)
            return there["k"], there["v"]
        keys, values = k[seq.start : seq.stop], v[seq.start : seq.stop]
        earlier = state.read(seq)
        if earlier is not None:
            if not causal:
                raise ValueError("[attention] expected all keys of a non-causal attention in one step")
            keys, values = torch.cat([earlier["k"], keys]), torch.cat([earlier["v"], values])
        state.write(seq, k=keys, v=values)
        return keys, values

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
            _Case("token_sinks", 6, 3, 32, 32, sinks="token"),
            _Case("slopes", 6, 3, 32, 32, slopes=True),
            _Case("slopes_all", 4, 2, 16, 24, window=7, softcap=2.0, sinks=True, slopes=True),
            _Case("table", 6, 2, 32, 32, reach=5),
            _Case("table_1", 2, 1, 16, 16, reach=1),
            _Case("table_all", 4, 2, 20, 12, window=9, softcap=2.0, sinks="token", slopes=True, reach=40),
            _Case("list", 6, 2, 32, 32, listed=4),
            _Case("list_1", 3, 3, 17, 9, listed=1),
            _Case("list_of_heads", 6, 3, 32, 16, listed=6, listed_by_head=True),
            _Case("list_all", 4, 2, 16, 24, window=9, softcap=2.0, sinks=True, slopes=True, reach=3, listed=7),
        ]
        for case in variants:
            for name in ("one_token", "ragged", "join_and_leave"):
                yield case.sample(name)
        yield dataclasses.replace(plain, name="long", sharp=3.0).sample("long", ({1: 150, 2: 3}, {1: 1, 2: 70}))
        yield dataclasses.replace(plain, name="long_biased", slopes=True, reach=70).sample(
            "long", ({1: 150, 2: 3}, {1: 1, 2: 70})
        )
        yield dataclasses.replace(plain, name="long_listed", listed=90).sample("long", ({1: 150, 2: 3}, {1: 1, 2: 70}))
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
    sinks: bool | str = False  # "token": of every token
    slopes: bool = False
    reach: int = 0  # distances of the bias table
    listed: int = 0  # keys in the list of a token
    listed_by_head: bool = False
    causal: bool = True
    sharp: float = 1.0  # larger: softmax closer to one-hot

    def sample(self, plan: str, steps: tuple[dict[int, int], ...] | None = None) -> Sample:
        made = []
        for i, batch in enumerate(schedule(*(steps or SCHEDULES[plan]))):
            tokens = batch.num_tokens
            operands = {
                "q": random(4 * i + 1, tokens, self.q_heads, self.width, scale=self.sharp),
                "k": random(4 * i + 2, tokens, self.kv_heads, self.width),
                "v": random(4 * i + 3, tokens, self.kv_heads, self.value_width),
                "sinks": random(9, self.q_heads) if self.sinks else None,
                "slopes": -random(8, self.q_heads).abs() if self.slopes else None,
                "bias_table": random(4 * i + 4, tokens, self.q_heads, self.reach) if self.reach else None,
                "indices": self._lists(i, batch) if self.listed else None,
            }
            if self.sinks == "token":
                operands["sinks"] = random(50 + i, tokens, self.q_heads)
            made.append(Step(batch, operands))
        attrs = {
            "scale": self.width**-0.5,
            "causal": self.causal,
            "window": self.window,
            "chunk": self.chunk,
            "softcap": self.softcap,
        }
        return Sample(f"{self.name}.{plan}", attrs, tuple(made))

    def _lists(self, step: int, batch: Batch) -> torch.Tensor:
        """Keys at or before each token, some named twice or not at all; each token has its own among them."""
        generator = torch.Generator().manual_seed(70 + step)
        heads = (self.kv_heads,) if self.listed_by_head else ()
        positions = batch.positions().view(-1, *(1 for _ in heads), 1)
        chosen = torch.rand(batch.num_tokens, *heads, self.listed, generator=generator) * (positions + 2)
        lists = chosen.long() - 1
        lists[..., 0] = positions[..., 0]
        return lists
