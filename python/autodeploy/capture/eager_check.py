"""Runs a captured graph eagerly with real weights, and compares it with the model that it was captured from.

The canonical ops run as their references, which know where sequences begin and end and keep states from step to step;
nothing else in the graph does. So joining sequences, cutting them, and decoding token by token shows whether the graph
is right, before a single kernel exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autodeploy.ir import ModelIR, Segment
from autodeploy.ir.retype import retyped
from autodeploy.ops import Batch, Memory, running, schedule
from autodeploy.testing.compare import first_difference
from autodeploy.testing.tolerances import LOGITS_TOLERANCE


class EagerGraph:
    """The captured graph as a function, with weights by the model's parameter names, in `dtype`."""

    def __init__(self, ir: ModelIR, weights: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32):
        self.module = retyped(ir, dtype)
        self.fixed: dict[str, torch.Tensor] = {}
        for key, info in ir.params.items():
            value = _evaluate(info.segments, weights)
            self.fixed[key] = value.to(dtype) if info.dtype == "act" else value
        for key, constant in ir.constants.items():
            self.fixed[key] = constant.value.to(dtype) if constant.dtype == "act" else constant.value
        self.names = [str(n.target) for n in self.module.graph.nodes if n.op == "placeholder"]

    def __call__(self, token_ids: torch.Tensor, batch: Batch, memory: Memory | None = None) -> torch.Tensor:
        """Logits [T, V] of one step; tokens of `batch`'s sequences joined."""
        feed = {"token_ids": token_ids, "positions": batch.positions(), **self.fixed}
        with running(batch, memory), torch.no_grad():
            return self.module(*[feed[name] for name in self.names])[0]


def _evaluate(segments: Sequence[Segment], weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A captured parameter: one of the model's, or rows of some, joined."""

    def value(expr: dict[str, Any]) -> torch.Tensor:
        return weights[expr["name"]] if expr["op"] == "tensor" else value(expr["x"]).reshape(expr["shape"])

    parts = [value(s.expr) for s in segments]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def eager_check(
    ir: ModelIR, model: torch.nn.Module, lengths: Sequence[int] = (1, 2, 7, 33), decode: bool = True
) -> list[str]:
    """Differences between the graph and `model` (float32, on the CPU, of the same configuration); none is right.

    Sequences of `lengths` run alone, all of them joined in one step, and (`decode`) cut into steps that they join and
    leave.
    """
    graph = EagerGraph(ir, {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())})
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(7)
    prefix = torch.tensor(ir.metadata.get("prefix_tokens", []), dtype=torch.int64)
    tokens = [torch.randint(3, vocabulary, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        expected = [model(input_ids=t[None], use_cache=False).logits[0] for t in tokens]
    tokens = [torch.cat([prefix, t]) for t in tokens]
    lengths = [len(t) for t in tokens]
    expected = [torch.cat([e.new_full((len(prefix), e.shape[1]), torch.nan), e]) for e in expected]
    wrong: list[str] = []

    def compare(what: str, found: torch.Tensor, reference: torch.Tensor) -> None:
        asked = ~reference.isnan().any(-1)  # nobody asks for the logits of a prefix
        difference = first_difference(found[asked].numpy(), reference[asked].numpy(), LOGITS_TOLERANCE)
        if difference is not None:
            wrong.append(f"{what}: {difference}")

    for ids, reference in zip(tokens, expected, strict=True):
        compare(f"{len(ids)} tokens alone", graph(ids, Batch.of([len(ids)])), reference)
    joined = Batch.of(list(lengths))
    logits = graph(torch.cat(tokens), joined)
    for seq, reference in zip(joined.sequences(), expected, strict=True):
        compare(f"{seq.length} tokens joined with others", logits[seq.start : seq.stop], reference)
    if decode:
        memory, done = Memory(), dict.fromkeys(range(len(tokens)), 0)
        for batch in schedule(*steps_of(lengths)):
            parts = [tokens[s.slot - 1][s.past : s.past + s.length] for s in batch.sequences()]
            logits = graph(torch.cat(parts), batch, memory)
            for seq in batch.sequences():
                reference = expected[seq.slot - 1][seq.past : seq.past + seq.length]
                compare(f"tokens {seq.past}+{seq.length} in steps", logits[seq.start : seq.stop], reference)
                done[seq.slot - 1] += seq.length
        assert list(done.values()) == list(lengths)
    return wrong


def steps_of(lengths: Sequence[int]) -> list[dict[int, int]]:
    """Steps that bring each sequence (slots 1, 2, ...) to its length: chunks of odd sizes, then single tokens.

    Sequence i joins at step i; sequences with one token in a step come first.
    """
    left = dict(enumerate(lengths, 1))
    steps: list[dict[int, int]] = []
    while any(left.values()):
        step = {}
        for slot, n in left.items():
            if n and slot <= len(steps) + 1:
                chunk = (5, 3, 11)[(slot + len(steps)) % 3]
                step[slot] = min(n, chunk) if n > 4 else 1
        for slot, n in step.items():
            left[slot] -= n
        steps.append(dict(sorted(step.items(), key=lambda item: item[1] != 1)))
    return steps
