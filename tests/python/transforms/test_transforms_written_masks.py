"""Masks that a model makes itself: which attention they stand for, and what is no such mask."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from transform_graphs import capture, random_weights, run

from autodeploy.ops import OPS, Batch, Memory
from autodeploy.transforms import TransformError, run_pipeline

VOCAB, WIDTH, HEADS, HEAD = 16, 32, 4, 8


class Masked(nn.Module):
    """Attention under a mask made in one of several ways."""

    def __init__(self, style: str):
        super().__init__()
        self.style = style
        self.embed, self.qkv = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, 3 * HEADS * HEAD)
        self.head = nn.Linear(HEADS * HEAD, VOCAB)

    def forward(self, input_ids, position_ids):
        q, k, v = (
            t.view(1, -1, HEADS, HEAD).transpose(1, 2) for t in self.qkv(self.embed(input_ids)).chunk(3, dim=-1)
        )
        y = self.masked(q @ k.mT / HEAD**0.5).softmax(-1) @ v
        return self.head(y.transpose(1, 2).reshape(1, -1, HEADS * HEAD))

    def masked(self, scores):
        size = scores.shape[-1]
        places = torch.arange(size)
        match self.style:
            case "tril":
                return scores.masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(), -torch.inf)
            case "tril of numbers":
                return scores.masked_fill(torch.tril(torch.ones(size, size))[None, None] == 0, -1e9)
            case "triu":
                return scores.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf)
            case "triu of infinities":
                return scores + torch.full((size, size), -torch.inf, dtype=scores.dtype).triu(1)
            case "places":
                return scores.masked_fill(places[None, :] > places[:, None], -torch.inf)
            case "places of where":
                return torch.where(places[:, None] >= places, scores, -torch.inf)
            case "window of places":
                distance = places[:, None] - places[None, :]
                seen = (places[:, None] >= places[None, :]) & (distance < 4)
                return scores.masked_fill(~seen, -torch.inf)
            case "strictly before":
                return scores.masked_fill(torch.ones(size, size).triu(0).bool(), -1e9)
            case "the future":
                return scores.masked_fill(places[None, :] < places[:, None], -torch.inf)
            case "halved":
                return scores + torch.full((size, size), -0.7, dtype=scores.dtype).triu(1)
        raise ValueError(self.style)


@pytest.mark.parametrize(
    "style", ["tril", "tril of numbers", "triu", "triu of infinities", "places", "places of where", "window of places"]
)
def test_masks_of_a_models_own(style):
    ir = capture(Masked(style))
    weights = random_weights(ir)
    ids = torch.randint(0, VOCAB, (13,), generator=torch.Generator().manual_seed(2))
    expected = run(ir, weights, ids)
    run_pipeline(ir)
    (call,) = [n for n in ir.graph.nodes if "autodeploy.attention" in str(n.target)]
    found = OPS["attention"].bind(call.args, call.kwargs)
    assert (found["causal"], found["window"]) == (True, 4 if "window" in style else 0)
    memory, parts = Memory(), []
    for start, stop in ((0, 7), (7, 8), (8, 13)):
        batch = Batch.of([stop - start], past=[start])
        parts.append(run(ir, weights, ids[start:stop], batch.positions(), batch, memory))
    assert torch.allclose(torch.cat(parts), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("style", ["strictly before", "the future", "halved"])
def test_what_is_no_causal_mask(style):
    """Refused, or left to more general ops; never taken for causal attention."""
    ir = capture(Masked(style))
    with contextlib.suppress(TransformError):
        run_pipeline(ir)
    assert not [n for n in ir.graph.nodes if "autodeploy.attention" in str(n.target)]
