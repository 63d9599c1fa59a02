"""select_rows: the tokens whose logits are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, Step, random, register


@register
class SelectRows(Op):
    """x [T, H] -> [R, H]: rows `batch.rows`, in order. Not a mixer: each result row is one token's."""

    name = "select_rows"
    schema = "(Tensor x) -> Tensor"

    def fake(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty((torch.library.get_ctx().new_dynamic_size(), *x.shape[1:]))

    def reference(self, batch: Batch, states: Sequence[StateStore], x: torch.Tensor) -> torch.Tensor:
        return x[torch.tensor(batch.rows, dtype=torch.int64)]

    def samples(self) -> Iterator[Sample]:
        for i, rows in enumerate([(0,), (6,), (0, 1, 2, 3, 4, 5, 6), (2, 5), ()]):
            batch = Batch.of([3, 4], rows=rows)
            yield Sample("rows_" + "_".join(map(str, rows)), {}, (Step(batch, {"x": random(i, 7, 33)}),))
