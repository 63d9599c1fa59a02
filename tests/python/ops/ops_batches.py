"""Random ways to feed the same sequences to an op, for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from autodeploy.ops import Batch, Op


@st.composite
def lengths_and_steps(draw, max_sequences: int = 3, max_length: int = 12) -> tuple[list[int], list[dict[int, int]]]:
    """Lengths of sequences (slots 1, 2, ...), and steps that bring each there in chunks; sequences join at any step."""
    lengths = draw(st.lists(st.integers(1, max_length), min_size=1, max_size=max_sequences))
    left = dict(enumerate(lengths, 1))
    joined: set[int] = set()
    steps: list[dict[int, int]] = []
    while any(left.values()):
        step = {}
        for slot, n in left.items():
            if n == 0:
                continue
            if slot not in joined and joined and not draw(st.booleans()):
                continue
            joined.add(slot)
            step[slot] = draw(st.integers(1, n))
            left[slot] -= step[slot]
        steps.append(dict(sorted(step.items(), key=lambda item: item[1] != 1)) if step else {})
        if not step:
            steps.pop()
    return lengths, steps


def run_in_steps(op: Op, sequences: dict[int, dict[str, torch.Tensor]], fixed: dict, attrs: dict, batches: list[Batch]):
    """Each sequence's results, from running the op over `batches` with states kept; token operands by slot."""
    states = None
    parts: dict[int, list[torch.Tensor]] = {slot: [] for slot in sequences}
    for batch in batches:
        slices = list(batch.sequences())
        operands = []
        for name in op.operands:
            if name in fixed:
                operands.append(fixed[name])
            else:
                rows = [sequences[s.slot][name][s.past : s.past + s.length] for s in slices]
                operands.append(torch.cat(rows))
        states = states or op.make_states(*operands, *(attrs[a] for a in op.attributes))
        (out,) = op.run(batch, states, operands, attrs)
        for s in slices:
            parts[s.slot].append(out[s.start : s.stop])
    return {slot: torch.cat(rows) for slot, rows in parts.items()}
