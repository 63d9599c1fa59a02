"""ATen ops of the token-wise tail: each becomes one generic instruction of docs/program.md, or a few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autodeploy.artifact.program import Attr, Region, RegionNode

from .call import Call, without_ones
from .dims import ONE, Dim, numel
from .views import View

Handler = Callable[[Call], Any]


def cast(call: Call, view: View, dtype: str) -> View:
    """The view in another dtype."""
    if view.dtype == dtype:
        return view
    region = Region((view.dtype,), (RegionNode("cast", dtype, (0,)),), (1,))
    result = call.builder.value(f"{call.node.name}.{dtype}", dtype, view.shape)
    call.emit("region", [view], [result], {"region": call.builder.region(region)})
    return result


def generic(
    call: Call, op: str, views: Sequence[View], dims: Sequence[int], attrs: Callable[[list[int]], dict[str, Attr]]
) -> list[View]:
    """Emits a generic op whose results keep the rank of its operands.

    `dims` are the axes the op works along; dimensions of size 1 elsewhere are left out. `attrs` makes the attributes
    from where these axes have gone.
    """
    squeezed, axes = without_ones(views, dims)
    gone = [d for d in range(views[0].ndim) if d not in dims and all(v.shape[d] == ONE for v in views)]
    results = []
    for i in range(len(call.results)):
        shape = call.shape(i)
        value = call.new_value([s for d, s in enumerate(shape) if d not in gone], call.dtype(i), i)
        results.append(value)
    call.emit(op, squeezed, results, attrs(axes))
    return [call.viewed(r, lambda v, i=i: v.reshape(call.shape(i))) for i, r in enumerate(results)]


def _one(results: list[View]) -> View:
    return results[0]


def _cat(call: Call) -> View:
    views = [v for v in call["tensors"] if v.shape != (Dim(0),)]  # torch lets empty lists through
    (dim,) = call.static(views[0], [call.integer("dim")], "join")
    views = [cast(call, v, call.dtype()) for v in views if v.shape[dim] != Dim(0)]
    return _one(generic(call, "cat", views, [dim], lambda axes: {"dim": axes[0]}))


def _stack(call: Call) -> View:
    views = call["tensors"]
    dim = call.integer("dim") % (views[0].ndim + 1)
    views = [cast(call, v.unsqueeze(dim), call.dtype()) for v in views]
    return _one(generic(call, "cat", views, [dim], lambda axes: {"dim": axes[0]}))


def _axes(call: Call, view: View, name: str = "dim") -> list[int]:
    dims = call[name]
    if dims is None or dims == []:
        dims = list(range(view.ndim))
    return call.static(view, dims if isinstance(dims, list) else [dims], "reduce")


def _reduce(kind: str, dtype: str | None = None) -> Handler:
    """A handler of a reduction; operands are first taken to `dtype`, or to the result's dtype where None."""

    def handler(call: Call) -> View:
        view = call.view("self")
        axes = sorted(_axes(call, view))
        view = cast(call, view, dtype or call.dtype())
        keep = [d for d in range(view.ndim) if d in axes or view.shape[d] != ONE]
        inner = view.squeeze([d for d in range(view.ndim) if d not in keep])
        dims = [keep.index(d) for d in axes]
        value = call.new_value([s for i, s in enumerate(inner.shape) if i not in dims], call.dtype())
        call.emit("reduce", [inner], [value], {"kind": kind, "dims": dims, "keepdim": False})
        return call.viewed(value, lambda v: v.reshape(call.shape()))

    return handler


def _arg_reduce(kind: str) -> Handler:
    def handler(call: Call) -> View:
        view = call.view("self")
        if call["dim"] is None:
            raise call.error(f"expected a dimension, found {kind} over all of [{', '.join(map(str, view.shape))}]")
        return _reduce(kind, view.dtype)(call)

    return handler


def _softmax(op: str) -> Handler:
    def handler(call: Call) -> View:
        view = cast(call, call.view("self"), call.dtype())
        (dim,) = call.static(view, [call.integer("dim")], "normalise")
        return _one(generic(call, op, [view], [dim], lambda axes: {"dim": axes[0]}))

    return handler


def _extreme_along(largest: bool) -> Handler:
    """max(x, dim) and min(x, dim): values and the first index of each."""

    def handler(call: Call) -> list[View]:
        view = call.view("self")
        (dim,) = call.static(view, [call.integer("dim")], "reduce")
        shape = [ONE if d == dim else s for d, s in enumerate(view.shape)]
        results = [call.new_value(shape, call.dtype(i), i) for i in range(2)]
        call.emit("topk", [view], results, {"k": 1, "dim": dim, "largest": largest})
        return [call.viewed(r, lambda v, i=i: v.reshape(call.shape(i))) for i, r in enumerate(results)]

    return handler


def _topk(call: Call) -> list[View]:
    view = call.view("self")
    (dim,) = call.static(view, [call.integer("dim")], "rank")
    k, largest = call.integer("k"), bool(call["largest"])
    return generic(call, "topk", [view], [dim], lambda axes: {"k": k, "dim": axes[0], "largest": largest})


def _sort(call: Call) -> list[View]:
    view = call.view("self")
    (dim,) = call.static(view, [call.integer("dim")], "sort")
    descending = bool(call["descending"])
    return generic(call, "sort", [view], [dim], lambda axes: {"dim": axes[0], "descending": descending})


def _argsort(call: Call) -> View:
    view = call.view("self")
    (dim,) = call.static(view, [call.integer("dim")], "sort")
    values = call.builder.value(f"{call.node.name}.values", view.dtype, view.shape)
    indices = call.new_value(view.shape, "i64")
    call.emit("sort", [view], [values, indices], {"dim": dim, "descending": bool(call["descending"])})
    return indices


def _cumsum(call: Call) -> View:
    view = cast(call, call.view("self"), call.dtype())
    (dim,) = call.static(view, [call.integer("dim")], "add up")
    return _one(generic(call, "cumsum", [view], [dim], lambda axes: {"dim": axes[0]}))


def _matmul(call: Call) -> View:
    first = "input" if call["input"] is not None else "self"
    second = next(n for n in ("other", "mat2") if call[n] is not None)
    a, b = call.view(first), call.view(second)
    a = a.unsqueeze(0) if a.ndim == 1 else a
    b = b.unsqueeze(1) if b.ndim == 1 else b
    rank = max(a.ndim, b.ndim)
    lead = _batch_dims(call, a, b, rank)
    rows, columns = a.shape[-2], b.shape[-1]
    a, b = a.expand([*lead, -1, -1]), b.expand([*lead, -1, -1])
    gone = [d for d, size in enumerate(lead) if size == ONE]
    a, b = a.squeeze(gone), b.squeeze(gone)
    value = call.new_value([*(s for s in lead if s != ONE), rows, columns], call.dtype())
    call.emit("matmul", [a, b], [value], {})
    return call.viewed(value, lambda v: v.reshape(call.shape()))


def _batch_dims(call: Call, a: View, b: View, rank: int) -> list[Dim]:
    """The broadcast batch dimensions of a product."""
    lead = []
    for d in range(rank - 2):
        sizes = [v.shape[d - (rank - v.ndim)] for v in (a, b) if d >= rank - v.ndim]
        wide = [s for s in sizes if s != ONE]
        if any(s != wide[0] for s in wide):
            raise call.error(f"expected batch dimensions that broadcast, found {wide[0]} and {wide[1]}")
        lead.append(wide[0] if wide else ONE)
    return lead


def _gather(call: Call) -> View:
    view, index = call.view("self"), call.view("index")
    (dim,) = call.static(view, [call.integer("dim")], "gather")
    view = _like_index(call, view, index, dim)
    return _one(generic(call, "gather", [view, index], [dim], lambda axes: {"dim": axes[0]}))


def _like_index(call: Call, view: View, index: View, dim: int) -> View:
    """The part of `view` that `index` reaches: other dimensions are cut to the index's size."""
    for d in range(view.ndim):
        if d != dim and view.shape[d] != index.shape[d]:
            view = call.viewed(view, lambda v, d=d: v.narrow(d, 0, index.shape[d]))
    return view


def _scatter(reduce: str) -> Handler:
    def handler(call: Call) -> View:
        view, index = call.view("self"), call.view("index")
        (dim,) = call.static(view, [call.integer("dim")], "scatter")
        source = call["src"]
        if source is None:
            source = filled(call, call["value"], view.dtype, index.shape)
        if any(view.shape[d] != index.shape[d] for d in range(view.ndim) if d != dim):
            raise call.error("expected an index that differs from the operand along the scattered dimension alone")
        source = cast(call, _like_index(call, source, index, -1), view.dtype)
        attrs: Callable[[list[int]], dict[str, Attr]] = lambda axes: {"dim": axes[0], "reduce": reduce}  # noqa: E731
        return _one(generic(call, "scatter", [view, index, source], [dim], attrs))

    return handler


def _scatter_reduce(call: Call) -> View:
    if call["reduce"] != "sum" or not call["include_self"]:
        raise call.error(f"expected the reduction sum that includes self, found {call['reduce']}")
    return _scatter("add")(call)


def filled(call: Call, number: float, dtype: str, shape: Sequence[Dim]) -> View:
    """A tensor of one number: a single element, repeated by stride 0."""
    value = call.builder.value(f"{call.node.name}.full", dtype, [ONE])
    call.emit("full", [], [value], {"value": float(number)})
    return value.squeeze().expand(list(shape))


def _full(name: str | float) -> Handler:
    def handler(call: Call) -> View:
        number = call[name] if isinstance(name, str) else name
        if isinstance(number, Dim) or not isinstance(number, (int, float)):
            raise call.error(f"expected a number to fill with, found {number}")
        return filled(call, number, call.dtype(), call.shape())

    return handler


def _arange(call: Call) -> View:
    start, step = call["start"] or 0, 1 if call["step"] is None else call["step"]
    (size,) = call.shape()
    if not call.builder.is_fixed(size):
        raise call.error("expected positions from the step's input, found numbers counted over the tokens")
    if not isinstance(start, int) or not isinstance(step, int):
        raise call.error(f"expected whole numbers, found start {start} and step {step}")
    value = call.builder.value(call.node.name, "i64", [size])
    call.emit("arange", [], [value], {"start": start, "step": step})
    return cast(call, value, call.dtype())


def index_select(call: Call, view: View, dim: int, index: View) -> View:
    """view[..., index, ...] with the index's dimensions in the place of `dim`."""
    flat = call.viewed(index, lambda v: v.reshape([numel(index.shape)]))
    shape = [*view.shape[:dim], numel(index.shape), *view.shape[dim + 1 :]]
    squeezed, (axis,) = without_ones([view], [dim])
    kept = [s for d, s in enumerate(shape) if d == dim or view.shape[d] != ONE]
    value = call.new_value(kept, view.dtype)
    call.emit("index_select", [squeezed[0], flat], [value], {"dim": axis})
    wanted = [*view.shape[:dim], *index.shape, *view.shape[dim + 1 :]]
    return call.viewed(value, lambda v: v.reshape(wanted))


def _index_select(call: Call) -> View:
    view = call.view("self")
    (dim,) = call.static(view, [call.integer("dim")], "select")
    return index_select(call, view, dim, call.view("index"))


def _index(call: Call) -> View:
    view, indices = call.view("self"), call["indices"]
    used = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(used) != 1 or used[0][1].dtype != "i64":
        raise call.error(f"expected one index of integers, found {len(used)} ({', '.join(i.dtype for _, i in used)})")
    dim, index = used[0]
    call.static(view, [dim], "index")
    return index_select(call, view, dim, index)


def _embedding(call: Call) -> View:
    return index_select(call, call.view("weight"), 0, call.view("indices"))


def _flip(call: Call) -> View:
    view = call.view("self")
    for dim in call.static(view, call.integers("dims"), "turn round"):
        size = view.shape[dim]
        order = call.builder.value(f"{call.node.name}.order", "i64", [size])
        call.emit("arange", [], [order], {"start": size.factor - 1, "step": -1})
        view = index_select(call, view, dim, order)
    return view


def _roll(call: Call) -> View:
    view = call.view("self")
    shifts, dims = call.integers("shifts"), call.static(view, call.integers("dims"), "roll")
    for shift, dim in zip(shifts, dims, strict=True):
        size = view.shape[dim].factor
        cut = -shift % size if size else 0
        if cut:
            head = call.viewed(view, lambda v, d=dim, c=cut: v.slice(d, 0, c))
            tail = call.viewed(view, lambda v, d=dim, c=cut, s=size: v.slice(d, c, s))
            view = _one(generic(call, "cat", [tail, head], [dim], lambda axes: {"dim": axes[0]}))
    return view


def _repeat(call: Call) -> View:
    view = call.view("self")
    counts = call["repeats"]
    while view.ndim < len(counts):
        view = view.unsqueeze(0)
    inserted: list[Any] = []
    for d, count in enumerate(counts):
        inserted += [count, view.shape[d]]
    wide = view
    for d in range(view.ndim):
        wide = wide.unsqueeze(2 * d)
    wide = wide.expand(inserted)
    return call.viewed(wide, lambda v: v.reshape(call.shape()))


def _repeat_interleave(call: Call) -> View:
    view = call.view("self")
    if call["dim"] is None:
        view = call.viewed(view, lambda v: v.reshape([numel(v.shape)]))
    dim = view.axis(call["dim"] or 0)
    call.static(view, [dim], "repeat")
    sizes: list[Any] = [*view.shape[: dim + 1], call.integer("repeats"), *view.shape[dim + 1 :]]
    wide = view.unsqueeze(dim + 1).expand(sizes)
    return call.viewed(wide, lambda v: v.reshape(call.shape()))


def _pad(call: Call) -> View:
    view = call.view("self")
    pads = call.integers("pad")
    number = call["value"] or 0
    for i in range(0, len(pads), 2):
        dim = view.ndim - 1 - i // 2
        before, after = pads[i], pads[i + 1]
        if not before and not after:
            continue
        call.static(view, [dim], "pad")
        size = view.shape[dim].factor
        kept = call.viewed(view, lambda v, d=dim, b=before, a=after, s=size: v.slice(d, max(0, -b), s + min(0, a)))
        parts = [kept]
        for count, at in ((before, 0), (after, len(parts))):
            if count > 0:
                shape = [Dim(count) if d == dim else s for d, s in enumerate(view.shape)]
                parts.insert(at if at == 0 else len(parts), filled(call, number, view.dtype, shape))
        view = _joined(call, parts, dim)
    return view


def _joined(call: Call, parts: list[View], dim: int) -> View:
    if len(parts) == 1:
        return parts[0]
    total = sum(p.shape[dim].factor for p in parts)
    shape = [Dim(total) if d == dim else s for d, s in enumerate(parts[0].shape)]
    value = call.builder.value(call.node.name, parts[0].dtype, shape)
    call.emit("cat", parts, [value], {"dim": dim})
    return value


GENERIC_OPS: dict[str, Handler] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    "sum": _reduce("sum"),
    "mean": _reduce("mean"),
    "amax": _reduce("max"),
    "amin": _reduce("min"),
    "prod": _reduce("prod"),
    "any": _reduce("any", "bool"),
    "all": _reduce("all", "bool"),
    "argmax": _arg_reduce("argmax"),
    "argmin": _arg_reduce("argmin"),
    "max.dim": _extreme_along(True),
    "min.dim": _extreme_along(False),
    **dict.fromkeys(("softmax", "_softmax"), _softmax("softmax")),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _softmax("log_softmax")),
    "topk": _topk,
    "sort": _sort,
    "argsort": _argsort,
    "cumsum": _cumsum,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), _matmul),
    "gather": _gather,
    **dict.fromkeys(("scatter.src", "scatter.value"), _scatter("")),
    "scatter_add": _scatter("add"),
    "scatter_reduce": _scatter_reduce,
    "index_select": _index_select,
    "index.Tensor": _index,
    "embedding": _embedding,
    "flip": _flip,
    "roll": _roll,
    "repeat": _repeat,
    "repeat_interleave.self_int": _repeat_interleave,
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
    **dict.fromkeys(("full", "new_full", "full_like"), _full("fill_value")),
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like", "empty", "new_empty", "empty_like"), _full(0.0)),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), _full(1.0)),
    "scalar_tensor": _full("s"),
    "arange": _arange,
    **dict.fromkeys(("to", "_to_copy", "type_as"), lambda call: cast(call, call.view("self"), call.dtype())),
}
