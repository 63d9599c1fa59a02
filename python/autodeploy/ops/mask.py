"""mask: which tokens may look at which, as an opaque node that only captured graphs have.

It stands where a model would build a [T, T] tensor. Attention that reads nothing else takes its attributes over, and
the node disappears; nothing ever materialises it at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .attention import visible
from .base import Batch, Op, Sample, StateStore, Step, register


@register
class Mask(Op):
    """positions i64 [T], padding [T] or None -> bool [T, T]: token i (row) sees token j (column) as in `attention`.

    Only tokens of one sequence see each other. `positions` only carries T: sequences are known from the batch, and have
    no earlier tokens. `padding` is True (or not 0) where a key may be seen.
    """

    name = "mask"
    schema = "(Tensor positions, Tensor? padding, bool causal, int window=0, int chunk=0) -> Tensor"
    mixes_tokens = True
    in_program = False

    def fake(
        self,
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        causal: bool,
        window: int = 0,
        chunk: int = 0,
    ) -> torch.Tensor:
        return positions.new_empty((positions.shape[0], positions.shape[0]), dtype=torch.bool)

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        positions: torch.Tensor,
        padding: torch.Tensor | None,
        causal: bool,
        window: int,
        chunk: int,
    ) -> torch.Tensor:
        seen = torch.zeros(batch.num_tokens, batch.num_tokens, dtype=torch.bool)
        for seq in batch.sequences():
            if seq.past:
                raise ValueError("[mask] expected whole sequences, found one with earlier tokens")
            seen[seq.start : seq.stop, seq.start : seq.stop] = visible(0, seq.length, causal, window, chunk)
        return seen if padding is None else seen & (padding != 0)

    def samples(self) -> Iterator[Sample]:
        for name, attrs in {"causal": {}, "window": {"window": 3}, "chunk": {"chunk": 2}}.items():
            batch = Batch.of([5, 1, 4])
            full = {"causal": True, "window": 0, "chunk": 0, **attrs}
            yield Sample(name, full, (Step(batch, {"positions": batch.positions(), "padding": None}),))
