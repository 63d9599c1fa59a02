"""window: for every token, what stood at some distances before it in its own sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import SCHEDULES, Batch, Op, Sample, StateComponent, StateDecl, StateStore, Step, random, register, schedule

_STATE_DTYPES = {torch.bfloat16: "act", torch.float32: "f32", torch.int64: "i64", torch.bool: "bool"}


@register
class Window(Op):
    """x [T, C] of any dtype, fill [C] or None -> [T, K, C], one row for each of the K distances in `back`.

    out[t, j] = x[t - back[j]], counted within the sequence; before its first token stands `fill` (None: zeros). A delay
    by one token is back = [1]; a window over K tokens, oldest first, is back = [K - 1, ..., 0]. Distances may come in
    any order, and more than once; the largest is at least 1.
    The state holds the last max(back) rows [max(back), C], oldest first.
    """

    name = "window"
    schema = "(Tensor x, Tensor? fill, int[] back) -> Tensor"
    mixes_tokens = True
    fixed_operands = ("fill",)

    def fake(self, x: torch.Tensor, fill: torch.Tensor | None, back: Sequence[int]) -> torch.Tensor:
        if not back or any(b < 0 for b in back) or not max(back):
            raise ValueError(f"[window] expected distances >= 0, one above 0, found {list(back)}")
        if x.dim() != 2 or (fill is not None and (fill.shape != x.shape[1:] or fill.dtype != x.dtype)):
            found = f"{x.dtype} {list(x.shape)}" + ("" if fill is None else f" and {fill.dtype} {list(fill.shape)}")
            raise ValueError(f"[window] expected x [T, C] and a fill [C] of its dtype, found {found}")
        return x.new_empty((x.shape[0], len(back), x.shape[1]))

    def state_decl(self, x: torch.Tensor, fill: torch.Tensor | None, back: Sequence[int]) -> list[StateDecl]:
        return [StateDecl("conv", (StateComponent("x", (max(back), int(x.shape[1])), _STATE_DTYPES[x.dtype]),))]

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        fill: torch.Tensor | None,
        back: Sequence[int],
    ) -> torch.Tensor:
        out = self.fake(x, fill, back)
        reach = max(back)
        for seq in batch.sequences():
            earlier = states[0].read(seq)
            if earlier is not None:
                history = earlier["x"]
            else:
                history = (x.new_zeros(x.shape[1]) if fill is None else fill).expand(reach, -1)
            line = torch.cat([history, x[seq.start : seq.stop]])
            for j, distance in enumerate(back):
                out[seq.start : seq.stop, j] = line[reach - distance : reach - distance + seq.length]
            states[0].write(seq, x=line[seq.length :])
        return out

    def samples(self) -> Iterator[Sample]:
        for plan in SCHEDULES:
            yield _sample("shift", plan, 24, [1], torch.float32, False)
            yield _sample("ids", plan, 1, [0, 1, 2], torch.int64, True)
        for plan in ("one_token", "ragged", "join_and_leave"):
            yield _sample("k4", plan, 15, [3, 2, 1, 0], torch.float32, False)
            yield _sample("dilated", plan, 1025, [9, 6, 3, 0], torch.float32, True)
            yield _sample("newest_first", plan, 7, [0, 1, 2, 2], torch.float32, True)
            yield _sample("flags", plan, 3, [2, 1], torch.bool, True)


def _values(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype == torch.float32:
        return random(seed, *shape)
    numbers = (random(seed, *shape) * 2.0**40).to(torch.int64)
    return numbers if dtype == torch.int64 else numbers > 0


def _sample(name: str, plan: str, width: int, back: list[int], dtype: torch.dtype, has_fill: bool) -> Sample:
    fill = _values(1, dtype, width) if has_fill else None
    steps = [
        Step(batch, {"x": _values(2 + i, dtype, batch.num_tokens, width), "fill": fill})
        for i, batch in enumerate(schedule(*SCHEDULES[plan]))
    ]
    return Sample(f"{name}.{plan}", {"back": back}, tuple(steps))
