"""What a model's code holds, while it is captured, in the place of values that only a run knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch

from ..errors import CaptureError, calling_line


def refuse(what: str) -> NoReturn:
    raise CaptureError(
        "[rows] expected values of tensors to decide nothing but which rows of tokens are picked (as a loop over "
        f"experts does), and these to be computed row by row and added back, found {what} at {calling_line()}"
    )


class Unknown:
    """Base of the values below: PyTorch's functions accept them, and refuse what `mode` does not know."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        refuse(f"{name} of {cls.__name__.lower()}")

    def _no_arithmetic(self, *args: Any) -> NoReturn:
        refuse(f"arithmetic with {type(self).__name__.lower()}")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _no_arithmetic


@dataclasses.dataclass(eq=False)
class Table:
    """A tensor that says which experts every cell has: `ids` i64 [..], experts [0, classes).

    `dims` has, for each dim of the tensor, the dim of `ids` that it is, or -1 for the dim over experts.
    """

    ids: torch.Tensor
    classes: int
    dims: tuple[int, ...]

    def permuted(self, order: list[int]) -> Table:
        return Table(self.ids, self.classes, tuple(self.dims[d] for d in order))


@dataclasses.dataclass(eq=False)
class Counts:
    """A tensor [classes] of how many cells each expert has, or of whether it has any."""

    ids: torch.Tensor
    classes: int


@dataclasses.dataclass(eq=False)
class Cells:
    """The cells that a condition is about, tokens first: a grid of `sizes`, in the order `order` of its dims.

    `condition` bool [S] is that of each, None where all meet it; or it is that their expert is the one of a round.
    """

    sizes: tuple[Any, ...]
    order: tuple[int, ...]
    condition: torch.Tensor | None = None
    expert: Expert | None = None
    classes: int = 0

    @property
    def mask(self) -> torch.Tensor | None:
        if self.expert is None:
            return self.condition
        self.expert.settled = True
        return self.expert.mask(self.classes)

    @classmethod
    def of(cls, sizes: Any, condition: torch.Tensor | None = None) -> Cells:
        """`condition` has `sizes`."""
        sizes = tuple(sizes)
        order = tuple(sorted(range(len(sizes)), key=lambda d: (isinstance(sizes[d], int), d)))
        flat = None
        if condition is not None:
            flat = condition.permute(order).reshape(-1)
            flat = flat if flat.dtype == torch.bool else flat != 0
        return cls(sizes, order, flat)

    @property
    def ordered_sizes(self) -> list[Any]:
        return [self.sizes[d] for d in self.order]

    def take(self, x: torch.Tensor, dims: list[int]) -> torch.Tensor:
        """x, whose first dims are these dims of the grid, as one row for each cell [S, ...]."""
        rest = list(range(len(dims), x.dim()))
        x = x.permute([dims.index(d) for d in self.order if d in dims] + rest)
        for place, d in enumerate(self.order):
            if d not in dims:
                x = x.unsqueeze(place)
        tail = list(x.shape[len(self.order) :])
        return x.expand(*self.ordered_sizes, *tail).reshape(-1, *tail).clone()

    def sums(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """Rows [S, ...] of cells that meet the condition, added up for each index of one dim of the grid."""
        tail = list(rows.shape[1:])
        mask = self.mask
        if mask is not None:
            rows = torch.where(mask.reshape(-1, *[1] * len(tail)), rows, 0)
        others = [place for place, d in enumerate(self.order) if d != dim]
        rows = rows.reshape(*self.ordered_sizes, *tail)
        return rows.sum(dim=others) if others else rows

    def hits(self, dim: int) -> torch.Tensor | None:
        """Which indices of one dim of the grid meet the condition at all; None for every one."""
        mask = self.mask
        if mask is None:
            return None
        others = [place for place, d in enumerate(self.order) if d != dim]
        hit = mask.reshape(self.ordered_sizes)
        for place in reversed(others):
            hit = hit.any(place)
        return hit


@dataclasses.dataclass(eq=False)
class CellIndex(Unknown):
    """The index of each cell in one dim of the grid; `dim` None: the cell's own number."""

    cells: Cells
    dim: int | None

    @property
    def shape(self) -> torch.Size:
        size: Any = 1
        for n in self.cells.sizes:
            size = size * n
        return torch.Size([size])

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> Any:
        return self.shape[0]

    nelement = __len__ = numel
    dtype = torch.int64
    device = torch.device("cpu")
    ndim = 1

    def dim_(self) -> int:
        return 1

    def _same(self, *args: Any, **kwargs: Any) -> CellIndex:
        return self

    to = long = int = contiguous = clone = detach = cpu = flatten = squeeze = view = reshape = _same

    def __getitem__(self, index: Any) -> Any:
        if index is None:
            return (self, None)
        if index is Ellipsis or (isinstance(index, slice) and index == slice(None)):
            return self
        return refuse("a part of the selected rows")

    def __floordiv__(self, other: Any) -> CellIndex:
        """The token of a cell, of cells that are `other` to a token."""
        if self.dim is not None or len(self.cells.sizes) != 2 or str(other) != str(self.cells.ordered_sizes[1]):
            refuse(f"a row number divided by {other}")
        return CellIndex(self.cells, self.cells.order[0])

    def __mod__(self, other: Any) -> CellIndex:
        if self.dim is not None or len(self.cells.sizes) != 2 or str(other) != str(self.cells.ordered_sizes[1]):
            refuse(f"a row number modulo {other}")
        return CellIndex(self.cells, self.cells.order[1])

    def div(self, other: Any, rounding_mode: str | None = None) -> CellIndex:
        if rounding_mode is None:
            refuse("a row number divided without rounding")
        return self // other


@dataclasses.dataclass(eq=False)
class Taken:
    """Rows read from `source` at `index`, and what was added to them since, if anything."""

    source: torch.Tensor
    index: Any
    added: torch.Tensor | None = None


class Expert(Unknown):
    """The expert of each cell, known to be in [low, high) in this round of a loop over experts."""

    def __init__(self, ids: torch.Tensor, low: int, high: int):
        self.ids, self.low, self.high = ids, low, high
        self.settled = False  # rows were added back: what is known about the number may not change any more

    def _below(self, bound: Any) -> bool:
        """Whether the number is below `bound`; from here on that is so, or not, for all cells of this round."""
        if not isinstance(bound, int):
            refuse(f"an expert's number compared with {type(bound).__name__}")
        if self.high <= bound:
            return True
        if self.low >= bound:
            return False
        self._narrow(bound)
        return True

    def _narrow(self, high: int) -> None:
        if self.settled:
            refuse("an expert's number read after its rows were added")
        self.high = high

    def __lt__(self, other: Any) -> bool:
        return self._below(other)

    def __ge__(self, other: Any) -> bool:
        return not self._below(other)

    def __le__(self, other: Any) -> bool:
        return self._below(other + 1)

    def __gt__(self, other: Any) -> bool:
        return not self._below(other + 1)

    def __eq__(self, other: Any) -> bool:
        return not self._below(other) and self._below(other + 1)

    def __ne__(self, other: Any) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __index__(self) -> int:
        if self.high != self.low + 1:
            self._narrow(self.low + 1)
        return self.low

    __int__ = item = __index__

    def tolist(self) -> int:
        return self.__index__()

    def _same(self, *args: Any, **kwargs: Any) -> Expert:
        return self

    __getitem__ = squeeze = view = reshape = flatten = to = long = int = cpu = _same

    def mask(self, classes: int) -> torch.Tensor | None:
        """Which cells, in order, have an expert of this round."""
        flat = self.ids.reshape(-1)
        if self.high == self.low + 1:
            return flat == self.low
        parts = [flat >= self.low] if self.low else []
        parts += [flat < self.high] if self.high < classes else []
        return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]


class ExpertsHit(Unknown):
    """The numbers of experts that some cell has: a loop over them covers [0, classes) in as few rounds as it allows."""

    def __init__(self, counts: Counts):
        self.counts = counts

    def __iter__(self) -> Iterator[Expert]:
        low = 0
        while low < self.counts.classes:
            expert = Expert(self.counts.ids, low, self.counts.classes)
            yield expert
            low = expert.high

    def _same(self, *args: Any, **kwargs: Any) -> ExpertsHit:
        return self

    squeeze = view = reshape = flatten = to = long = cpu = tolist = unbind = __getitem__ = _same


@dataclasses.dataclass(eq=False)
class ExpertCells(Unknown):
    """The part of a table that belongs to the expert of a loop's round: all cells, if every expert's round is this."""

    table: Table
    expert: Expert

    def _same(self, *args: Any, **kwargs: Any) -> ExpertCells:
        return self

    squeeze = to = bool = long = int = view = contiguous = _same

    def where(self) -> tuple[CellIndex, ...]:
        dims = [d for d in self.table.dims if d >= 0]
        cells = Cells.of(self.table.ids.shape)
        cells.expert, cells.classes = self.expert, self.table.classes
        if cells.order != tuple(sorted(cells.order)):
            refuse("experts of cells that do not belong to tokens first")
        return tuple(CellIndex(cells, d) for d in dims)


class ExpertWeight(Unknown):
    """weight[expert of each cell], weight [E, ...]: matrices that only make sense in a product with rows."""

    def __init__(self, weight: torch.Tensor, ids: torch.Tensor):
        self.weight, self.ids = weight, ids

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def ndim(self) -> int:
        return self.weight.dim() - 1

    dim = size = None

    @property
    def T(self) -> ExpertWeight:
        return ExpertWeight(self.weight.transpose(1, 2), self.ids)

    mT = T

    def t(self) -> ExpertWeight:
        return self.T

    def transpose(self, a: int, b: int) -> ExpertWeight:
        return self.T if a % 2 != b % 2 else self

    def _same(self, *args: Any, **kwargs: Any) -> ExpertWeight:
        return self

    contiguous = detach = clone = _same

    def to(self, *args: Any, **kwargs: Any) -> ExpertWeight:
        return ExpertWeight(self.weight.to(*args, **kwargs), self.ids)

    def type_as(self, other: torch.Tensor) -> ExpertWeight:
        return self.to(other.dtype)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[ExpertWeight, ...]:
        parts = self.weight.chunk(chunks, dim if dim < 0 else dim + 1)
        return tuple(ExpertWeight(w, self.ids) for w in parts)

    def split(self, size: Any, dim: int = 0) -> tuple[ExpertWeight, ...]:
        parts = self.weight.split(size, dim if dim < 0 else dim + 1)
        return tuple(ExpertWeight(w, self.ids) for w in parts)

    def __getitem__(self, index: Any) -> ExpertWeight:
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, slice) for i in index):
            refuse("an index into an expert's matrix")
        return ExpertWeight(self.weight[(slice(None), *index)], self.ids)

    def __rmatmul__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.product(rows, transposed=False)

    def product(self, rows: torch.Tensor, transposed: bool) -> torch.Tensor:
        """rows [S, K] (or [1, S, K]) through the matrix of each row's expert."""
        from autodeploy.ops import OPS

        if self.weight.dim() != 3:
            refuse(f"a product with an expert's tensor of {self.weight.dim() - 1} dims")
        weight = self.weight if transposed else self.weight.transpose(1, 2)
        flat = rows.reshape(-1, rows.shape[-1])
        if str(flat.shape[0]) != str(self.ids.numel()):
            refuse(f"{flat.shape[0]} rows for {self.ids.numel()} cells")
        out = OPS["expert_linear"].torch_op(flat, weight, self.ids.reshape(-1).to(torch.int64), None, 1)
        return out.reshape(*rows.shape[:-1], out.shape[-1])


@dataclasses.dataclass(eq=False)
class Bound(Unknown):
    """How many cells the experts before `number` have, cells being ordered by expert."""

    counts: Counts
    number: int

    def __add__(self, other: Any) -> Bound:
        if isinstance(other, Count) and other.number == self.number:
            return Bound(self.counts, self.number + 1)
        refuse("arithmetic with numbers of rows")

    __radd__ = __add__


@dataclasses.dataclass(eq=False)
class Count(Unknown):
    """How many cells one expert has. It is never found to be none: an expert without rows adds nothing anyway."""

    counts: Counts
    number: int

    def __radd__(self, other: Any) -> Bound:
        if isinstance(other, int) and other == 0 and self.number == 0:
            return Bound(self.counts, 1)
        refuse("arithmetic with numbers of rows")

    def __eq__(self, other: Any) -> bool:
        return False if isinstance(other, int) and other == 0 else refuse("a number of rows compared")

    def __gt__(self, other: Any) -> bool:
        return True if isinstance(other, int) and other == 0 else refuse("a number of rows compared")

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return True

    def item(self) -> Count:
        return self

    __hash__ = None  # type: ignore[assignment]


class Piece(Unknown):
    """The rows of one expert, of rows ordered by expert: all rows, of which the others do not count."""

    def __init__(self, counts: Counts, number: int, rows: Any):
        self.counts, self.number, self.rows = counts, number, rows

    @property
    def shape(self) -> torch.Size:
        return self.rows.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.rows, name)
        return self._wrapped(found) if callable(found) else found

    def _wrapped(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.like(method(*(self.bare(a) for a in args), **kwargs))

        return call

    def like(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self.like(v) for v in value)
        return Piece(self.counts, self.number, value) if isinstance(value, torch.Tensor) else value

    def bare(self, value: Any) -> Any:
        if isinstance(value, Piece) and value.number != self.number:
            refuse("rows of two experts in one operation")
        return value.rows if isinstance(value, Piece) else value


def _operator(name: str) -> Callable[..., Any]:
    def call(self: Piece, *args: Any) -> Any:
        return self.like(getattr(self.rows, name)(*(self.bare(a) for a in args)))

    return call


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "pow", "neg", "getitem"):
    setattr(Piece, f"__{_name}__", _operator(f"__{_name}__"))
