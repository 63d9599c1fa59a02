"""Attention written out in a model's code, and positions that it counts itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transform_graphs import capture, check, count, random_weights, run

from autodeploy.ops import Batch, Memory
from autodeploy.transforms import TransformError, run_pipeline
from autodeploy.transforms.clean_up import CleanUp
from autodeploy.transforms.cut_tables import CutTables
from autodeploy.transforms.name_attention import NameAttention
from autodeploy.transforms.normal_forms import NormalForms
from autodeploy.transforms.raise_attention import RaiseAttention
from autodeploy.transforms.raise_masked_attention import RaiseMaskedAttention
from autodeploy.transforms.token_positions import TokenPositions

mask_op = torch.ops.autodeploy.mask.default
VOCAB, WIDTH, HEADS, HEAD = 16, 32, 4, 8
LOWEST = torch.finfo(torch.float32).min


class Written(nn.Module):
    """Attention in plain arithmetic; `style` is how masks and scale are written."""

    def __init__(self, style: str, kv_heads: int = HEADS, window: int = 0):
        super().__init__()
        self.style, self.kv_heads, self.window = style, kv_heads, window
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * kv_heads) * HEAD)
        self.head = nn.Linear(HEADS * HEAD, VOCAB)
        triangle = torch.ones(64, 64, dtype=torch.bool).tril()
        if window:
            triangle = triangle ^ torch.ones(64, 64, dtype=torch.bool).tril(-window)
        self.register_buffer("triangle", triangle[None, None])

    def forward(self, input_ids, position_ids):
        x = self.embed(input_ids)
        sizes = [HEADS * HEAD, self.kv_heads * HEAD, self.kv_heads * HEAD]
        q, k, v = (t.view(1, -1, t.shape[-1] // HEAD, HEAD).transpose(1, 2) for t in self.qkv(x).split(sizes, -1))
        p = self.probabilities(q, k, position_ids)
        y = (p.to(v.dtype) @ v).transpose(1, 2).reshape(1, -1, HEADS * HEAD)
        return self.head(y)

    def probabilities(self, q, k, position_ids):
        tokens = q.shape[2]
        seen = mask_op(position_ids[0], None, True, self.window)[None, None]
        added = torch.where(seen, 0.0, LOWEST).to(q.dtype)
        match self.style:
            case "added":
                return (q @ k.transpose(2, 3) * HEAD**-0.5 + added).softmax(-1)
            case "added, then divided":
                return ((q.float() @ k.float().transpose(2, 3) + added) / HEAD**0.5).softmax(-1)
            case "where":
                scores = (q / HEAD**0.5) @ k.mT
                return torch.where(seen, scores, torch.full([], LOWEST, dtype=q.dtype)).float().softmax(-1)
            case "masked_fill":
                return (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1)
            case "constant triangle":
                scores = (q @ k.mT) * 0.3
                return torch.where(self.triangle[:, :, :tokens, :tokens], scores, LOWEST).softmax(-1)
            case "baddbmm":
                flat = torch.baddbmm(
                    q.new_zeros(HEADS, tokens, tokens), q.reshape(HEADS, -1, HEAD), k.reshape(HEADS, -1, HEAD).mT,
                    beta=1.0, alpha=0.25,
                )  # fmt: skip
                return torch.max(flat.view(1, HEADS, tokens, -1) + added, torch.tensor(LOWEST)).softmax(-1)
            case "softcap":
                scores = torch.tanh(q @ k.mT * 0.25 / 3.0) * 3.0
                return nn.functional.softmax(scores + added, dim=-1, dtype=torch.float32)
            case "bias":
                distance = position_ids[:, None, None, :] - position_ids[:, None, :, None]
                return (q @ k.mT + added + distance * 0.1).softmax(-1)
            case "slopes of places":
                slopes = 2.0 ** -torch.arange(1, HEADS + 1).float()
                alibi = slopes[:, None, None] * torch.arange(1 - tokens, 1)
                alibi = alibi.to(q.dtype)
                return (torch.baddbmm(alibi, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=0.3)[None] + added).softmax(-1)
            case "slopes of counts":
                ones = torch.ones(1, tokens, dtype=torch.long)
                counts = ((ones.cumsum(-1) - 1) * ones)[:, None, :]
                alibi = torch.arange(1, HEADS + 1).to(q.dtype)[:, None] * counts
                alibi = alibi.reshape(1, HEADS, 1, -1)
                masked = torch.masked_fill(alibi / 4, added < -1, LOWEST)
                return (q @ k.mT * 0.5 + masked).softmax(-1)
            case "slopes, then divided":
                alibi = torch.linspace(0.1, 0.4, HEADS)[None, :, None, None] * (position_ids - tokens)[:, None, None, :]
                return ((q @ k.mT + alibi) * 0.25 + added).softmax(-1)
            case "triangle of ones":
                hidden = torch.triu(torch.ones(tokens, tokens), diagonal=1).bool()
                return (q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1)
            case "added triangle":
                return (q @ k.mT + torch.triu(torch.full((tokens, tokens), -torch.inf), 1)).softmax(-1)
            case "lower triangle":
                return (q @ k.mT).masked_fill(torch.tril(torch.ones(tokens, tokens)) == 0, LOWEST).softmax(-1)
            case "compared places":
                seen = position_ids[0][None, :] <= position_ids[0][:, None]
                return torch.where(seen, q @ k.mT, LOWEST).softmax(-1)
            case "multiplied":
                seen = self.triangle[:, :, :tokens, :tokens].to(q.dtype)
                return ((q @ k.mT) * seen + -1e4 * (1 - seen)).softmax(-1)
            case "curved bias":
                distance = position_ids[:, None, None, :] - position_ids[:, None, :, None]
                return (q @ k.mT + added + distance * distance).softmax(-1)
            case "slopes without mask":
                return (q @ k.mT + 0.1 * position_ids[:, None, None, :]).softmax(-1)
            case "table of distances":
                distance = position_ids[0][:, None] - torch.arange(tokens)
                table = q[..., :5] * 2.0
                near = distance.clamp(0, 4).expand(1, HEADS, -1, -1)
                bias = table.gather(-1, near).masked_fill((distance < 0) | (distance >= 5), 0.0)
                return (q @ k.mT * 0.3 + bias * (1 + position_ids[:, None, :, None] * 0.1) + added).softmax(-1)
            case "unmasked":
                return (q @ k.mT).softmax(-1)
        raise ValueError(self.style)


STYLES = ["added", "added, then divided", "where", "masked_fill", "constant triangle", "baddbmm", "softcap",
          "triangle of ones", "added triangle", "lower triangle", "compared places", "multiplied"]  # fmt: skip
SLOPES = ["bias", "slopes of places", "slopes of counts", "slopes, then divided"]


@pytest.mark.parametrize("style", STYLES)
def test_written_out(style):
    ir = capture(Written(style), longest=64)
    for transform in (CleanUp(), NormalForms(), CleanUp()):
        transform.run(ir)
    check(ir, RaiseAttention())
    (call,) = [n for n in ir.graph.nodes if "autodeploy.attention" in str(n.target)]
    causal, window, _chunk, softcap = call.args[8:]
    assert (causal, window, softcap) == (True, 0, 3.0 if style == "softcap" else 0.0)
    assert count(ir, "aten.softmax") == count(ir, "autodeploy.mask") == 0


@pytest.mark.parametrize(("style", "kv_heads", "window"), [("added", 1, 5), ("constant triangle", HEADS, 4)])
def test_windows_and_shared_heads_in_steps(style, kv_heads, window):
    """What was written for whole sequences runs in chunks and decodes."""
    ir = capture(Written(style, kv_heads, window), longest=64)
    weights = random_weights(ir)
    ids = torch.randint(0, VOCAB, (13,), generator=torch.Generator().manual_seed(2))
    expected = run(ir, weights, ids)
    run_pipeline(ir)
    (call,) = [n for n in ir.graph.nodes if "autodeploy.attention" in str(n.target)]
    assert call.args[9] == window
    assert ir.states["attention.0"].components[0].shape == (kv_heads, HEAD)
    memory, found = Memory(), []
    for start, stop in ((0, 7), (7, 8), (8, 13)):
        batch = Batch.of([stop - start], past=[start])
        found.append(run(ir, weights, ids[start:stop], batch.positions(), batch, memory))
    assert torch.allclose(torch.cat(found), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("style", ["unmasked", "slopes without mask"])
def test_what_no_mask_hides_is_refused(style):
    with pytest.raises(TransformError, match="later tokens"):
        run_pipeline(capture(Written(style), longest=64))


def test_what_no_attention_op_says_is_over_keys():
    ir = capture(Written("curved bias"), longest=64)
    run_pipeline(ir)
    assert count(ir, "autodeploy.attention") == 0
    assert list(ir.states) == ["over_keys.0"]


@pytest.mark.parametrize("style", [*SLOPES, "table of distances"])
def test_a_bias_by_distance_is_an_operand(style):
    """Softmax takes away what is the same for all keys, so of slopes only the growth counts; it also runs in steps."""
    ir = capture(Written(style), longest=64)
    for transform in (CleanUp(), NormalForms(), TokenPositions(), CleanUp()):
        transform.run(ir)
    check(ir, RaiseAttention())
    (call,) = [n for n in ir.graph.nodes if "autodeploy.attention" in str(n.target)]
    slopes, table = call.args[4:6]
    if style in SLOPES:
        assert tuple(slopes.meta["val"].shape) == (HEADS,)
        assert table is None
    else:
        assert slopes is None
        assert tuple(table.meta["val"].shape)[1:] == (HEADS, 5)
    ir = capture(Written(style), longest=64)
    weights = random_weights(ir)
    ids = torch.randint(0, VOCAB, (13,), generator=torch.Generator().manual_seed(2))
    expected = run(ir, weights, ids)
    run_pipeline(ir)
    memory, found = Memory(), []
    for start, stop in ((0, 7), (7, 8), (8, 13)):
        batch = Batch.of([stop - start], past=[start])
        found.append(run(ir, weights, ids[start:stop], batch.positions(), batch, memory))
    assert torch.allclose(torch.cat(found), expected, atol=1e-4 * float(expected.abs().max()))


class _Named(nn.Module):
    """Attention by PyTorch's own function, with a mask of its own or none."""

    def __init__(self, own_mask: bool):
        super().__init__()
        self.own_mask = own_mask
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD)
        self.head = nn.Linear(HEADS * HEAD, VOCAB)

    def forward(self, input_ids, position_ids):
        q, k, v = (t.view(1, -1, HEADS, HEAD).transpose(1, 2) for t in self.qkv(self.embed(input_ids)).chunk(3, -1))
        attend = nn.functional.scaled_dot_product_attention
        if self.own_mask:
            places = position_ids[0]
            seen = (places[None, :] <= places[:, None]) & (places[:, None] - places[None, :] < 5)
            y = attend(q, k, v, attn_mask=seen[None, None], scale=0.3)
        else:
            y = attend(q, k, v, is_causal=True)
        return self.head(y.transpose(1, 2).reshape(1, -1, HEADS * HEAD))


@pytest.mark.parametrize("own_mask", [False, True])
def test_attention_by_name(own_mask):
    ir = capture(_Named(own_mask))
    for transform in (CleanUp(), NormalForms()):
        transform.run(ir)
    check(ir, NameAttention())
    check(ir, RaiseMaskedAttention())
    (call,) = [n for n in ir.graph.nodes if "autodeploy.attention" in str(n.target)]
    scale, causal, window = call.args[7:10]
    assert (scale, causal, window) == ((0.3, True, 5) if own_mask else (HEAD**-0.5, True, 0))


class _Counts(nn.Module):
    """Learned positions counted by the model itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, input_ids, position_ids):
        places = torch.arange(input_ids.shape[1])
        return self.head(self.embed(input_ids) + self.places(places)[None])


def test_counted_positions():
    ir = capture(_Counts())
    weights = random_weights(ir)
    tokens = [torch.tensor([1, 5, 2]), torch.tensor([7, 7])]
    alone = torch.cat([run(ir, weights, t) for t in tokens])
    check(ir, TokenPositions(), modified=True)
    assert count(ir, "aten.arange") == 0
    batch = Batch.of([3, 2])
    assert torch.allclose(run(ir, weights, torch.cat(tokens), batch.positions(), batch), alone, atol=1e-6)


class _Cut(nn.Module):
    """A table of places that the model cuts to the number of tokens, from a row of it on."""

    def __init__(self, first: int):
        super().__init__()
        self.first = first
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)
        self.register_buffer("table", torch.linspace(-1, 1, 70 * WIDTH).view(1, 70, WIDTH).sin())

    def forward(self, input_ids, position_ids):
        tokens = input_ids.shape[1]
        if self.first < 0:
            return self.head(self.embed(input_ids) + self.table[:, 70 - tokens :])
        return self.head(self.embed(input_ids) + self.table[:, self.first : tokens + self.first])


def test_cut_tables_are_read_at_positions():
    ir = capture(_Cut(0), longest=64)
    weights = random_weights(ir)
    tokens = [torch.tensor([1, 5, 2]), torch.tensor([7, 7])]
    alone = torch.cat([run(ir, weights, t) for t in tokens])
    check(ir, CutTables(), modified=True)
    assert count(ir, "aten.slice") == 0
    batch = Batch.of([3, 2])
    assert torch.allclose(run(ir, weights, torch.cat(tokens), batch.positions(), batch), alone, atol=1e-6)


def test_a_table_cut_from_its_end_is_refused():
    """Its rows depend on how long the sequence is, not on where a token stands."""
    with pytest.raises(TransformError, match=r"slice.*test_transforms_attention.py.*cuts a table"):
        run_pipeline(capture(_Cut(-1), longest=64))
