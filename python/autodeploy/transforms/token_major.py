"""Rebuilds the graph so that tokens come first and the batch dim of the captured model is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ..ir import ModelIR
from ..ops import op_of
from . import nodes as n
from .axes import TOKENS, Axes
from .base import Transform
from .forms import sizes
from .nodes import aten
from .pointwise import POINTWISE
from .rewrite import Rewriter
from .token_axis import token_axes


class TokenMajor(Transform):
    """Gives every value that has tokens the layout [T, ...], and proves on the way that they are kept apart.

    A value is *laid out* by moving its dim T to the front and dropping a leading dim of size 1 (the model's batch);
    values without tokens, and those whose tokens are not the slowest factor of their dim, stay as they are.

    1. Pointwise ops run on laid out operands, with dims of size 1 put in where broadcasting needs them.
    2. permute, unsqueeze, squeeze and expand turn into the change between two layouts: mostly nothing.
    3. A reshape regroups the dims before and after T separately.
    4. Reductions, softmax, topk, sort, cumsum, gather, scatter, slices, selects and cat run on the moved dim.
    5. Ops over the last dims (linear, norms, look-ups, batched products) run as they are while these stay last.
    6. Any other op runs on its operands in their captured layout; its results are then laid out.
    7. The outputs are laid out: [1, T, V] becomes [T, V].
    """

    name = "token_major"

    def run(self, ir: ModelIR) -> bool:
        axes = token_axes(ir.graph)
        if all(_laid_out(x, axes[x]) for x in ir.graph.nodes if x.op == "call_function"):
            return False
        captured = ir.graph_module
        _Builder(ir, axes).build()
        if _form(captured.graph) == _form(ir.graph):  # rule 6 leaves some ops in their captured layout
            ir.graph_module = captured
            return False
        return True


def _form(graph: Graph) -> list[Any]:
    """A graph without the names of its nodes."""
    index = {node: i for i, node in enumerate(graph.nodes)}

    def arguments(node: Node) -> str:
        return repr(map_arg((node.args, node.kwargs), lambda x: index[x]))

    return [(node.op, "" if node.op == "output" else node.target, arguments(node)) for node in graph.nodes]


def _laid_out(node: Node, axes: Any) -> bool:
    if isinstance(node.meta.get("val"), torch.Tensor):
        order = _order(axes, node.meta["val"].shape)
        return order == tuple(range(len(axes)))
    if isinstance(node.meta.get("val"), (tuple, list)):
        return all(_order(x, v.shape) == tuple(range(len(x))) for x, v in zip(axes, node.meta["val"], strict=True))
    return True


def _order(axes: Axes, shape: torch.Size) -> tuple[int, ...]:
    """The captured dims of a laid out value, in its order."""
    at = next((i for i, axis in enumerate(axes) if axis is not None), None)
    if at is None or axes[at].outer != 1:  # type: ignore[union-attr]
        return tuple(range(len(axes)))
    rest = [i for i in range(len(axes)) if i != at]
    if rest and rest[0] == 0 and n.same_size(shape[0], 1):
        rest = rest[1:]
    return (at, *rest)


@dataclass(frozen=True)
class _Value:
    """A captured value in the new graph: `node` holds it with its captured dims in the order `order`.

    Captured dims that are not in `order` have size 1. A tuple of values has a tuple of orders.
    """

    node: Node
    order: Any
    shape: Any  # as captured


class _Builder:
    """Walks the captured graph and builds the new one."""

    def __init__(self, ir: ModelIR, axes: dict[Node, Any]):
        self.ir, self.axes = ir, axes
        self.graph = Graph()
        self.rewriter = Rewriter(ir, self.graph)
        self.values: dict[Node, _Value] = {}

    def build(self) -> None:
        for node in self.ir.graph.nodes:
            if node.op == "placeholder":
                new = self.graph.placeholder(node.target)
                new.meta = dict(node.meta)
                self.values[node] = _Value(new, tuple(range(len(node.meta["val"].shape))), node.meta["val"].shape)
            elif node.op == "output":
                results = tuple(self.laid_out(x) for x in node.args[0])
                self.graph.output(results)
                self.graph.output_node().meta = {**node.meta, "val": tuple(x.meta["val"] for x in results)}
            else:
                self.values[node] = self.visit(node)
        module = GraphModule(self.ir.graph_module, self.graph)
        self.ir.graph_module = module

    # Operands.

    def laid_out(self, x: Node) -> Node:
        """A value in its layout."""
        return self.arranged(x, _order(self.axes[x], n.shape_of(x)), x)

    def captured(self, x: Any, like: Node) -> Any:
        """An argument in its captured layout."""
        if not isinstance(x, Node):
            if isinstance(x, (list, tuple)):
                return type(x)(self.captured(y, like) for y in x)
            return x
        if not n.is_tensor(x):
            return self.values[x].node
        return self.arranged(x, tuple(range(n.rank(x))), like)

    def arranged(self, x: Node, order: tuple[int, ...], like: Node, ndim: int | None = None) -> Node:
        """A value with its captured dims in this order; dims that `order` leaves out must have size 1.

        With `ndim`, `order` counts dims as if x were broadcast to that rank (missing ones have size 1).
        """
        value = self.values[x]
        lead = (n.rank(x) if ndim is None else ndim) - n.rank(x)
        return _arrange(self.rewriter, value.node, tuple(d + lead for d in value.order), order, like)

    def emit(self, target: Any, *args: Any, like: Node, **kwargs: Any) -> Node:
        return self.rewriter.call(target, *args, like=like, name=like.name, **kwargs)

    def result(self, node: Node, new: Node, order: tuple[int, ...]) -> _Value:
        """A result that came out with its dims in `order`, laid out."""
        wanted = _order(self.axes[node], n.shape_of(node))
        new = _arrange(self.rewriter, new, order, wanted, node)
        return _Value(new, wanted, n.shape_of(node))

    # Calls.

    def visit(self, node: Node) -> _Value:
        if not any(n.has_tokens(x) for x in (node, *node.all_input_nodes)) or not hasattr(node.target, "_schema"):
            return self.verbatim(node)
        rule = _RULES.get(n.op_name(node))
        value = rule(self, node, n.bound(node)) if rule is not None and n.has_tokens(node) else None
        return self.verbatim(node) if value is None else value

    def verbatim(self, node: Node) -> _Value:
        """Rule 6."""
        if n.op_name(node) == n.GETITEM:
            whole = self.values[node.args[0]]
            if not isinstance(whole.node.meta["val"], (tuple, list)):
                raise AssertionError("getitem of something that is no tuple")
            new = self.emit(node.target, whole.node, node.args[1], like=node)
            return self.result(node, new, whole.order[node.args[1]])
        args = tuple(self.captured(x, node) for x in node.args)
        kwargs = {k: self.captured(x, node) for k, x in node.kwargs.items()}
        new = self.emit(node.target, *args, like=node, **kwargs)
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            return self.result(node, new, tuple(range(value.dim())))
        if isinstance(value, (tuple, list)):
            return _Value(new, tuple(tuple(range(v.dim())) for v in value), None)
        return _Value(new, (), None)

    def source_order(self, x: Node) -> tuple[int, ...]:
        return self.values[x].order


def _arrange(r: Rewriter, x: Node, have: tuple[int, ...], want: tuple[int, ...], like: Node) -> Node:
    """x, whose dims are named `have`, with the dims named `want`: others are dropped, new ones have size 1."""
    if have == want:
        return x
    dropped = [i for i, d in enumerate(have) if d not in want]
    if dropped:
        x = r.call(aten.squeeze.dims, x, dropped, like=like)
        have = tuple(d for d in have if d in want)
    kept = [d for d in want if d in have]
    if tuple(kept) != have:
        x = r.call(aten.permute.default, x, [have.index(d) for d in kept], like=like)
    for i, d in enumerate(want):
        if d not in have:
            x = r.call(aten.unsqueeze.default, x, i, like=like)
    return x


Rule = Callable[[_Builder, Node, dict[str, Any]], "_Value | None"]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


@_rule(*POINTWISE)
def _pointwise(b: _Builder, node: Node, a: dict[str, Any]) -> _Value:
    ndim = n.rank(node)
    order = _order(b.axes[node], n.shape_of(node))

    def operand(x: Any) -> Any:
        if not isinstance(x, Node):
            return x
        lead = ndim - n.rank(x)
        wanted = tuple(d for d in order if d >= lead)
        if wanted != order and order[: len(order) - len(wanted)] + wanted != order:
            wanted = order  # a missing dim stands between others: it has to be put in
        return b.arranged(x, wanted, node, ndim)

    args = tuple(operand(x) for x in node.args)
    kwargs = {k: operand(x) for k, x in node.kwargs.items()}
    new = b.emit(node.target, *args, like=node, **kwargs)
    # An operand may have been the only one with a dim of size 1 that the result keeps.
    if new.meta["val"].dim() != len(order):
        new = _arrange(b.rewriter, new, order[len(order) - new.meta["val"].dim() :], order, node)
    return _Value(new, order, n.shape_of(node))


@_rule("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.mT")
def _permute(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    moved = n.permutation(node)
    if moved is None:
        return None
    x = b.values[node.args[0]]
    return b.result(node, x.node, tuple(moved.index(d) for d in x.order))


@_rule("aten.unsqueeze")
def _unsqueeze(b: _Builder, node: Node, a: dict[str, Any]) -> _Value:
    x, dim = b.values[a["self"]], n.normal_dim(a["dim"], n.rank(node))
    return b.result(node, x.node, tuple(d + (d >= dim) for d in x.order))


@_rule("aten.squeeze")
def _squeeze(b: _Builder, node: Node, a: dict[str, Any]) -> _Value:
    x, shape = b.values[a["self"]], n.shape_of(a["self"])
    dims = range(len(shape)) if a.get("dim") is None else [n.normal_dim(d, len(shape)) for d in n.as_list(a["dim"])]
    gone = [d for d in dims if n.same_size(shape[d], 1)]
    kept = tuple(d for d in x.order if d not in gone)
    new = _arrange(b.rewriter, x.node, x.order, kept, node)
    return b.result(node, new, tuple(d - sum(g < d for g in gone) for d in kept))


@_rule("aten.expand")
def _expand(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = a["self"]
    order = _order(b.axes[node], n.shape_of(node))
    laid = [n.shape_of(node)[d] for d in order]
    lead = n.rank(node) - n.rank(x)
    for d, size in zip(order, laid, strict=True):
        if n.is_symbolic(size) and (d < lead or not n.same_size(n.shape_of(x)[d - lead], size)):
            return None
    new = b.arranged(x, order, node, n.rank(node))
    if not all(n.same_size(p, q) for p, q in zip(n.shape_of(new), laid, strict=True)):
        new = b.emit(aten.expand.default, new, sizes(laid), like=node)
    return _Value(new, order, n.shape_of(node))


@_rule("aten.reshape", "aten.view", "aten._unsafe_view")
def _reshape(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = node.args[0]
    old, new = b.axes[x], b.axes[node]
    old_shape, new_shape = n.shape_of(x), n.shape_of(node)
    i, j = (next(k for k, axis in enumerate(axes) if axis is not None) for axes in (old, new))
    first, last = _count(old_shape[:i]) * old[i].outer, _count(new_shape[:j]) * new[j].outer
    order = _order(new, new_shape)
    shape = [new_shape[d] for d in order]
    if first == 1 and last == 1:
        pass  # tokens are the slowest in memory, before and after
    elif not (old[i] == TOKENS == new[j] and first == last):
        return None
    source = b.laid_out(x)
    result = source
    if len(shape) != n.rank(source) or not all(map(n.same_size, n.shape_of(source), shape)):
        result = b.emit(aten.reshape.default, source, sizes(shape), like=node)
    return _Value(result, order, new_shape)


def _count(shape: Any) -> int:
    count = 1
    for size in shape:
        count *= int(size)
    return count


# --- 4 ops with a dim

def _moved(order: tuple[int, ...], dim: int, ndim: int) -> int | None:
    """Where a captured dim went; None when it was dropped."""
    dim = n.normal_dim(dim, ndim)
    return order.index(dim) if dim in order else None


@_rule("aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.argmax", "aten.argmin", "aten.any", "aten.all",
       "aten.prod")
def _reduce(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = node.args[0]
    order = b.source_order(x)
    dims = n.reduced_dims(node, a)
    keep = bool(a.get("keepdim", False))
    if any(d not in order for d in dims) or a.get("dtype") is not None:
        return None
    moved = [order.index(d) for d in dims]
    single = not isinstance(a.get("dim", a.get("dims")), (list, tuple))
    if single and len(moved) != 1:
        return None
    new = b.emit(node.target, b.values[x].node, moved[0] if single else moved, keep, like=node)
    left = order if keep else tuple(d - sum(g < d for g in dims) for d in order if d not in dims)
    return b.result(node, new, left)


@_rule("aten.softmax", "aten.log_softmax", "aten.cumsum")
def _along(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = a["self"]
    order = b.source_order(x)
    dim = _moved(order, a["dim"], n.rank(x))
    if dim is None or a.get("dtype") is not None:
        return None
    return b.result(node, b.emit(node.target, b.values[x].node, dim, like=node), order)


@_rule("aten.topk", "aten.sort")
def _ordered(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = a["self"]
    order = b.source_order(x)
    dim = _moved(order, a["dim"], n.rank(x))
    if dim is None or a.get("stable") is not None:
        return None
    rest = (a["k"], dim, a["largest"], a["sorted"]) if "k" in a else (dim, a["descending"])
    return _Value(b.emit(node.target, b.values[x].node, *rest, like=node), (order, order), None)


@_rule("aten.gather", "aten.scatter", "aten.scatter_add")
def _gather(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    names = [k for k in ("self", "index", "src") if k in a]
    order = _order(b.axes[node], n.shape_of(node))
    if any(n.rank(a[k]) != n.rank(node) for k in names) or "value" in a or a.get("reduce"):
        return None
    dropped = [d for d in range(n.rank(node)) if d not in order]
    if any(not n.same_size(n.shape_of(a[k])[d], 1) for k in names for d in dropped):
        return None
    dim = _moved(order, a["dim"], n.rank(node))
    if dim is None:
        return None
    parts = {k: b.arranged(a[k], order, node) for k in names}
    rest = [parts[k] for k in names[1:]]
    return _Value(b.emit(node.target, parts["self"], dim, *rest, like=node), order, n.shape_of(node))


@_rule("aten.flip")
def _flip(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    order = b.source_order(a["self"])
    dims = [_moved(order, d, n.rank(node)) for d in a["dims"]]
    if None in dims:
        return None
    return b.result(node, b.emit(node.target, b.values[a["self"]].node, dims, like=node), order)


@_rule("aten.slice")
def _slice(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = b.values[a["self"]]
    dim = _moved(x.order, a["dim"], n.rank(node))
    if dim is None or b.axes[node][n.normal_dim(a["dim"], n.rank(node))] is not None:
        return b.result(node, x.node, x.order) if n.same_shape(a["self"], node) else None
    new = b.emit(node.target, x.node, dim, a["start"], a["end"], a["step"], like=node)
    return b.result(node, new, x.order)


@_rule("aten.select")
def _select(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x, at = b.values[a["self"]], n.normal_dim(a["dim"], n.rank(a["self"]))
    left = tuple(d - (at < d) for d in x.order if d != at)
    if at not in x.order:
        return b.result(node, x.node, left)
    return b.result(node, b.emit(node.target, x.node, x.order.index(at), a["index"], like=node), left)


@_rule("aten.cat")
def _cat(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    order = _order(b.axes[node], n.shape_of(node))
    dim = _moved(order, a["dim"], n.rank(node))
    if dim is None:
        return None
    parts = [b.arranged(x, order, node) for x in node.args[0]]
    return _Value(b.emit(node.target, parts, dim, like=node), order, n.shape_of(node))


# --- 5 ops over the last dim

@_rule("aten.linear", "aten.layer_norm", "aten.rms_norm")
def _last(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x = a["input"]
    order = _order(b.axes[x], n.shape_of(x))
    if order[-1] != n.rank(x) - 1 or len(a.get("normalized_shape", (0,))) != 1:
        return None
    rest = tuple(b.captured(y, node) for y in node.args[1:])
    kwargs = {k: b.captured(y, node) for k, y in node.kwargs.items()}
    return b.result(node, b.emit(node.target, b.laid_out(x), *rest, like=node, **kwargs), order)


@_rule("aten.matmul", "aten.bmm")
def _matmul(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    x, y = node.args[:2]
    order = _order(b.axes[x], n.shape_of(x))
    if n.rank(y) == 2 and not n.has_tokens(y) and order[-1] == n.rank(x) - 1 and n.rank(x) >= 2:
        return b.result(node, b.emit(node.target, b.laid_out(x), b.captured(y, node), like=node), order)
    ndim = n.rank(node)
    order = _order(b.axes[node], n.shape_of(node))
    if n.rank(x) != ndim or n.rank(y) != ndim or order[-2:] != (ndim - 2, ndim - 1):
        return None
    return b.result(node, b.emit(node.target, b.arranged(x, order, node), b.arranged(y, order, node), like=node), order)


@_rule("aten.embedding")
def _embedding(b: _Builder, node: Node, a: dict[str, Any]) -> _Value:
    ids = b.laid_out(a["indices"])
    order = _order(b.axes[a["indices"]], n.shape_of(a["indices"]))
    new = b.emit(aten.embedding.default, b.captured(a["weight"], node), ids, like=node)
    return b.result(node, new, (*order, n.rank(node) - 1))


@_rule("aten.index")
def _index(b: _Builder, node: Node, a: dict[str, Any]) -> _Value | None:
    table, indices = a["self"], list(a["indices"])
    if n.has_tokens(table) or indices[0] is None or any(x is not None for x in indices[1:]):
        return None
    order = _order(b.axes[indices[0]], n.shape_of(indices[0]))
    new = b.emit(node.target, b.captured(table, node), [b.laid_out(indices[0])], like=node)
    lead = n.rank(indices[0])
    return b.result(node, new, (*order, *range(lead, n.rank(node))))


@_rule("aten.full")
def _full(b: _Builder, node: Node, a: dict[str, Any]) -> _Value:
    order = _order(b.axes[node], n.shape_of(node))
    shape = [b.captured(a["size"][d], node) for d in order]
    new = b.emit(aten.full.default, shape, a["fill_value"], like=node, dtype=n.dtype_of(node))
    return _Value(new, order, n.shape_of(node))


assert op_of(torch.ops.autodeploy.linear.default) is not None
