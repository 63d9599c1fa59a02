"""View algebra: which element of a storage each index of a tensor reads, for shapes in T and R.

A `View` is a storage with a shape, strides and an offset, counted in elements. Operations that move no data map one
View to another; where the result is no strided view of the same storage they return None, and the caller copies first.
The rules are those of PyTorch's views, proved for every T >= 1 and R >= 0 instead of one example.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from .dims import ONE, ZERO, Dim, as_dim, contiguous_strides, numel

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class View:
    """Element (i0, i1, ...) is storage[offset + i0*strides[0] + i1*strides[1] + ...]."""

    storage: Hashable
    dtype: str
    shape: Shape
    strides: Shape
    offset: Dim = ZERO

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.strides):
            raise ValueError(f"[view] expected a stride per dimension, found {len(self.strides)} for {len(self.shape)}")

    @staticmethod
    def whole(storage: Hashable, dtype: str, shape: Sequence[Dim | int | str]) -> View:
        """All of a row-major storage."""
        dims = tuple(as_dim(d) for d in shape)
        return View(storage, dtype, dims, contiguous_strides(dims))

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def axis(self, dim: int) -> int:
        """The dimension `dim` counted from the front; ValueError where there is none."""
        if not -self.ndim <= dim < self.ndim:
            raise ValueError(f"[view] expected a dimension in [{-self.ndim}, {self.ndim}), found {dim}")
        return dim % self.ndim

    def is_contiguous(self, first: int = 0) -> bool:
        """Whether the dimensions from `first` on are laid out row-major without gaps."""
        step = ONE
        for size, stride in zip(reversed(self.shape[first:]), reversed(self.strides[first:]), strict=True):
            if size != ONE and stride != step:
                return False
            step = step * size
        return True

    def is_whole(self, storage_shape: Sequence[Dim]) -> bool:
        """Whether it is all of a row-major storage of that shape in its order; dimensions may be grouped otherwise."""
        return self.offset == ZERO and self.is_contiguous() and numel(self.shape) == numel(tuple(storage_shape))

    def normalized(self) -> View:
        """The same view with row-major strides for dimensions of size 1, whose strides are never used."""
        plain: list[Dim] = []
        step = ONE
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            plain.append(step if size == ONE else stride)
            step = plain[-1] * size
        return replace(self, strides=tuple(reversed(plain)))

    # Reordering and renaming of dimensions.

    def permute(self, dims: Sequence[int]) -> View:
        """Dimension i of the result is dimension dims[i]."""
        order = [self.axis(d) for d in dims]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"[view] expected a permutation of {self.ndim} dimensions, found {list(dims)}")
        return replace(self, shape=tuple(self.shape[d] for d in order), strides=tuple(self.strides[d] for d in order))

    def transpose(self, dim0: int, dim1: int) -> View:
        """Two dimensions change places."""
        if self.ndim == 0:
            return self
        order = list(range(self.ndim))
        a, b = self.axis(dim0), self.axis(dim1)
        order[a], order[b] = order[b], order[a]
        return self.permute(order)

    def movedim(self, source: Sequence[int], destination: Sequence[int]) -> View:
        """Dimensions `source` go to the places `destination`; the others keep their order."""
        src, dst = [self.axis(d) for d in source], [self.axis(d) for d in destination]
        if len(set(src)) != len(src) or len(set(dst)) != len(dst) or len(src) != len(dst):
            raise ValueError(f"[view] expected distinct dimensions, found {list(source)} -> {list(destination)}")
        order: list[int | None] = [None] * self.ndim
        for s, d in zip(src, dst, strict=True):
            order[d] = s
        rest = iter(d for d in range(self.ndim) if d not in src)
        return self.permute([next(rest) if o is None else o for o in order])

    def unsqueeze(self, dim: int) -> View:
        """A dimension of size 1 is put in before `dim`."""
        if not -self.ndim - 1 <= dim <= self.ndim:
            raise ValueError(f"[view] expected a dimension in [{-self.ndim - 1}, {self.ndim}], found {dim}")
        at = dim % (self.ndim + 1)
        stride = self.strides[at] * self.shape[at] if at < self.ndim else ONE
        return replace(
            self,
            shape=(*self.shape[:at], ONE, *self.shape[at:]),
            strides=(*self.strides[:at], stride, *self.strides[at:]),
        )

    def squeeze(self, dims: Sequence[int] | None = None) -> View:
        """Dimensions of size 1 among `dims` (None: all) go away."""
        among = range(self.ndim) if dims is None else [self.axis(d) for d in dims]
        keep = [d for d in range(self.ndim) if d not in among or self.shape[d] != ONE]
        return replace(self, shape=tuple(self.shape[d] for d in keep), strides=tuple(self.strides[d] for d in keep))

    def diagonal(self, dim0: int, dim1: int) -> View | None:
        """The main diagonal of two dimensions of one size, as the last dimension."""
        a, b = self.axis(dim0), self.axis(dim1)
        stride = self.strides[a].add(self.strides[b])
        if a == b or self.shape[a] != self.shape[b] or stride is None:
            return None
        keep = [d for d in range(self.ndim) if d not in (a, b)]
        return replace(
            self,
            shape=(*(self.shape[d] for d in keep), self.shape[a]),
            strides=(*(self.strides[d] for d in keep), stride),
        )

    # Parts.

    def slice(self, dim: int, start: int, stop: Dim | int, step: int = 1) -> View | None:
        """Elements start, start+step, ... below stop; bounds as Python's slices have them.

        A dimension in T or R can only be kept whole: anything else would single out tokens.

        Raises:
            ValueError: part of a symbolic dimension is asked for, or the step is not positive.
        """
        at = self.axis(dim)
        size = self.shape[at]
        if step < 1:
            raise ValueError(f"[view] expected a step >= 1, found {step}")
        if not size.is_static:
            reaches = stop == size or (isinstance(stop, int) and stop >= 2**31)
            if start == 0 and reaches and step == 1:
                return self
            if isinstance(stop, Dim) and start == 0 and step == 1 and size.divide(stop) is not None:
                return self._part(at, 0, stop, self.strides[at])  # within a body: the first blocks of so many
            raise ValueError(f"[view] expected all of a dimension of size {size}, found {start}:{stop}:{step}")
        limit = as_dim(stop).factor if not isinstance(stop, int) else stop
        first, last, _ = slice(start, limit, step).indices(size.factor)
        count = max(0, -(-(last - first) // step))
        return self._part(at, first if count else 0, Dim(count), self.strides[at] * step)

    def narrow(self, dim: int, start: int, length: Dim | int) -> View | None:
        """`length` elements from `start` on."""
        at = self.axis(dim)
        length = as_dim(length)
        if start == 0 and length == self.shape[at]:
            return self
        return self.slice(dim, start, start + length.factor if length.is_static else length)

    def select(self, dim: int, index: int) -> View | None:
        """One element of a dimension, which goes away."""
        at = self.axis(dim)
        size = self.shape[at]
        if not size.is_static or not -size.factor <= index < size.factor:
            raise ValueError(f"[view] expected an index into a dimension of size {size}, found {index}")
        part = self._part(at, index % size.factor, ONE, self.strides[at])
        return None if part is None else part.squeeze([at])

    def split(self, sizes: Sequence[int], dim: int) -> list[View] | None:
        """Consecutive parts of these sizes."""
        at = self.axis(dim)
        if not self.shape[at].is_static or sum(sizes) != self.shape[at].factor:
            raise ValueError(f"[view] expected parts that add up to {self.shape[at]}, found {list(sizes)}")
        parts: list[View] = []
        start = 0
        for size in sizes:
            part = self.narrow(at, start, size)
            if part is None:
                return None
            parts.append(part)
            start += size
        return parts

    def unfold(self, dim: int, size: int, step: int) -> View | None:
        """Windows of `size` elements every `step`, as a new last dimension."""
        at = self.axis(dim)
        length = self.shape[at]
        if not length.is_static or size > length.factor or size < 0 or step < 1:
            raise ValueError(f"[view] expected windows within {length} elements, found size {size}, step {step}")
        count = Dim((length.factor - size) // step + 1)
        return replace(
            self,
            shape=(*self.shape[:at], count, *self.shape[at + 1 :], Dim(size)),
            strides=(*self.strides[:at], self.strides[at] * step, *self.strides[at + 1 :], self.strides[at]),
        )

    def _part(self, at: int, first: int, size: Dim, stride: Dim) -> View | None:
        offset = self.offset.add(self.strides[at] * first)
        if offset is None:
            return None
        return replace(
            self,
            shape=(*self.shape[:at], size, *self.shape[at + 1 :]),
            strides=(*self.strides[:at], stride, *self.strides[at + 1 :]),
            offset=offset,
        )

    # Broadcasting and regrouping.

    def expand(self, shape: Sequence[Dim | int]) -> View:
        """Dimensions of size 1 are repeated (stride 0) to `shape`; -1 keeps a size; new dimensions come in front.

        Raises:
            ValueError: a dimension of another size would have to change.
        """
        lead = len(shape) - self.ndim
        if lead < 0:
            raise ValueError(f"[view] expected at least {self.ndim} dimensions, found {len(shape)}")
        sizes: list[Dim] = []
        strides: list[Dim] = []
        for i, wanted in enumerate(shape):
            have = self.shape[i - lead] if i >= lead else ONE
            stride = self.strides[i - lead] if i >= lead else ZERO
            if wanted == -1:
                wanted = have
            dim = as_dim(wanted)
            if dim != have and have != ONE:
                raise ValueError(f"[view] expected a size that broadcasts to {dim}, found {have} in dimension {i}")
            sizes.append(dim)
            strides.append(stride if dim == have and i >= lead else ZERO)
        return replace(self, shape=tuple(sizes), strides=tuple(strides))

    def reshape(self, shape: Sequence[Dim | int]) -> View | None:
        """The same elements in the same order under another shape (no -1: shapes come from shape inference).

        Groups of dimensions that lie one after another in memory may merge and split; None where that does not suffice.

        Raises:
            ValueError: the number of elements differs.
        """
        wanted = tuple(as_dim(d) for d in shape)
        if numel(wanted) != numel(self.shape):
            found = ", ".join(map(str, wanted))
            raise ValueError(f"[view] expected {numel(self.shape)} elements, found the shape ({found})")
        if numel(wanted) == ZERO:
            return replace(self, shape=wanted, strides=contiguous_strides(wanted))
        groups = self._groups()
        strides: list[Dim] = [ONE] * len(wanted)
        at = len(wanted) - 1
        for size, stride in reversed(groups):
            rest = size
            while rest != ONE:
                if at < 0:
                    return None
                if wanted[at] != ONE:
                    quotient = rest.divide(wanted[at])
                    if quotient is None:
                        return None
                    strides[at] = stride
                    stride, rest = stride * wanted[at], quotient
                at -= 1
        return replace(self, shape=wanted, strides=tuple(strides)).normalized()

    def _groups(self) -> list[tuple[Dim, Dim]]:
        """Maximal runs of dimensions that are one in memory: (size, stride), outermost first, none of size 1."""
        groups: list[tuple[Dim, Dim]] = []
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size == ONE:
                continue
            if groups and groups[-1][0] * groups[-1][1] == stride:
                groups[-1] = (groups[-1][0] * size, groups[-1][1])
            else:
                groups.append((size, stride))
        return groups[::-1]


def broadcast_shapes(*shapes: Sequence[Dim]) -> Shape:
    """The common shape of tensors that are combined element by element.

    Raises:
        ValueError: two sizes differ and neither is 1.
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = [ONE] * rank
    for shape in shapes:
        for i, dim in enumerate(shape, start=rank - len(shape)):
            if result[i] == ONE:
                result[i] = dim
            elif dim not in (ONE, result[i]):
                raise ValueError(f"[view] expected sizes that broadcast, found {result[i]} and {dim} in dimension {i}")
    return tuple(result)
