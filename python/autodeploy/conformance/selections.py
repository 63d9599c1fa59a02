"""Ties in what a model selects: where two experts or two keys score the same, either choice is right.

A router or an index that picks the k best of some scores is discontinuous: where the last one taken and the first one
left are closer than rounding, another order of additions takes the other, and everything that follows differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autodeploy.testing.tolerances import TIE_TOLERANCE
from autodeploy.verify.stable_topk import StableTopk

_TOPK = {torch.topk, torch.Tensor.topk}
_BEST = {torch.argmax, torch.Tensor.argmax, torch.max, torch.Tensor.max}


class _Selections(TorchFunctionMode):
    """Notes at which positions a selection is a tie; `length` is the number of tokens of the pass."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.positions: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _TOPK:
            named = dict(zip(("k", "dim"), args[1:], strict=False)) | kwargs
            self._look(args[0], named["k"], named.get("dim", -1))
        elif func in _BEST and (len(args) > 1 or "dim" in kwargs):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            if isinstance(dim, int):
                self._look(args[0], 1, dim)
        return func(*args, **kwargs)

    def _look(self, scores: torch.Tensor, k: int, dim: int) -> None:
        if not scores.dtype.is_floating_point or scores.dim() < 2 or not 0 < k < scores.shape[dim]:
            return
        rows = scores.detach().float().movedim(dim, -1)
        best = rows.topk(k + 1).values
        largest = rows.masked_fill(rows < torch.finfo(scores.dtype).min / 2, 0).abs().amax(-1)
        gap = best[..., k - 1] - best[..., k]
        # What is masked scores minus infinity, or the lowest number of its type.
        tied = (gap <= TIE_TOLERANCE * largest) & (best[..., k] > torch.finfo(scores.dtype).min / 2)
        axis = next((i for i, n in enumerate(tied.shape) if n == self.length), None)
        if tied.any():
            if axis is None:
                self.positions.add(0)  # which token it is cannot be told
            else:
                self.positions |= set(tied.nonzero()[:, axis].tolist())


@torch.no_grad()
def first_tie(model: torch.nn.Module, tokens: Sequence[int]) -> int | None:
    """The first position at which a selection within `model` is a tie; None where there is none."""
    with StableTopk(), _Selections(len(tokens)) as found:
        model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    return min(found.positions, default=None)
