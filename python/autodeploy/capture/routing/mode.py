"""The torch function mode under which code that routes rows to experts is captured; see the package's docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .values import (
    Bound,
    CellIndex,
    Cells,
    Count,
    Counts,
    Expert,
    ExpertCells,
    ExpertsHit,
    ExpertWeight,
    Piece,
    Table,
    Taken,
    Unknown,
    refuse,
)

_KEEP = {
    "to", "bool", "long", "int", "float", "contiguous", "clone", "detach", "type_as", "cpu", "type", "byte",
}  # fmt: skip
_TRUTH = {"gt", "greater", "ne", "not_equal", "bool"}  # of counts: whether there is any
_HANDLERS: dict[str, Callable[..., Any]] = {}


def _handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


class RoutedRows(TorchFunctionMode):
    """In force while a model's forward is followed; does nothing where tokens are not picked by value."""

    def __init__(self) -> None:
        super().__init__()
        self._tags: dict[int, tuple[torch.Tensor, Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func in (torch.Tensor.T.__get__, torch.Tensor.mT.__get__):
            name = "T"
        handler = _HANDLERS.get(name)
        if handler is not None:
            result = handler(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        pieces = [a for a in (*args, *kwargs.values()) if isinstance(a, Piece)]
        if pieces:
            first = pieces[0]
            bare = {k: first.bare(a) for k, a in kwargs.items()}
            return first.like(func(*(first.bare(a) for a in args), **bare))
        result = func(*args, **kwargs)
        tag = self.tag(args[0]) if args else None
        if tag is not None and (name in _KEEP or (isinstance(tag, Counts) and name in _TRUTH)):
            self.remember(result, tag)
        return result

    def tag(self, x: Any) -> Any:
        """What is known about a tensor, or None."""
        found = self._tags.get(id(x))
        return found[1] if found is not None and found[0] is x else None

    def remember(self, x: Any, tag: Any) -> Any:
        if isinstance(x, torch.Tensor):
            self._tags[id(x)] = (x, tag)
        return x


def _by_token(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and any(not isinstance(n, int) for n in x.shape)


# --- tables of experts

@_handles("one_hot")
def _one_hot(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    ids = args[0]
    classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
    if not _by_token(ids) or classes < 0:
        return NotImplemented
    hot = (ids.unsqueeze(-1) == torch.arange(classes)).to(torch.int64)
    return mode.remember(hot, Table(ids, classes, (*range(ids.dim()), -1)))


@_handles("zeros", "zeros_like", "new_zeros")
def _zeros(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    return mode.remember(func(*args, **kwargs), "zeros")


@_handles("scatter", "scatter_")
def _scatter(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    if len(args) < 4 or mode.tag(args[0]) != "zeros" or not _by_token(args[2]):
        return NotImplemented
    table, dim, ids, value = args[:4]
    result = func(*args, **kwargs)
    last = isinstance(dim, int) and dim % table.dim() == table.dim() - 1
    if last and isinstance(value, (int, float)) and value == 1 and isinstance(table.shape[-1], int):
        mode.remember(result, Table(ids, table.shape[-1], (*range(table.dim() - 1), -1)))
    return result


@_handles("permute", "transpose", "T", "t", "movedim", "swapaxes", "moveaxis")
def _permute(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    tag = mode.tag(args[0])
    if not isinstance(tag, Table):
        return NotImplemented
    result = func(*args, **kwargs)
    order = func(torch.empty(tuple(range(2, 2 + len(tag.dims)))), *args[1:], **kwargs).shape
    return mode.remember(result, tag.permuted([n - 2 for n in order]))


@_handles("sum", "any")
def _sum(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    tag = mode.tag(args[0])
    if not isinstance(tag, Table) or kwargs.get("keepdim"):
        return NotImplemented
    result = func(*args, **kwargs)
    if result.dim() == 1 and str(result.shape[0]) == str(tag.classes) and -1 in tag.dims:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [d % len(tag.dims) for d in (dims if isinstance(dims, (tuple, list)) else [dims])]
        if tag.dims.index(-1) not in dims:
            mode.remember(result, Counts(tag.ids, tag.classes))
    return result


@_handles("bincount")
def _bincount(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    classes = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
    if not _by_token(args[0]) or not classes:
        return NotImplemented
    counts = (args[0].unsqueeze(-1) == torch.arange(classes)).sum(0)
    return mode.remember(counts, Counts(args[0], classes))


# --- picking rows

@_handles("where", "nonzero", "argwhere")
def _where(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    if len(args) != 1:
        return NotImplemented
    condition, tag = args[0], mode.tag(args[0])
    name = func.__name__
    if isinstance(tag, Counts):
        hit = ExpertsHit(tag)
        return (hit,) if name == "where" or kwargs.get("as_tuple") else hit
    if isinstance(condition, ExpertCells):
        found = condition.where()
    elif _by_token(condition):
        cells = Cells.of(condition.shape, condition)
        found = tuple(CellIndex(cells, d) for d in range(condition.dim()))
    else:
        return NotImplemented
    if name == "where" or kwargs.get("as_tuple"):
        return found
    return found[0] if len(found) == 1 else refuse("a list of index tuples; use torch.where(condition)")


@_handles("__getitem__")
def _getitem(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    x, index = args
    tag = mode.tag(x)
    if isinstance(index, Expert):
        if isinstance(tag, Table):
            return _of_expert(tag, index)
        return _weight_of(x, index)
    if isinstance(tag, Table) and isinstance(index, int) and tag.dims[0] == -1:
        return tag.ids.permute(tag.dims[1:]) == index % tag.classes
    if isinstance(x, Piece):
        return NotImplemented
    if isinstance(index, slice) and (isinstance(index.start, Bound) or isinstance(index.stop, (Bound, Count))):
        return _piece(x, index)
    if isinstance(index, torch.Tensor) and index.dtype == torch.bool and _by_token(index):
        cells = Cells.of(index.shape, index)
        return mode.remember(cells.take(x, list(range(index.dim()))), Taken(x, index))
    picked = _picked(index)
    if picked is None:
        return NotImplemented
    cells, dims, nones = picked
    if dims == [None]:
        rows = x.clone()
    else:
        rows = cells.take(x, dims)
    for place in nones:
        rows = rows.unsqueeze(place)
    return mode.remember(rows, Taken(x, index))


def _picked(index: Any) -> tuple[Cells, list[Any], list[int]] | None:
    """(cells, dims of the grid that index the first dims, places of new dims of size 1), None for other indices."""
    parts: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        parts.extend(part if isinstance(part, tuple) else (part,))
    if not any(isinstance(p, CellIndex) for p in parts):
        return None
    dims: list[Any] = []
    nones: list[int] = []
    cells, place = None, 0
    for part in parts:
        if part is None:
            nones.append(place)
            place += 1
        elif isinstance(part, CellIndex):
            if cells not in (None, part.cells):
                refuse("indices of two selections together")
            if cells is None:
                place += 1
            elif place != 1 + sum(n == 0 for n in nones):
                refuse("indices of selected rows apart from each other")
            cells = part.cells
            dims.append(part.dim)
        elif part is Ellipsis or part == slice(None):
            if cells is None:
                refuse("selected rows that are not along the first dim")
            if part is Ellipsis and any(p is None for p in parts):
                refuse("an ellipsis among indices of selected rows")
            place += 1
        else:
            refuse("selected rows indexed further")
    assert cells is not None
    return cells, dims, nones


def _of_expert(table: Table, expert: Expert) -> Any:
    if table.dims[0] != -1 or expert.ids is not table.ids:
        refuse("a loop over experts of another routing")
    return ExpertCells(table, expert)


def _weight_of(x: torch.Tensor, expert: Expert) -> Any:
    if not isinstance(x.shape[0], int) or any(not isinstance(n, int) for n in x.shape):
        refuse("a value of tokens indexed by an expert's number")
    if x.dim() == 3:
        return ExpertWeight(x, expert.ids)
    ids = expert.ids.reshape(-1).clamp(0, x.shape[0] - 1)
    if x.dim() > 3:
        refuse(f"an expert's tensor of {x.dim() - 1} dims")
    return torch.nn.functional.embedding(ids, x if x.dim() == 2 else x.unsqueeze(1))


# --- products with an expert's matrix

@_handles("linear")
def _linear(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
    if not isinstance(weight, ExpertWeight):
        return NotImplemented
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    out = weight.product(x, transposed=True)
    return out if bias is None else out + bias


@_handles("matmul", "mm", "__matmul__")
def _matmul(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    return args[1].product(args[0], transposed=False) if isinstance(args[1], ExpertWeight) else NotImplemented


# --- adding rows back

@_handles("index_add", "index_add_")
def _index_add(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    target = args[0]
    dim, index, source = (
        args[i] if len(args) > i else kwargs.get(key) for i, key in ((1, "dim"), (2, "index"), (3, "source"))
    )
    if not isinstance(index, CellIndex):
        return NotImplemented
    if dim % target.dim() != 0 or kwargs.get("alpha", 1) != 1:
        refuse("rows added along another dim than the first")
    if index.dim is not None:
        source = index.cells.sums(source.reshape(-1, *target.shape[1:]), index.dim)
    source = source.to(target.dtype)
    return target.add_(source) if func.__name__ == "index_add_" else target + source


@_handles("add", "add_", "__add__", "__iadd__")
def _add(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    taken = mode.tag(args[0])
    if not isinstance(taken, Taken) or taken.added is not None or len(args) != 2 or kwargs:
        return NotImplemented
    result = func(*args)
    if isinstance(args[1], torch.Tensor) and args[1].shape == result.shape:
        mode.remember(result, Taken(taken.source, taken.index, args[1]))
    return result


def _added(target: torch.Tensor, index: Any, rows: torch.Tensor) -> None:
    """target[index] += rows"""
    if isinstance(index, torch.Tensor):
        cells, dims = Cells.of(index.shape, index), list(range(index.dim()))
    else:
        picked = _picked(index)
        assert picked is not None
        cells, dims, _ = picked
    if dims == [None]:
        target.add_(rows)
    elif len(dims) == 1:
        target.add_(cells.sums(rows, dims[0]).to(target.dtype))
    else:
        refuse("rows added by several indices")


@_handles("__setitem__")
def _setitem(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    target, index, value = args
    taken = mode.tag(value)
    if isinstance(taken, Taken) and taken.added is not None and taken.source is target and taken.index is index:
        return _added(target, index, taken.added)
    if isinstance(index, torch.Tensor) and index.dtype == torch.bool and _by_token(index):
        cells, dims = Cells.of(index.shape, index), list(range(index.dim()))
    else:
        picked = _picked(index)
        if picked is None:
            return NotImplemented
        cells, dims, nones = picked
        if nones:
            refuse("selected rows written through a new dim")
    if dims == [None]:
        target.copy_(value)
    elif len(dims) == len(cells.sizes):
        tail = list(target.shape[len(dims) :])
        inverse = [cells.order.index(d) for d in dims]
        if isinstance(value, torch.Tensor) and value.dim() == len(tail) + 1:
            value = value.reshape(*cells.ordered_sizes, *tail).permute(*inverse, *range(len(dims), target.dim()))
        mask = cells.mask
        if mask is not None:
            mask = mask.reshape(cells.ordered_sizes).permute(inverse)
            mask = mask.reshape(*target.shape[: len(dims)], *[1] * len(tail))
        target.copy_(value if mask is None else torch.where(mask, value, target))
    elif len(dims) == 1:  # at most one cell of a token has an expert
        if not isinstance(value, torch.Tensor):
            refuse("a number written into selected rows")
        sums, hit = cells.sums(value.to(target.dtype), dims[0]), cells.hits(dims[0])
        target.copy_(sums if hit is None else torch.where(hit.reshape(-1, *[1] * (target.dim() - 1)), sums, target))
    else:
        refuse("selected rows written by some of their indices")
    return None


# --- rows in the order of their experts

@_handles("sort", "argsort")
def _sort(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    ids = args[0]
    if not _by_token(ids) or ids.dim() != 1 or ids.dtype.is_floating_point:
        return NotImplemented
    order = CellIndex(_cells_of_flat(mode, ids) or Cells.of(ids.shape), None)
    return order if func.__name__ == "argsort" else (Unknown(), order)


def _cells_of_flat(mode: RoutedRows, ids: torch.Tensor) -> Cells | None:
    tag = mode.tag(ids)
    return tag if isinstance(tag, Cells) else None


@_handles("flatten", "view", "reshape", "ravel")
def _flatten(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    ids = args[0]
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.dtype != torch.int64 or not _by_token(ids):
        return NotImplemented
    result = func(*args, **kwargs)
    if result.dim() == 1 and not isinstance(ids.shape[0], int):
        mode.remember(result, Cells(tuple(ids.shape), (0, 1)))
    return result


@_handles("tolist", "numpy", "unbind")
def _tolist(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    tag = mode.tag(args[0])
    return [Count(tag, e) for e in range(tag.classes)] if isinstance(tag, Counts) else NotImplemented


@_handles("split", "split_with_sizes")
def _split(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    x, sizes = args[0], args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_sizes"))
    if not isinstance(sizes, (list, tuple)) or not any(isinstance(s, Count) for s in sizes):
        return NotImplemented
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if dim != 0 or [getattr(s, "number", None) for s in sizes] != list(range(sizes[0].counts.classes)):
        refuse("rows split in another way than by all experts in order")
    return tuple(Piece(s.counts, s.number, x) for s in sizes)


def _piece(x: torch.Tensor, index: slice) -> Piece:
    start, stop = index.start, index.stop
    first = 0 if start in (None, 0) else start.number if isinstance(start, Bound) else -1
    if isinstance(stop, Count):  # rows[:count of the first]
        stop = Bound(stop.counts, 1) if stop.number == 0 else stop
    if not isinstance(stop, Bound) or stop.number != first + 1 or index.step not in (None, 1):
        refuse("rows cut in another way than by expert")
    return Piece(stop.counts, first, x)


@_handles("cat", "concat", "concatenate", "vstack")
def _cat(mode: RoutedRows, func: Any, args: Any, kwargs: Any) -> Any:
    parts = args[0] if args else kwargs["tensors"]
    if not any(isinstance(p, Piece) for p in parts):
        return NotImplemented
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    first = parts[0]
    if all(isinstance(p, Piece) and p.number == first.number for p in parts) and dim % len(first.shape) != 0:
        return first.like(func([p.rows for p in parts], *args[1:], **kwargs))
    numbers = [getattr(p, "number", None) for p in parts]
    if dim != 0 or numbers != list(range(first.counts.classes)):
        refuse("rows put together in another way than of all experts in order")
    flat, total = first.counts.ids.reshape(-1), None
    for piece in parts:
        mask = (flat == piece.number).reshape(-1, *[1] * (piece.rows.dim() - 1))
        rows = torch.where(mask, piece.rows, 0)
        total = rows if total is None else total + rows
    return total
