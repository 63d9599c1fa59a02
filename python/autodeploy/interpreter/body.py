"""The meaning of `over_keys`: a body, run for each sequence over its new tokens and all of its keys so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autodeploy.artifact.dims import parse_dim
from autodeploy.artifact.program import Body, Region
from autodeploy.ops import OPS, Batch, StateStore

from .frame import Frame

Tensor = torch.Tensor


def over_keys(
    body: Body,
    regions: Sequence[Region],
    dtypes: dict[str, torch.dtype],
    batch: Batch,
    states: Sequence[StateStore],
    operands: Sequence[Tensor | None],
    tile: int = 0,
) -> list[Tensor]:
    """Results [T, ...] of an `over_keys` instruction.

    Args:
        operands: one per body input: the step's rows of queries and keys, and the fixed tensors.
        states: the paged state of the key inputs, or none.
        tile: queries that are looked at together, 0 for all of a sequence's; any choice gives the same results up to
            rounding.
    """
    results: list[list[Tensor]] = [[] for _ in body.outputs]
    keys = [i for i, given in enumerate(body.inputs) if given.role == "key"]
    for seq in batch.sequences():
        cached: dict[int, Tensor] = {}
        if keys:
            names = [c.name for c in states[0].decl.components]
            past = states[0].read(seq)
            for i, name in zip(keys, names, strict=True):
                rows = operands[i][seq.start : seq.stop].to(dtypes[body.inputs[i].dtype])
                cached[i] = rows if past is None else torch.cat([past[name], rows])
            states[0].write(seq, **{name: cached[i] for i, name in zip(keys, names, strict=True)})
        step = tile or seq.length
        for start in range(seq.start, seq.stop, step):
            stop = min(start + step, seq.stop)
            length = seq.past + stop - seq.start
            inputs = _tile(body, operands, cached, start, stop, length)
            outputs = run_body(body, regions, dtypes, inputs, stop - start, key_blocks(body, length))
            for made, rows in zip(results, outputs, strict=True):
                made.append(rows)
    return [torch.cat(made) for made in results]


def key_blocks(body: Body, length: int) -> int:
    """S for a tile whose last query is token number `length` of its sequence."""
    return max(-(-length // body.block), -(-body.min_keys // body.block))


def run_body(
    body: Body,
    regions: Sequence[Region],
    dtypes: dict[str, torch.dtype],
    inputs: Sequence[Tensor],
    queries: int,
    blocks: int,
) -> list[Tensor]:
    """Outputs of a body for inputs of N = `queries` and S = `blocks`."""
    frame = Frame(body.values, regions, (), dtypes, (queries, blocks))
    for i, tensor in enumerate(inputs):
        frame.put(i, tensor, "input of a body")
    nobody = Batch.of([max(1, queries)])  # the ops of a body do not look at who is scheduled
    for instruction in body.instructions:
        results = frame.run_generic(instruction)
        if results is None:
            operands = [frame.operand(o) for o in instruction.inputs]
            results = OPS[instruction.op].run(nobody, (), operands, instruction.attrs)
        for index, result in zip(instruction.outputs, results, strict=True):
            frame.put(index, result, f"{instruction.op} at {instruction.source}")
    return [frame.tensors[v] for v in body.outputs]


def _tile(
    body: Body, operands: Sequence[Tensor | None], cached: dict[int, Tensor], start: int, stop: int, length: int
) -> list[Tensor]:
    """A body's inputs for the step's tokens [start, stop), which see the first `length` tokens of their sequence."""
    rows = key_blocks(body, length) * body.block
    inputs = []
    for i, given in enumerate(body.inputs):
        x = operands[i]
        assert x is not None
        if given.role == "query":
            each = parse_dim(given.shape[0])[0]
            inputs.append(x[start * each : stop * each])
        elif given.role == "key":
            seen = cached[i][:length]
            inputs.append(torch.cat([seen, seen.new_zeros((rows - length, *seen.shape[1:]))]))
        else:
            inputs.append(x)
    return inputs
