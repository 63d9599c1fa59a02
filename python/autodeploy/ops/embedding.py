"""embedding: rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register


@register
class Embedding(Op):
    """ids i64 [M], weight [V, H] -> [M, H]. Ids lie in [0, V)."""

    name = "embedding"
    schema = "(Tensor ids, Tensor weight) -> Tensor"
    weight_operands = ("weight",)
    fixed_operands = ("weight",)

    def fake(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.new_empty((*ids.shape, weight.shape[1]))

    def reference(
        self, batch: Batch, states: Sequence[StateStore], ids: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return weight[ids]

    def samples(self) -> Iterator[Sample]:
        for i, (tokens, vocab, width) in enumerate([(1, 2, 32), (5, 11, 64), (9, 257, 96)]):
            ids = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(i))
            yield Sample.one(f"{tokens}_of_{vocab}x{width}", {"ids": ids, "weight": random(i, vocab, width)})
        ends = torch.tensor([0, 10, 0, 10])
        yield Sample.one("first_and_last", {"ids": ends, "weight": random(5, 11, 32)})
        yield Sample.one("odd_width", {"ids": torch.tensor([[3, 1]]), "weight": random(6, 5, 7)})
