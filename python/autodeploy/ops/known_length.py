"""known_length: how long the sequence of each token was known to be when the token was computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateStore, Step, register, schedule


@register
class KnownLength(Op):
    """at i64 [T], positions of the tokens -> i64 [T]: max(length of the sequence's prompt, at + 1).

    A model that looks at the length of its input sees the whole prompt at first, and one token more in each step after
    it. However a prompt is cut into steps, its tokens see the length of all of it: it is the batch's `prompt_len`.
    """

    name = "known_length"
    schema = "(Tensor at) -> Tensor"
    mixes_tokens = True

    def fake(self, at: torch.Tensor) -> torch.Tensor:
        return at.new_empty((at.shape[0],), dtype=torch.int64)

    def reference(self, batch: Batch, states: Sequence[StateStore], at: torch.Tensor) -> torch.Tensor:
        lengths = [batch.prompt_len[i] for i, s in enumerate(batch.sequences()) for _ in range(s.length)]
        return torch.maximum(torch.tensor(lengths, dtype=torch.int64), at + 1)

    def samples(self) -> Iterator[Sample]:
        for name, steps in SCHEDULES.items():
            batches = schedule(*steps)
            yield Sample(name, {}, tuple(Step(b, {"at": b.positions()}) for b in batches))
        cut = [Batch.of([n], [past], prompt_len=[5]) for n, past in ((3, 0), (2, 3), (1, 5))]
        yield Sample("longer_prompts", {}, tuple(Step(b, {"at": b.positions()}) for b in cut))
