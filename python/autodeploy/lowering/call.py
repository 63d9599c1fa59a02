"""One node of the graph on its way into the Program: its arguments as views and dims, its results as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from autodeploy.artifact.program import Attr

from . import layout
from .builder import LoweringError, ProgramBuilder
from .dims import ONE, Dim, as_dim
from .views import Shape, View

# Program dtype of a traced dtype. Every integer is i64; a float of another type was not captured in bfloat16.
_DTYPES = {
    torch.bfloat16: "act",
    torch.float32: "f32",
    torch.bool: "bool",
    torch.int64: "i64",
    torch.int32: "i64",
    torch.int16: "i64",
    torch.int8: "i64",
    torch.uint8: "i64",
}


class Sizes:
    """Reads traced sizes as dims: `T` is the token symbol; the other free symbol, that of selected rows, is `R`."""

    def __init__(self, tokens: torch.SymInt) -> None:
        self._tokens = tokens.node.expr

    def dim(self, size: int | torch.SymInt) -> Dim:
        """The Dim of a traced size; ValueError where it is no product of a number and symbols."""
        if isinstance(size, int):
            return Dim(size)
        factor, rest = sympy.expand(size.node.expr).as_coeff_Mul()
        result = Dim(int(factor)) if factor.is_Integer and factor >= 0 else None
        for base, power in rest.as_powers_dict().items():
            if result is None or not (base.is_Symbol or base == 1) or not power.is_Integer or power < 0:
                raise ValueError(f"[size] expected a multiple of T or R, found {size} (T is {self._tokens})")
            if base.is_Symbol:
                result = result * (Dim(1, t=int(power)) if base == self._tokens else Dim(1, r=int(power)))
        if result is None:
            raise ValueError(f"[size] expected a number >= 0, found {size}")
        return result

    def shape(self, sizes: Sequence[int | torch.SymInt]) -> Shape:
        """The dims of a traced shape."""
        return tuple(self.dim(s) for s in sizes)


class Call:
    """A call_function node with its arguments resolved; handlers turn it into views or instructions."""

    def __init__(self, builder: ProgramBuilder, sizes: Sizes, env: dict[Node, Any], node: Node) -> None:
        self.builder = builder
        self.sizes = sizes
        self.env = env
        self.node = node
        self.source = str(node.meta.get("source", ""))
        self._bound: dict[str, Any] | None = None

    @property
    def op(self) -> str:
        """Name of the call's target, for messages."""
        target = self.node.target
        return str(target) if isinstance(target, (str, torch._ops.OpOverload)) else getattr(target, "__name__", "call")

    def error(self, message: str) -> LoweringError:
        """An error that names the op, the node and the model's line."""
        return LoweringError(f"[{self.op}] {message} (node {self.node.name}, {self.source or 'unknown source'})")

    # Arguments.

    def __getitem__(self, name: str) -> Any:
        """An argument by its schema name: views, dims, numbers, or lists of them."""
        if self._bound is None:
            schema = self.node.target._schema.arguments
            positional = [a.name for a in schema if not a.kwarg_only]
            bound = {a.name: a.default_value for a in schema if a.has_default_value()}
            bound |= dict(zip(positional, self.node.args, strict=False)) | self.node.kwargs
            self._bound = {key: self.resolve(value) for key, value in bound.items()}
        return self._bound.get(name)

    def resolve(self, value: Any) -> Any:
        """A node's argument: nodes become what they were lowered to, sizes become dims (or ints where static)."""
        if isinstance(value, Node):
            meta = value.meta.get("val")
            if isinstance(meta, (int, torch.SymInt)) and not isinstance(meta, bool):
                return self._size(meta)
            if value not in self.env:
                raise self.error(f"expected a lowered operand, found {value.name}")
            return self.env[value]
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if isinstance(value, (list, tuple)):
            return [self.resolve(v) for v in value]
        return value

    def _size(self, size: int | torch.SymInt) -> int | Dim:
        dim = self._try(lambda: self.sizes.dim(size))
        return dim.factor if dim.is_static else dim

    def _try(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except LoweringError:
            raise
        except ValueError as error:
            raise self.error(str(error)) from error

    def view(self, name: str) -> View:
        """A tensor argument."""
        found = self[name]
        if not isinstance(found, View):
            raise self.error(f"expected a tensor as {name}, found {found!r}")
        return found

    def integer(self, name: str) -> int:
        """An argument that must not depend on the step."""
        found = self[name]
        if isinstance(found, bool) or not isinstance(found, int):
            raise self.error(f"expected a static integer as {name}, found {found}")
        return found

    def integers(self, name: str) -> list[int]:
        """A list of static integers; a single one counts as a list."""
        found = self[name]
        found = found if isinstance(found, list) else [found]
        for item in found:
            if isinstance(item, bool) or not isinstance(item, int):
                raise self.error(f"expected static integers as {name}, found {item}")
        return found

    # Results.

    @property
    def results(self) -> list[torch.Tensor]:
        """The traced results."""
        val = self.node.meta["val"]
        return list(val) if isinstance(val, (tuple, list)) else [val]

    def shape(self, result: int = 0) -> Shape:
        """Shape of a result."""
        return self._try(lambda: self.sizes.shape(self.results[result].shape))

    def dtype(self, result: int = 0) -> str:
        """Program dtype of a result."""
        traced = self.results[result].dtype
        if traced not in _DTYPES:
            raise self.error(f"expected a result in bfloat16, float32, an integer type or bool, found {traced}")
        return _DTYPES[traced]

    def new_value(self, shape: Sequence[Dim], dtype: str, result: int = 0) -> View:
        """A value for a result, named after the node."""
        name = self.node.name if len(self.results) == 1 else f"{self.node.name}.{result}"
        return self._try(lambda: self.builder.value(name, dtype, shape))

    # Doing.

    def viewed(self, view: View, function: Callable[[View], View | list[View] | None]) -> Any:
        """function(view), or of a copy of it where that moves data."""
        found = self._try(lambda: function(view))
        if found is None:
            found = self._try(lambda: function(self.copy(view)))
        if found is None:
            raise self.error(f"expected a view, found none even of a copy of shape {_text(view.shape)}")
        return found

    def copy(self, view: View) -> View:
        """A row-major copy."""
        return self._try(lambda: self.builder.copy(view, self.source))

    def laid_out(self, op: str, view: View | None) -> View | None:
        """The view, or a copy where the op's layout rule asks for one."""
        if view is None or layout.fits(op, view):
            return view
        return self.copy(view)

    def emit(
        self,
        op: str,
        inputs: Sequence[View | None],
        outputs: Sequence[View],
        attrs: dict[str, Attr],
        **more: Any,
    ) -> None:
        """Appends an instruction; operands are copied where its layout rule asks for it."""
        placed = [self.laid_out(op, v) for v in inputs]
        self._try(lambda: self.builder.emit(op, placed, outputs, attrs, source=self.source, **more))

    def static(self, view: View, dims: Sequence[int], what: str) -> list[int]:
        """The axes `dims`, which must not be the tokens."""
        axes = [self._try(lambda d=d: view.axis(d)) for d in dims]
        for axis in axes:
            if not self.builder.is_fixed(view.shape[axis]):
                raise self.error(f"expected to {what} within a token, found the dimension {view.shape[axis]}")
        return axes


def without_ones(views: Sequence[View], keep: Sequence[int]) -> tuple[list[View], list[int]]:
    """Drops dimensions that have size 1 in all of these equally ranked views, except `keep`.

    Returns the views and where the dimensions `keep` have gone.
    """
    rank = views[0].ndim
    gone = [d for d in range(rank) if d not in keep and all(v.shape[d] == ONE for v in views)]
    left = [d for d in range(rank) if d not in gone]
    return [v.squeeze(gone) for v in views], [left.index(d) for d in keep]


def as_shape(sizes: Sequence[Dim | int]) -> Shape:
    """Sizes as dims."""
    return tuple(as_dim(s) for s in sizes)


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
