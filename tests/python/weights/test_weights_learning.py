"""What opaque functions do to arrays is learned; what torch does to tensors is recorded."""

import numpy as np
import pytest
import torch

from autodeploy.weights import expr as e
from autodeploy.weights.errors import WeightError
from autodeploy.weights.evaluate import evaluate
from autodeploy.weights.formats import Stored
from autodeploy.weights.learn_layout import learn
from autodeploy.weights.record import Recorded


def normal(size):
    return np.random.default_rng(0).normal(size=size)


def check_learned(f, shape, domain=normal):
    (piece,) = learn(lambda a: {"out": f(a)}, shape, "x").values()
    values = domain(shape).astype(np.float32)
    found = evaluate(piece.apply(e.tensor("x", "f32", shape)), lambda _: Stored.from_f32(values)).to_f32()
    want = f(values)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)
    return piece


def positive(size):
    return np.random.default_rng(0).uniform(0.1, 3, size)


SHUFFLE = np.random.default_rng(3).permutation(24)
LAYOUTS = {
    "same": lambda a: a,
    "copy": lambda a: np.copy(a),
    "rows swapped": lambda a: a.reshape(2, 3, 4, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape),
    "rows shuffled": lambda a: a[SHUFFLE],
    "transposed": lambda a: a.T,
    "new axis": lambda a: a[:, None],
    "other shape": lambda a: a.reshape(4, 6, -1),
    "thirds interleaved": lambda a: np.stack(np.array_split(a, 3, axis=0), axis=1).reshape(a.shape),
    "columns shuffled": lambda a: a[:, np.random.default_rng(1).permutation(a.shape[1])],
    "insists on its columns": lambda a: a.reshape(24, 40)[::-1],
    "rows cut": lambda a: a.reshape(48, 20)[::-1],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    check_learned(LAYOUTS[name], (24, 40))


@pytest.mark.parametrize(
    ("f", "domain"),
    [
        (lambda a: a - 1, None),
        (lambda a: a + 1, None),
        (lambda a: a * 2 + 3, None),
        (lambda a: -a, None),
        (lambda a: np.log(-a), lambda size: -positive(size)),
        (lambda a: -np.exp(a), None),
        (lambda a: 1 / a, positive),
        (lambda a: np.sqrt(a[::-1]), positive),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values(f, domain):
    check_learned(f, (24, 40), domain or normal)
    check_learned(f, (7,), domain or normal)


@pytest.mark.parametrize(
    "f",
    [
        lambda a: np.sin(a),
        lambda a: a * np.arange(a.shape[0])[:, None],
        lambda a: np.repeat(a, 2, axis=0),
        lambda a: a[:-1],
        lambda a: np.cumsum(a, axis=0),
    ],
)
def test_what_cannot_be_said_is_refused(f):
    with pytest.raises(WeightError, match=r"\[blk.x\] its conversion cannot be expressed"):
        learn(lambda a: {"out": f(a)}, (24, 40), "blk.x")


def test_large_tensors_are_learned_on_a_few_columns():
    sizes = []

    def f(a):
        sizes.append(a.nbytes if a.strides[-1] else 0)
        return {"out": a[::-1]}

    learn(f, (4096, 1 << 20), "x")
    assert max(sizes) < 1 << 20


def test_parts_of_a_larger_result():
    def halves(a, at):
        out = np.zeros((a.shape[0], 2 * a.shape[1], a.shape[2]))
        out[:, at * a.shape[1] : (at + 1) * a.shape[1]] = a
        return {"out": out}

    for at in (0, 1):
        piece = learn(lambda a, at=at: halves(a, at), (3, 5, 64), "x")["out"]
        assert (piece.dim, piece.start, piece.stop, piece.size) == (1, 5 * at, 5 * at + 5, 10)


T = torch.arange(24, dtype=torch.float32).reshape(4, 6)
RECORDED = {
    "cat": lambda a, b: torch.cat([a, b], dim=-1),
    "stack": lambda a, b: torch.stack([a, b], dim=1),
    "chunk": lambda a, b: torch.chunk(a, 3, dim=1)[2],
    "split": lambda a, b: torch.split(a, [1, 3], dim=0)[1],
    "tensor_split": lambda a, b: a.tensor_split(2)[1],
    "unbind": lambda a, b: a.unbind(1)[2],
    "view": lambda a, b: a.view(2, -1).contiguous(),
    "flatten": lambda a, b: a.reshape(2, 2, 6).flatten(0, 1),
    "squeeze": lambda a, b: a[:1].squeeze(0).unsqueeze(-1),
    "transpose": lambda a, b: a.transpose(-1, 0),
    "T": lambda a, b: a.T,
    "mT": lambda a, b: a.reshape(2, 2, 6).mT,
    "permute": lambda a, b: a.reshape(2, 2, 6).permute(2, 0, -2),
    "index": lambda a, b: a[..., 1:5:2],
    "row": lambda a, b: a[-1],
    "new axis": lambda a, b: a[None, :, 2],
    "list": lambda a, b: a[[3, 0]],
    "tensor index": lambda a, b: a[:, torch.tensor([5, 0])],
    "index that follows": lambda a, b: a[torch.tensor([2, 0]).to(a.device)],
    "mask": lambda a, b: a[torch.tensor([True, False, True, True])],
    "index_select": lambda a, b: a.index_select(1, torch.tensor([1, 1])),
    "narrow": lambda a, b: a.narrow(1, 2, 3),
    "select": lambda a, b: a.select(1, -1),
    "flip": lambda a, b: a.flip(0, 1),
    "arithmetic": lambda a, b: 1 - (a * 2 + b) / (b + 1),
    "functions": lambda a, b: -torch.exp(-torch.log1p(a)).square(),
    "half": lambda a, b: (a / 3).half().float(),
    "data": lambda a, b: a.data.clone().detach(),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recording(name):
    f = RECORDED[name]
    recorded = f(*(Recorded.make(e.tensor(n, "f32", (4, 6))) for n in "ab"))
    values = {"a": Stored.from_f32(T.numpy()), "b": Stored.from_f32((T + 0.5).numpy())}
    found = evaluate(recorded.expr, values.__getitem__).to_f32()
    np.testing.assert_allclose(found, f(T, T + 0.5).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "f",
    [
        torch.sin,
        lambda a: a.cumsum(0),
        lambda a: a @ a.T,
        lambda a: a + torch.ones(6, device="meta"),
        lambda a: a.mul_(2),
    ],
)
def test_what_cannot_be_recorded_is_refused(f):
    with pytest.raises(WeightError, match="cannot express"):
        f(Recorded.make(e.tensor("a", "f32", (4, 6))))


def test_a_conversion_to_the_activations_type_loses_nothing():
    recorded = Recorded.make(e.tensor("a", "f32", (4, 6)))
    assert recorded[:3].to(torch.bfloat16).contiguous().expr.format == "f32"
    assert recorded.half().expr.format == "f16"


def test_blocks_under_record():
    blocks = Recorded.make(e.tensor("q", "q4_0", (6, 64)))
    assert blocks.dtype == torch.float32
    assert torch.cat([blocks[2:], blocks[:2]]).reshape(2, 3, 64).transpose(0, 1).expr.format == "q4_0"
    assert blocks[:, torch.arange(63, -1, -1)].expr.format == "f32"
