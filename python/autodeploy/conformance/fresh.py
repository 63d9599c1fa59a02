"""Generated cases: the same types with other sizes and seeds.

Sizes are drawn from the choices of the data file, by groups of configuration fields that must agree. Whether a type can
take a draw is for transformers to say: a case that it does not build is drawn again in its own process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .case import Case, load_facts, make_case

LABEL = "fresh"


def fresh_cases(names: Sequence[str], count: int, seed: int) -> list[Case]:
    """`count` cases, a function of the arguments and the data file: each type in turn, in an order of their own."""
    source = random.Random(f"cases {seed}")
    order = list(names)
    source.shuffle(order)
    cases = []
    for i in range(count):
        number = source.randrange(1, 1 << 20)
        cases.append(make_case(order[i % len(order)], number, sizes=draw_sizes(number, 0), label=LABEL))
    return cases


def draw_sizes(seed: int, attempt: int) -> dict[str, int]:
    """Sizes by field. Later attempts change fewer groups, the last ones none."""
    source = random.Random(f"sizes {seed} {attempt}")
    groups = load_facts()["sizes"]
    kept = max(0, len(groups) - 2 * attempt)
    sizes: dict[str, int] = {}
    for group in source.sample(groups, kept):
        choice = source.choice(group["choices"])
        for names, value in zip(group["fields"], choice, strict=True):
            sizes.update(dict.fromkeys(names.split(), value))
    return sizes
