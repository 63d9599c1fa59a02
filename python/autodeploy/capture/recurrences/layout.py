"""How a tensor of the model's code lies, beside the token-major form that canonical ops want."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import torch

TOKENS = -1  # stands for the number of tokens in a tuple of sizes


@dataclasses.dataclass(frozen=True)
class Layout:
    """`tokens`: the dim of tokens, or None; `dropped`: dims of size 1 that go; `joined`: the rest is one dim."""

    sizes: tuple[int, ...]
    tokens: int | None
    dropped: tuple[int, ...]
    joined: bool

    @property
    def rest(self) -> tuple[int, ...]:
        """Dims other than tokens that stay."""
        return tuple(d for d in range(len(self.sizes)) if d != self.tokens and d not in self.dropped)

    def to_canonical(self, x: torch.Tensor) -> torch.Tensor:
        """x with tokens first and only the dims that stay."""
        first = [] if self.tokens is None else [self.tokens]
        order = [*first, *self.rest, *self.dropped]
        if order != list(range(x.dim())):
            x = x.permute(order)
        kept = len(order) - len(self.dropped)
        if self.dropped:
            x = x.squeeze(tuple(range(kept, len(order))))
        start = len(first)
        return x.flatten(start) if self.joined and kept - start > 1 else x

    def from_canonical(self, x: torch.Tensor) -> torch.Tensor:
        """The way back."""
        start = 0 if self.tokens is None else 1
        if self.joined and len(self.rest) > 1:
            x = x.reshape(*x.shape[:start], *[self.sizes[d] for d in self.rest])
        for _ in self.dropped:
            x = x.unsqueeze(-1)
        order = [*([] if self.tokens is None else [self.tokens]), *self.rest, *self.dropped]
        back = sorted(range(len(order)), key=lambda i: order[i])
        return x if back == list(range(len(order))) else x.permute(back)


def layouts(sizes: Sequence[int], shape: str, dims: dict[str, int]) -> Iterator[tuple[Layout, dict[str, int]]]:
    """Ways in which a tensor of these sizes has `shape`, with the dims that each way gives names to."""
    names = shape.split()
    tokens = None
    if names[0] == "T":
        if list(sizes).count(TOKENS) != 1:
            return
        tokens, names = list(sizes).index(TOKENS), names[1:]
    elif TOKENS in sizes:
        return
    rest = [d for d in range(len(sizes)) if d != tokens]
    if names == ["C*"]:
        # The batch dim goes; what stays is one dim whatever it is made of.
        dropped = tuple(d for d in rest if sizes[d] == 1)[: max(0, len(rest) - 1)]
        layout = Layout(tuple(sizes), tokens, dropped, True)
        count = math.prod(sizes[d] for d in layout.rest)
        if dims.get("C*", count) == count:
            yield layout, {**dims, "C*": count}
        return
    ones = [d for d in rest if sizes[d] == 1]
    if len(rest) < len(names):
        return
    for dropped in itertools.combinations(ones, len(rest) - len(names)):
        layout = Layout(tuple(sizes), tokens, dropped, False)
        found = dict(dims)
        if all(found.setdefault(n, sizes[d]) == sizes[d] for n, d in zip(names, layout.rest, strict=True)):
            yield layout, found
