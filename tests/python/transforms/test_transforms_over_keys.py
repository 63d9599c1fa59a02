"""Code over the keys of a sequence that no canonical op says becomes `over_keys`; what looks ahead is refused."""

from __future__ import annotations

import pytest
import torch
from test_transforms_token_axis import LEAKS
from transform_graphs import capture_function, check, count, random_weights, run

from autodeploy.artifact import validate
from autodeploy.ir.over_keys import body_of
from autodeploy.lowering.lower import lower
from autodeploy.ops import Batch, Memory
from autodeploy.transforms import TransformError, run_pipeline
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.raise_over_keys import RaiseOverKeys
from autodeploy.transforms.token_major import TokenMajor

mask_op = torch.ops.autodeploy.mask.default
LOWEST = torch.finfo(torch.float32).min
WIDTH = 8


def _seen(pos):
    return mask_op(pos[0], None, True, 0)


def _attend(x, scores):
    return scores.softmax(-1) @ x


def _distance(x, pos, p):
    """A bias from content, by distance."""
    apart = (pos[:, :, None] - pos[:, None, :]).clamp(0, 3)
    bias = (x @ p["bias"]).gather(2, apart.expand(1, -1, -1))
    return _attend(x, (x @ x.mT + bias).masked_fill(~_seen(pos), LOWEST))


def _selected(x, pos, p):
    """The best three keys by one score, attended to by another."""
    index = (x @ p["index"]) @ x.mT
    index = index.masked_fill(~_seen(pos), float("-inf"))
    best = index.topk(min(3, x.shape[1]), -1)[1]
    kept = torch.zeros_like(index).scatter(-1, best, 1.0)
    return _attend(x, (x @ x.mT).masked_fill((kept == 0) | ~_seen(pos), LOWEST))


def _listed(x, pos, p):
    """An index list as a result of its own: the sum of the places of the best two keys that are there."""
    index = (x @ x.mT).masked_fill(pos[:, None, :] > pos[:, :, None], float("-inf"))
    best = index.topk(min(2, x.shape[1]), -1)[1]
    return x + torch.where(best <= pos[..., None], best, 0).sum(-1, keepdim=True)


def _blocks(x, pos, p):
    """Keys in blocks of four: a block's best score decides whether it is seen."""
    tokens = x.shape[1]
    blocks = (tokens + 3) // 4
    scores = (x @ x.mT).masked_fill(~_seen(pos), float("-inf"))
    padded = torch.nn.functional.pad(scores, (0, blocks * 4 - tokens), value=float("-inf"))
    best = padded.view(1, tokens, blocks, 4).amax(-1)
    kept = (best > 0.0).unsqueeze(-1).expand(-1, -1, -1, 4).reshape(1, tokens, blocks * 4)[..., :tokens]
    return _attend(x, scores.masked_fill(~kept, -1e4).masked_fill(~_seen(pos), LOWEST))


def _pooled(x, pos, p):
    """Whole blocks of four keys are pooled into one; a query sees those that ended before it, and its last keys."""
    tokens = x.shape[1]
    whole = tokens // 4
    keys = x[:, : whole * 4].view(1, whole, 4, WIDTH)
    keys = (keys * keys.softmax(2)).sum(2)
    ended = torch.arange(whole)[None, None] < (pos[..., None] + 1) // 4
    near = mask_op(pos[0], None, True, 3)
    scores = torch.cat([(x @ x.mT).masked_fill(~near, LOWEST), (x @ keys.mT).masked_fill(~ended, LOWEST)], -1)
    return _attend(torch.cat([x, keys], 1), scores)


def _gated(x, pos, p):
    """A score that each key has by itself, shared by all queries; heads of keys fewer than those of queries."""
    strength = torch.exp(x @ p["gate"]).mT
    scores = (x @ x.mT) + strength.expand(1, x.shape[1], -1)
    return _attend(x, scores.masked_fill(~_seen(pos), LOWEST))


KEPT = {
    "bias by distance": (_distance, {"bias": (WIDTH, 4)}),
    "selected keys": (_selected, {"index": (WIDTH, WIDTH)}),
    "an index list": (_listed, {}),
    "blocks of keys": (_blocks, {}),
    "pooled keys": (_pooled, {}),
    "gated keys": (_gated, {"gate": (WIDTH, 1)}),
}


def _captured(name):
    function, parameters = KEPT[name]
    ir = capture_function(function, **parameters)
    for transform in (CleanUp(), NormalForms(), CleanUp()):
        transform.run(ir)
    return ir


@pytest.mark.parametrize("name", KEPT)
def test_whole_sequences(name):
    ir = check(_captured(name), RaiseOverKeys(), TokenMajor(), CleanUp(), tokens=19)
    assert count(ir, "ir.over_keys.over_keys") or any(body_of(n) for n in ir.graph.nodes)


@pytest.mark.parametrize("name", KEPT)
def test_steps(name):
    """In chunks, by single tokens, and beside another sequence."""
    ir = _captured(name)
    weights = random_weights(ir)
    tokens = {1: torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]), 2: torch.tensor([7, 2, 7, 1])}
    alone = {slot: run(ir, weights, ids) for slot, ids in tokens.items()}
    run_pipeline(ir)
    memory, found = Memory(), {1: [], 2: []}
    for step in ({1: (0, 6)}, {1: (6, 7)}, {2: (0, 3), 1: (7, 12)}, {1: (12, 13), 2: (3, 4)}):
        batch = Batch.of([b - a for a, b in step.values()], [a for a, _ in step.values()], list(step))
        ids = torch.cat([tokens[slot][a:b] for slot, (a, b) in step.items()])
        logits = run(ir, weights, ids, batch.positions(), batch, memory)
        for seq, slot in zip(batch.sequences(), step, strict=True):
            found[slot].append(logits[seq.start : seq.stop])
    for slot, expected in alone.items():
        assert torch.allclose(torch.cat(found[slot]), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", KEPT)
def test_programs(name):
    ir = _captured(name)
    run_pipeline(ir)
    program = lower(ir)
    validate(program)
    assert program.bodies
    assert sum(i.op == "over_keys" for i in program.instructions) == len(program.bodies)


def _ahead(x, pos, p):
    return _attend(x, x @ x.mT)


def _one_ahead(x, pos, p):
    return _attend(x, (x @ x.mT).masked_fill(pos[:, None, :] > pos[:, :, None] + 1, LOWEST))


def _by_count(x, pos, p):
    scores = (x @ x.mT).masked_fill(~_seen(pos), 0.0)
    return x + scores.softmax(-1) @ x  # hidden keys count in the sum


REFUSED = {"everything": _ahead, "one token ahead": _one_ahead, "hidden keys that count": _by_count}


@pytest.mark.parametrize("name", REFUSED)
def test_looking_ahead_is_refused(name):
    ir = capture_function(REFUSED[name])
    with pytest.raises(TransformError, match=r"at \S+\.py:\d+") as caught:
        run_pipeline(ir)
    assert "later tokens" in str(caught.value) or "token axis" in str(caught.value)


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_stay_refused(name):
    ir = capture_function(LEAKS[name][0], w=(8, 8, 2))
    for transform in (CleanUp(), NormalForms()):
        transform.run(ir)

    def rest():
        RaiseOverKeys().run(ir)
        TokenMajor().run(ir)

    with pytest.raises(TransformError):
        rest()


def test_other_graphs_stay():
    ir = capture_function(lambda x, pos, p: x.softmax(-1))
    check(ir, RaiseOverKeys(), modified=False)


def test_keys_are_kept_small():
    """Heads that share a key are kept once."""

    def shared(x, pos, p):
        q = x.view(1, -1, 4, 2).transpose(1, 2)
        k = (x @ p["k"])[:, None].expand(-1, 4, -1, -1)
        bias = (pos[:, None, :, None] * 0.01).to(x.dtype)
        scores = (q @ k.mT + bias).masked_fill(~_seen(pos), LOWEST)
        return (scores.softmax(-1) @ k).transpose(1, 2).reshape(1, -1, 8)

    ir = capture_function(shared, k=(8, 2))
    run_pipeline(ir)
    (state,) = ir.states.values()
    assert sum(c.shape[-1] * len(c.shape) for c in state.components) <= 4
