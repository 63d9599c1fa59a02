"""Tensors of a checkpoint that nothing takes, in few words."""

from __future__ import annotations

import collections
from collections.abc import Sequence

_GROUPS = 8


def by_prefix(names: Sequence[str]) -> dict[str, int]:
    """Counts of names by their first parts: up to three of them, fewer where that makes too many groups."""
    counts: collections.Counter[str] = collections.Counter()
    for depth in (3, 2, 1):
        counts = collections.Counter(".".join(n.split(".")[:depth]) for n in names)
        if len(counts) <= _GROUPS:
            break
    return dict(counts)


def describe(names: Sequence[str]) -> str:
    """A line: how many, and of which parts."""
    counts = sorted(by_prefix(names).items(), key=lambda item: -item[1])
    shown = ", ".join(f"{prefix} {count}" for prefix, count in counts[:_GROUPS])
    more = f" and {len(counts) - _GROUPS} more" if len(counts) > _GROUPS else ""
    return f"{len(names)} tensors of the checkpoint are not used: {shown}{more}"
