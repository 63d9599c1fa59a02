"""Meta tensors that write down, as expressions, what torch does to them.

transformers' own conversion code runs on `Recorded` tensors, which have shapes but no values; what comes out knows how
it was made. Only functions that a weight program can express are allowed; any other is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import expr as e
from .errors import WeightError
from .expr import Expr
from .formats import is_block

_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
_FORMATS = {dtype: fmt for fmt, dtype in _DTYPES.items()}


class Recorded(torch.Tensor):
    """A meta tensor with an expression; block formats show as float32."""

    expr: Expr

    @staticmethod
    def make(expr: Expr) -> Recorded:
        meta = torch.empty(expr.shape, dtype=_DTYPES.get(expr.format, torch.float32), device="meta")
        out = torch.Tensor._make_subclass(Recorded, meta)
        out.expr = expr
        return out

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE:
            return torch.device("cpu")  # so that constants which follow it, such as index lists, keep their values
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*_plain(args), **_plain(kwargs))
        results = _tensors(result)
        if not results:
            return result  # a size, a dtype, a device
        name = str(_PROPERTIES.get(func) or getattr(func, "__name__", func))
        handler = _HANDLERS.get(name)
        if handler is None:
            raise WeightError(f"[{name}] the checkpoint's conversion uses torch's {name}, which weights cannot express")
        made = handler(_Call(args, kwargs, results))
        for x, t in zip(made, results, strict=True):
            if x.shape != tuple(t.shape):
                raise WeightError(f"[{name}] recorded the shape {list(x.shape)}, torch made {list(t.shape)}")
        wrapped = [Recorded.make(x) for x in made]
        return wrapped[0] if isinstance(result, torch.Tensor) else type(result)(wrapped)


class _Call:
    """A call under record: its arguments, and the meta tensors that torch made."""

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], results: list[torch.Tensor]) -> None:
        self.args, self.kwargs, self.results = args, kwargs, results

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def x(self) -> Expr:
        found = self.arg(0, "input")
        if not isinstance(found, Recorded):
            raise WeightError("[record] expected a recorded tensor as the first operand")
        return found.expr

    def dim(self, position: int, name: str = "dim", default: int = 0, extra: int = 0) -> int:
        """A dimension, counted from the end if negative; `extra` for ops that add one."""
        dim = int(self.arg(position, name, default))
        return dim % (len(self.x().shape) + extra)

    def keep(self, f: Callable[[Expr], Expr]) -> list[Expr]:
        return [e.on_values(f, self.x())]


def _plain(x: Any) -> Any:
    if isinstance(x, Recorded):
        return x.as_subclass(torch.Tensor)
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    return type(x)(_plain(y) for y in x) if type(x) in (list, tuple) else x


def _tensors(x: Any) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    return [y for y in x if isinstance(y, torch.Tensor)] if isinstance(x, (list, tuple)) else []


def _same(c: _Call) -> list[Expr]:
    return [c.x()]


def _reshaped(c: _Call) -> list[Expr]:
    """Everything that keeps the row-major order: the result's shape says all."""
    return c.keep(lambda x: e.reshape(x, tuple(c.results[0].shape)))


def _cast(c: _Call) -> list[Expr]:
    """A conversion. One to bfloat16, in which models are captured, is to the activations' type, bound when loaded."""
    dtype = c.results[0].dtype
    if dtype == torch.bfloat16:
        return [c.x()]
    if dtype not in _FORMATS:
        raise WeightError(f"[cast] the checkpoint's conversion casts to {dtype}, which weights cannot express")
    if is_block(c.x().format) and dtype == torch.float32:
        return [c.x()]  # blocks already stand for float32 numbers
    return [e.cast(c.x(), _FORMATS[dtype])]


def _join(f: Callable[[Sequence[Expr], int], Expr]) -> Callable[[_Call], list[Expr]]:
    def handler(c: _Call) -> list[Expr]:
        tensors = c.arg(0, "tensors")
        if not all(isinstance(t, Recorded) for t in tensors):
            raise WeightError("[cat] expected recorded tensors alone")
        rank = tensors[0].dim() + (f is e.stack)
        return [e.join(f, [t.expr for t in tensors], int(c.arg(1, "dim", 0)) % rank)]

    return handler


def _split(c: _Call) -> list[Expr]:
    """chunk, split, tensor_split: consecutive pieces of one dimension."""
    dim, at, out = c.dim(2), 0, []
    for t in c.results:
        low, high = at, at + t.shape[dim]
        out += c.keep(lambda x, low=low, high=high: e.slice_(x, dim, low, high))  # type: ignore[misc]
        at = high
    return out


def _unbind(c: _Call) -> list[Expr]:
    dim, shape = c.dim(1), tuple(c.results[0].shape)
    return [_select(c, dim, i, shape) for i in range(len(c.results))]


def _select(c: _Call, dim: int, i: int, shape: tuple[int, ...]) -> Expr:
    return c.keep(lambda x: e.reshape(e.slice_(x, dim, i, i + 1), shape))[0]


def _select_one(c: _Call) -> list[Expr]:
    dim = c.dim(1)
    return [_select(c, dim, int(c.arg(2, "index")) % c.x().shape[dim], tuple(c.results[0].shape))]


def _narrow(c: _Call) -> list[Expr]:
    dim, start, length = c.dim(1), int(c.arg(2, "start")), int(c.arg(3, "length"))
    start %= max(c.x().shape[dim], 1)
    return c.keep(lambda x: e.slice_(x, dim, start, start + length))


def _dims(values: Any) -> list[int]:
    flat = values[0] if len(values) == 1 and isinstance(values[0], (list, tuple, torch.Size)) else values
    return [int(d) for d in flat]


def _permute(c: _Call) -> list[Expr]:
    rank = len(c.x().shape)
    dims = [d % rank for d in _dims(c.args[1:] or (c.kwargs["dims"],))]
    return c.keep(lambda x: e.permute(x, dims))


def _transpose(c: _Call) -> list[Expr]:
    a, b = c.dim(1, "dim0"), c.dim(2, "dim1")
    order = list(range(len(c.x().shape)))
    order[a], order[b] = order[b], order[a]
    return c.keep(lambda x: e.permute(x, order))


def _reverse_dims(c: _Call) -> list[Expr]:
    return c.keep(lambda x: e.permute(x, list(range(len(x.shape)))[::-1]))


def _matrix_transpose(c: _Call) -> list[Expr]:
    order = list(range(len(c.x().shape)))
    order[-2:] = order[:-3:-1]
    return c.keep(lambda x: e.permute(x, order))


def _flip(c: _Call) -> list[Expr]:
    rank = len(c.x().shape)
    dims = {d % rank for d in _dims(c.args[1:] or (c.kwargs["dims"],))}

    def flip(x: Expr) -> Expr:
        for d in sorted(dims):
            x = e.take(x, d, range(x.shape[d])[::-1])
        return x

    return c.keep(flip)


def _index_select(c: _Call) -> list[Expr]:
    dim, index = c.dim(1), c.arg(2, "index")
    return c.keep(lambda x: e.take(x, dim, index.tolist()))


def _getitem(c: _Call) -> list[Expr]:
    """Integers, slices, None, Ellipsis and at most one index list."""
    keys = c.args[1] if isinstance(c.args[1], tuple) else (c.args[1],)
    shape = tuple(c.results[0].shape)

    def pick(x: Expr) -> Expr:
        used = sum(k is not None and k is not Ellipsis for k in keys)
        dim = 0
        for k in keys:
            if k is Ellipsis:
                dim += len(x.shape) - used
            elif isinstance(k, slice):
                start, stop, step = k.indices(x.shape[dim])
                x = e.slice_(x, dim, start, max(start, stop), step)
                dim += 1
            elif isinstance(k, int):
                k %= x.shape[dim]
                x = e.slice_(x, dim, k, k + 1)
                dim += 1
            elif isinstance(k, (list, torch.Tensor)) and not isinstance(k, Recorded):
                index = torch.as_tensor(k)
                index = index.nonzero().flatten() if index.dtype == torch.bool else index
                if index.dim() != 1 or sum(isinstance(o, (list, torch.Tensor)) for o in keys) > 1:
                    raise WeightError("[index] expected one list of indices")
                x = e.take(x, dim, (index % x.shape[dim]).tolist())
                dim += 1
            elif k is not None:
                raise WeightError(f"[index] cannot express an index of type {type(k).__name__}")
        return e.reshape(x, shape)

    return c.keep(pick)


def _unary(f: str) -> Callable[[_Call], list[Expr]]:
    return lambda c: _rounded(c, e.unary(f, c.x()))


def _binary(f: str, reflected: str = "") -> Callable[[_Call], list[Expr]]:
    def handler(c: _Call) -> list[Expr]:
        a, b = c.args[0], c.arg(1, "other")
        if c.kwargs.get("alpha", 1) != 1 or c.kwargs.get("rounding_mode") is not None:
            raise WeightError(f"[{f}] cannot express alpha or rounding_mode")
        if not isinstance(a, Recorded):
            if not reflected:
                raise WeightError(f"[{f}] cannot express a number on the left")
            return _rounded(c, e.binary(reflected, b.expr, _number(a)))
        return _rounded(c, e.binary(f, a.expr, b.expr if isinstance(b, Recorded) else _number(b)))

    return handler


def _number(x: Any) -> float:
    if isinstance(x, torch.Tensor) and x.numel() != 1:
        raise WeightError("[binary] cannot express arithmetic with a tensor that is not of the checkpoint")
    return float(x)


def _rounded(c: _Call, x: Expr) -> list[Expr]:
    """Expressions compute in float32; torch would round to the operands' type."""
    dtype = c.results[0].dtype
    return [x if dtype in (torch.float32, torch.float64) else e.cast(x, _FORMATS[dtype])]


_DEVICE: Any = torch.Tensor.device.__get__
_PROPERTIES: dict[Any, str] = {getattr(torch.Tensor, name).__get__: name for name in ("T", "mT", "data")}

_HANDLERS: dict[str, Callable[[_Call], list[Expr]]] = {
    **dict.fromkeys(("contiguous", "clone", "detach", "data", "cpu", "requires_grad_", "alias"), _same),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as"), _reshaped),
    **dict.fromkeys(("to", "type", "float", "half", "bfloat16", "double", "type_as"), _cast),
    "cat": _join(e.cat),
    "concat": _join(e.cat),
    "concatenate": _join(e.cat),
    "stack": _join(e.stack),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split),
    "unbind": _unbind,
    "select": _select_one,
    "narrow": _narrow,
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    "t": _reverse_dims,
    "T": _reverse_dims,
    "mT": _matrix_transpose,
    "flip": _flip,
    "index_select": _index_select,
    "__getitem__": _getitem,
    **{name: _unary(name) for name in e.UNARY},
    "negative": _unary("neg"),
    "__neg__": _unary("neg"),
    **dict.fromkeys(("add", "__add__", "__radd__"), _binary("add", "add")),
    **dict.fromkeys(("sub", "subtract", "__sub__"), _binary("sub", "rsub")),
    **dict.fromkeys(("rsub", "__rsub__"), _binary("rsub")),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _binary("mul", "mul")),
    **dict.fromkeys(("div", "divide", "true_divide", "__div__", "__truediv__"), _binary("div", "rdiv")),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), _binary("rdiv")),
    **dict.fromkeys(("pow", "__pow__"), _binary("pow")),
}
