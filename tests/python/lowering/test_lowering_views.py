"""The view algebra against torch: random chains of view operations on storages with T in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autodeploy.lowering.dims import ONE, ZERO, Dim, R, T, as_dim, contiguous_strides, numel
from autodeploy.lowering.views import View, broadcast_shapes

# Primes that no static size below contains, so that nothing merges or divides by accident.
TOKENS, ROWS = 23, 19


def concrete(dims: tuple[Dim, ...]) -> list[int]:
    return [d.evaluate(TOKENS, ROWS) for d in dims]


def realize(view: View, storage: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(
        storage, concrete(view.shape), concrete(view.strides), view.offset.evaluate(TOKENS, ROWS)
    )


@dataclass
class Pair:
    view: View
    tensor: torch.Tensor


SIZES = st.sampled_from([ONE, Dim(2), Dim(3), Dim(4), Dim(6), T])


@st.composite
def storages(draw: Callable) -> tuple[View, torch.Tensor]:
    shape = draw(st.lists(SIZES, min_size=1, max_size=4))
    if shape.count(T) > 1:
        shape = [d if d != T else Dim(2) for d in shape[1:]] + [T]
    view = View.whole("x", "act", shape)
    storage = torch.arange(int(numel(view.shape).evaluate(TOKENS, ROWS)))
    return view, storage


def step(draw: Callable, pair: Pair) -> Pair | None:
    """One random view operation on both sides; None where the view algebra says that it moves data."""
    view, tensor = pair.view, pair.tensor
    rank = view.ndim
    names = ["unsqueeze", "squeeze", "expand_front", "reshape"]
    if rank:
        names += ["permute", "transpose", "slice", "select", "expand", "split", "unfold", "movedim", "diagonal"]
    name = draw(st.sampled_from(names))
    dim = draw(st.integers(-rank, rank - 1)) if rank else 0
    static = bool(rank) and view.shape[dim].is_static
    size = view.shape[dim].factor if static else 0
    match name:
        case "permute":
            order = draw(st.permutations(range(rank)))
            return Pair(view.permute(order), tensor.permute(order))
        case "transpose":
            other = draw(st.integers(-rank, rank - 1))
            return Pair(view.transpose(dim, other), tensor.transpose(dim, other))
        case "movedim":
            count = draw(st.integers(1, rank))
            src = draw(st.permutations(range(rank)))[:count]
            dst = draw(st.permutations(range(rank)))[:count]
            return Pair(view.movedim(src, dst), tensor.movedim(src, dst))
        case "unsqueeze":
            if rank > 6:
                return pair
            dim = draw(st.integers(-rank - 1, rank))
            return Pair(view.unsqueeze(dim), tensor.unsqueeze(dim))
        case "squeeze":
            dims = draw(st.one_of(st.none(), st.just([dim] if rank else [])))
            return Pair(view.squeeze(dims), tensor.squeeze() if dims is None else tensor.squeeze(tuple(dims)))
        case "slice" if static:
            start, stop = draw(st.integers(-size - 1, size + 1)), draw(st.integers(-size - 1, size + 1))
            stride = draw(st.integers(1, 3))
            sliced = view.slice(dim, start, stop, stride)
            return sliced and Pair(sliced, torch.ops.aten.slice.Tensor(tensor, dim, start, stop, stride))
        case "slice":
            return Pair(view.slice(dim, 0, view.shape[dim]), tensor)
        case "select" if static and size:
            index = draw(st.integers(-size, size - 1))
            selected = view.select(dim, index)
            return selected and Pair(selected, tensor.select(dim, index))
        case "split" if static and size > 1:
            sizes = [1, size - 1]
            parts = view.split(sizes, dim)
            which = draw(st.integers(0, 1))
            return parts and Pair(parts[which], tensor.split(sizes, dim)[which])
        case "unfold" if static and size > 1:
            width, stride = draw(st.integers(1, size)), draw(st.integers(1, 2))
            if rank > 6:
                return pair
            unfolded = view.unfold(dim, width, stride)
            return unfolded and Pair(unfolded, tensor.unfold(dim, width, stride))
        case "diagonal" if rank > 1 and view.shape[0] == view.shape[1]:
            diagonal = view.diagonal(0, 1)
            return diagonal and Pair(diagonal, tensor.diagonal(0, 0, 1))
        case "expand" if view.shape[dim] == ONE:
            shape: list[Dim | int] = [-1] * rank
            shape[dim] = draw(st.sampled_from([Dim(3), T]))
            sizes = [s if isinstance(s, int) else s.evaluate(TOKENS, ROWS) for s in shape]
            return Pair(view.expand(shape), tensor.expand(sizes))
        case "expand_front":
            if rank > 6:
                return pair
            return Pair(view.expand([2, *([-1] * rank)]), tensor.expand([2, *([-1] * rank)]))
        case "reshape":
            shape = regroup(draw, view.shape)
            reshaped = view.reshape(shape)
            sizes = concrete(tuple(shape))
            if reshaped is None:
                # Complete: what torch views for these sizes, chosen without accidents, the algebra views too.
                with pytest.raises(RuntimeError):
                    tensor.view(sizes)
                return None
            return Pair(reshaped, tensor.view(sizes))
    return pair


def regroup(draw: Callable, shape: tuple[Dim, ...]) -> list[Dim]:
    """The shape with neighbours merged and sizes split at random."""
    merged: list[Dim] = []
    for dim in shape:
        if merged and draw(st.booleans()):
            merged[-1] = merged[-1] * dim
        else:
            merged.append(dim)
    result: list[Dim] = []
    for dim in merged:
        factor = draw(st.sampled_from([1, 2, 3]))
        rest = dim.divide(factor)
        if rest is not None and factor > 1 and len(merged) < 7:
            result += [rest, Dim(factor)] if draw(st.booleans()) else [Dim(factor), rest]
        else:
            result.append(dim)
    return result[:7] if len(result) <= 7 else list(merged)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_chains_agree_with_torch(data: st.DataObject) -> None:
    view, storage = data.draw(storages())
    pair = Pair(view, realize(view, storage))
    for _ in range(data.draw(st.integers(1, 7))):
        following = step(data.draw, pair)
        if following is None:  # the caller would copy: go on from a fresh storage with the same contents
            storage = pair.tensor.reshape(-1).contiguous()
            pair = Pair(View.whole("x", "act", pair.view.shape), pair.tensor.contiguous())
            continue
        pair = following
        assert concrete(pair.view.shape) == list(pair.tensor.shape)
        assert torch.equal(realize(pair.view, storage), pair.tensor), pair.view
        assert torch.equal(realize(pair.view.normalized(), storage), pair.tensor), pair.view
        if numel(pair.view.shape) != ZERO:
            assert pair.view.is_contiguous() == pair.tensor.is_contiguous()


def test_heads_are_views_of_a_fused_projection() -> None:
    fused = View.whole("qkv", "act", (T, 96))
    q, k, v = fused.split([64, 16, 16], 1)
    heads = q.reshape((T, 4, 16)).unsqueeze(0).transpose(1, 2)
    assert [str(d) for d in heads.shape] == ["1", "4", "T", "16"]
    assert [d.to_json() for d in heads.strides[1:]] == [16, 96, 1]
    assert (k.offset, v.offset) == (Dim(64), Dim(80))
    assert heads.transpose(1, 2).reshape((T, 64)) == q
    assert heads.reshape((Dim(4) * T, 16)) is None


def test_row_major_storage_with_symbolic_strides() -> None:
    scores = View.whole("scores", "act", (4, T, 16))
    assert [d.to_json() for d in scores.strides] == ["16*T", 16, 1]
    assert scores.select(0, 3).offset.to_json() == "48*T"
    # 48*T + 8 is no dimension of a Program: this part has to be copied.
    assert scores.select(0, 3).slice(1, 8, 16) is None
    assert scores.reshape((Dim(64) * T,)) == View.whole("scores", "act", (Dim(64) * T,))


def test_part_of_the_tokens_is_refused() -> None:
    hidden = View.whole("h", "act", (T, 8))
    assert hidden.slice(0, 0, 2**63 - 1) is hidden
    with pytest.raises(ValueError, match=r"all of a dimension of size T"):
        hidden.slice(0, -1, 2**63 - 1)
    with pytest.raises(ValueError, match=r"index into a dimension of size T"):
        hidden.select(0, 0)


def test_dims_read_what_they_write() -> None:
    for dim in (ZERO, ONE, Dim(7), T, R, T * 8, R * 2):
        assert as_dim(dim.to_json()) == dim
    assert (T * 8).to_json() == "8*T"
    for text in ("t", "8*", "*T", "T*8", "-1*T", "8*T*R", "", "8*X", "²*T"):
        with pytest.raises(ValueError, match="dim"):
            as_dim(text)
    with pytest.raises(ValueError, match=r"T\*T"):
        (T * T).to_json()
    assert (T * 6).divide(T * 2) == Dim(3)
    assert (T * 6).divide(R) is None
    assert Dim(6).divide(4) is None
    assert T.add(1) is None


def test_broadcasting() -> None:
    assert broadcast_shapes((T, ONE), (Dim(4),)) == (T, Dim(4))
    with pytest.raises(ValueError, match="broadcast"):
        broadcast_shapes((T,), (Dim(4),))
    assert contiguous_strides((T, Dim(4), Dim(2))) == (Dim(8), Dim(2), ONE)
