"""ATen ops that move no data: each becomes a view of its operand, or a view of a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .call import Call, as_shape
from .dims import Dim
from .views import View

Handler = Callable[[Call], Any]


def _identity(call: Call) -> View:
    return call.view("self")


def _dropout(call: Call) -> View:
    if call["train"]:
        raise call.error("expected a model in evaluation mode, found dropout that is switched on")
    return call.view("input")


def _reshape(call: Call) -> View:
    # Shape inference has already resolved -1.
    shape = call.shape()
    return call.viewed(call.view("self"), lambda v: v.reshape(shape))


def _expand(call: Call) -> View:
    shape = call.shape()
    return call.viewed(call.view("self"), lambda v: v.expand(shape))


def _squeeze(call: Call) -> View:
    dims = call["dim"]
    # Only sizes that are 1 for every step went away when the graph was traced.
    return call.view("self").squeeze(None if dims is None else call.integers("dim"))


def _transpose_last(call: Call) -> View:
    view = call.view("self")
    return view if view.ndim < 2 else view.transpose(-2, -1)


def _reverse(call: Call) -> View:
    view = call.view("self")
    return view.permute(list(reversed(range(view.ndim))))


def _movedim(call: Call) -> View:
    return call.view("self").movedim(call.integers("source"), call.integers("destination"))


def _slice(call: Call) -> View:
    start, stop, step = call["start"], call["end"], call.integer("step")
    begin = 0 if start is None else start
    if isinstance(begin, Dim):
        raise call.error(f"expected a static start, found {begin}")
    end = 2**63 - 1 if stop is None else stop
    return call.viewed(call.view("self"), lambda v: v.slice(call.integer("dim"), begin, end, step))


def _narrow(call: Call) -> View:
    length = as_shape([call["length"]])[0]
    return call.viewed(call.view("self"), lambda v: v.narrow(call.integer("dim"), call.integer("start"), length))


def _select(call: Call) -> View:
    return call.viewed(call.view("self"), lambda v: v.select(call.integer("dim"), call.integer("index")))


def _split(call: Call) -> list[View]:
    view = call.view("self")
    dim = view.axis(call.integer("dim"))
    sizes = [call.shape(i)[dim] for i in range(len(call.results))]
    if len(sizes) == 1:
        return [view]
    call.static(view, [dim], "split")
    return call.viewed(view, lambda v: v.split([s.factor for s in sizes], dim))


def _unbind(call: Call) -> list[View]:
    view = call.view("self")
    dim = call.integer("dim")
    (axis,) = call.static(view, [dim], "split")
    return [call.viewed(view, lambda v, i=i: v.select(axis, i)) for i in range(view.shape[axis].factor)]


def _unfold(call: Call) -> View:
    view = call.view("self")
    (axis,) = call.static(view, [call.integer("dimension")], "take windows")
    return call.viewed(view, lambda v: v.unfold(axis, call.integer("size"), call.integer("step")))


def _diagonal(call: Call) -> View:
    if call.integer("offset"):
        raise call.error(f"expected the main diagonal, found offset {call['offset']}")
    return call.viewed(call.view("self"), lambda v: v.diagonal(call.integer("dim1"), call.integer("dim2")))


VIEW_OPS: dict[str, Handler] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "lift_fresh", "positive"), _identity),
    **dict.fromkeys(("dropout", "feature_dropout"), _dropout),
    **dict.fromkeys(
        ("view.default", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as"),
        _reshape,
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", "expand_copy"), _expand),
    "permute": lambda call: call.view("self").permute(call.integers("dims")),
    **dict.fromkeys(
        ("transpose", "swapaxes", "swapdims"),
        lambda call: call.view("self").transpose(*(call.integer(n) for n in _pair(call))),
    ),
    **dict.fromkeys(("t", "mT", "matrix_transpose"), _transpose_last),
    "numpy_T": _reverse,
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    "unsqueeze": lambda call: call.view("self").unsqueeze(call.integer("dim")),
    "squeeze": _squeeze,
    "slice.Tensor": _slice,
    "narrow": _narrow,
    "select.int": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    "unbind": _unbind,
    "unfold": _unfold,
    "diagonal": _diagonal,
}


def _pair(call: Call) -> tuple[str, str]:
    names = [a.name for a in call.node.target._schema.arguments]
    return names[1], names[2]
