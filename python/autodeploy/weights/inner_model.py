"""A language model within a larger checkpoint: which of its tensors are the text's, by their names.

A checkpoint of a model for pictures or sounds and text holds the text model's tensors under a prefix of their own:
`language_model.model.layers.0...` or `model.language_model.layers.0...` where the text model alone says
`model.layers.0...`.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable


def inner_names(names: Iterable[str], wanted: Collection[str], base: str, embedding: str) -> dict[str, str]:
    """Name in the checkpoint -> name in the text model; nothing where the text's prefix cannot be told.

    wanted: names of the text model's tensors. base: its prefix of all but the head ("model"). embedding: the wanted
    name of the input embedding, by which the text's prefix is told from those of other towers.
    """
    names = set(names)
    start = f"{base}."
    tails = {n.removeprefix(start) for n in wanted if n.startswith(start)}
    key = embedding.removeprefix(start)
    counts: collections.Counter[str] = collections.Counter()
    heads = {n[: -len(key)] for n in names if n.endswith(f".{key}") or n == key}
    for head in heads:
        counts[head] = sum(head + tail in names for tail in tails)
    ranked = counts.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return {}
    head = ranked[0][0]
    found = {n: start + n.removeprefix(head) for n in names if n.startswith(head)}
    for outer in (n for n in wanted if not n.startswith(start)):
        fits = [n for n in names if n == outer or (n.endswith(f".{outer}") and head.startswith(n[: -len(outer)]))]
        if fits:
            found[max(fits, key=len)] = outer
    return found
