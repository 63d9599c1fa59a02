"""How lines of tokens (`token_lines`) go through ops: what joins, cuts, views and computes entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from . import nodes as n
from .nodes import aten
from .token_lines import Line, Lines, Number, constant_of, delayed, joined, rule

# --- entries come and go


@rule("aten.constant_pad_nd", "aten.pad")
def _pad(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, widths = lines.of(a["self"]), list(a["pad"])
    if line is None or a.get("mode", "constant") != "constant" or any(not isinstance(w, int) for w in widths):
        return None
    at = 2 * (n.rank(node) - 1 - line.dim)
    others = [w for i, w in enumerate(widths) if i not in (at, at + 1)]
    low, high = (widths[at], widths[at + 1]) if at < len(widths) else (0, 0)
    if any(others) or low + line.before < 0:
        return None
    fill = joined(line, a.get("value") or 0, max(low, 0))
    return replace(line, before=line.before + low, extra=line.extra + low + high, fill=fill)


@rule("aten.slice")
def _slice(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line = lines.of(a["self"])
    if line is None or a["step"] != 1:
        return None
    dim = n.normal_dim(a["dim"], n.rank(node))
    if dim != line.dim:
        start, end = a["start"] or 0, a["end"]
        if line.plain or any(isinstance(x, Node) for x in (start, end)):
            return None
        end = 2**62 if end is None else end
        return _on_rows(lines, line, line.dim, lambda x: lines.call(aten.slice.Tensor, x, dim, start, end, 1))
    start, end = lines.size(a["start"] or 0), (2**62, 0) if a["end"] is None else lines.size(a["end"])
    if start is None or end is None:
        return None
    if start[1] == -1:  # counted from the end
        start = (max(0, start[0] + line.extra), 0)
    if start[1] or not 0 <= start[0] <= line.before:
        return None
    size = line.extra
    if end[1] == 1 and end[0] >= -1:  # at most as many entries as that
        size = min(size, end[0])
    elif end[1] == 0 and end[0] < 0:
        size += end[0]
    elif end[1] or end[0] < 2**62:
        return None
    return replace(line, before=line.before - start[0], extra=size - start[0])


@rule("aten.cat", "aten.concat", "aten.concatenate")
def _cat(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    parts = list(node.args[0])
    dim = n.normal_dim(a.get("dim", 0), n.rank(node))
    last = lines.of(parts[-1])
    if last is None or any(n.rank(p) != n.rank(node) for p in parts):
        return None
    if dim != last.dim and last.plain:
        return None
    if dim != last.dim:
        found = [lines.of(p) for p in parts]
        if any(x is None or (x.dim, x.before, x.extra) != (last.dim, last.before, last.extra) for x in found):
            return None
        rows = lines.call(aten.cat.default, [x.rows for x in found if x is not None], dim)
        fills = [lines.fill_node(x, n.shape_of(p), n.dtype_of(node)) for x, p in zip(found, parts, strict=True) if x]
        known = all(f is not None for f in fills) and last.before > 0
        return replace(last, rows=rows, fill=lines.call(aten.cat.default, fills, dim) if known else None)
    line = last
    for part in reversed(parts[:-1]):
        count = n.shape_of(part)[dim]
        if n.is_symbolic(count):
            return None
        fill: Number | Node | None = constant_of(part)
        if fill is None:
            if part not in lines.fixed or count != 1:
                return None
            fill = part
        fill = joined(line, fill, int(count))
        line = replace(line, before=line.before + int(count), extra=line.extra + int(count), fill=fill)
    return line


@rule("aten.roll")
def _roll(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    """The last tokens come to the front, where something else has to be written over them."""
    line, shifts, dims = lines.of(a["self"]), n.as_list(a["shifts"]), n.as_list(a["dims"])
    if line is None or not line.plain or len(shifts) != 1 or len(dims) != 1 or not isinstance(shifts[0], int):
        return None
    if n.normal_dim(dims[0], n.rank(node)) != line.dim or shifts[0] < 1:
        return None
    return replace(line, before=shifts[0], fill=None)


@rule("aten.slice_scatter", "aten.select_scatter")
def _scatter(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    base, source, dim = a["self"], _written(a["src"]), n.normal_dim(a["dim"], n.rank(node))
    if n.op_name(node) == "aten.select_scatter":
        start, end, step = a["index"], a["index"] + 1 if isinstance(a["index"], int) else None, 1
    else:
        start, end, step = a["start"] or 0, a["end"], a["step"]
    line = lines.of(base)
    if line is None or line.dim != dim or line.extra or step != 1 or not isinstance(start, int):
        return None
    if isinstance(end, int) and (start, end) == (0, line.before):  # over what came before the tokens
        fill: Number | Node | None = constant_of(source)
        if fill is None:
            if source not in lines.fixed or line.before != 1:
                return None
            fill = lines.call(aten.unsqueeze.default, source, dim) if n.rank(source) < n.rank(node) else source
        return replace(line, fill=fill)
    fill, part = constant_of(base), lines.of(source)
    to_the_end = end is None or lines.size(end) == (0, 1) or (isinstance(end, int) and end >= 2**62)
    if fill is None or part is None or part.dim != dim or part.before or part.extra != -start or start < 0:
        return None
    if not to_the_end or n.rank(source) != n.rank(node):
        return None
    return Line(part.rows, dim, start, 0, fill)


def _written(x: Node) -> Node:
    """What a copy into a tensor of the same shape and dtype writes."""
    while n.is_op(x, "aten.copy") and n.same_shape(x.args[1], x) and n.dtype_of(x.args[1]) == n.dtype_of(x):
        x = x.args[1]
    return x


# --- entries go on as they are


def _on_rows(lines: Lines, line: Line, dim: int, function: Callable[[Node], Node]) -> Line:
    """The line of an op that treats entries one by one, and leaves them in `dim`."""
    fill = function(line.fill) if isinstance(line.fill, Node) else line.fill
    return replace(line, rows=function(line.rows), fill=fill, dim=dim)


@rule("aten.alias", "aten.clone", "aten.contiguous", "aten.detach", "aten.lift_fresh_copy")
def _same(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    return lines.of(node.args[0])


@rule("aten.permute", "aten.transpose", "aten.t", "aten.mT", "aten.numpy_T")
def _permute(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, order = lines.of(node.args[0]), n.permutation(node)
    if line is None or order is None:
        return None
    line = _full_rank(lines, line, n.rank(node))
    return _on_rows(lines, line, order.index(line.dim), lambda x: lines.call(aten.permute.default, x, order))


def _full_rank(lines: Lines, line: Line, rank: int) -> Line:
    fill = line.fill
    if not isinstance(fill, Node) or n.rank(fill) == rank:
        return line
    shape = [1] * (rank - n.rank(fill)) + [int(s) for s in n.shape_of(fill)]
    return replace(line, fill=lines.call(aten.reshape.default, fill, shape))


@rule("aten.unsqueeze")
def _unsqueeze(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line = lines.of(a["self"])
    if line is None:
        return None
    dim = n.normal_dim(a["dim"], n.rank(node))
    line = _full_rank(lines, line, n.rank(node) - 1)
    to = line.dim + (line.dim >= dim)
    return _on_rows(lines, line, to, lambda x: lines.call(aten.unsqueeze.default, x, dim))


@rule("aten.squeeze")
def _squeeze(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, shape = lines.of(a["self"]), n.shape_of(a["self"])
    if line is None or a.get("dim") is None:
        return None
    dims = [d for d in (n.normal_dim(d, len(shape)) for d in n.as_list(a["dim"])) if n.same_size(shape[d], 1)]
    line = _full_rank(lines, line, len(shape))
    to = line.dim - sum(d < line.dim for d in dims)
    return _on_rows(lines, line, to, lambda x: lines.call(aten.squeeze.dims, x, dims))


@rule("aten.select")
def _select(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, dim = lines.of(a["self"]), n.normal_dim(a["dim"], n.rank(a["self"]))
    if line is None or dim == line.dim or not isinstance(a["index"], int) or isinstance(line.fill, Node):
        return None
    to = line.dim - (dim < line.dim)
    return _on_rows(lines, line, to, lambda x: lines.call(aten.select.int, x, dim, a["index"]))


@rule("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten", "aten.unflatten")
def _reshape(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, old, new = lines.of(node.args[0]), n.shape_of(node.args[0]), n.shape_of(node)
    dims = [i for i, s in enumerate(new) if n.is_symbolic(s)]
    if line is None or len(dims) != 1 or not n.same_size(old[line.dim], new[dims[0]]):
        return None
    to = dims[0]
    before = [torch.Size(old[: line.dim]).numel(), torch.Size(new[:to]).numel()]
    if before[0] != before[1]:
        return None
    sizes = [-1 if i == to else int(s) for i, s in enumerate(new)]

    def reshaped(x: Node) -> Node:
        if x is line.rows:
            return lines.call(aten.reshape.default, x, sizes)
        whole = lines.call(aten.expand.default, x, [1 if i == line.dim else int(s) for i, s in enumerate(old)])
        return lines.call(aten.reshape.default, whole, [1 if s == -1 else s for s in sizes])

    return _on_rows(lines, line, to, reshaped)


@rule("aten.expand")
def _expand(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, x = lines.of(a["self"]), a["self"]
    if line is None or not n.same_size(n.shape_of(x)[line.dim], n.shape_of(node)[line.dim + n.rank(node) - n.rank(x)]):
        return None
    to = line.dim + n.rank(node) - n.rank(x)
    sizes = [-1 if i == to else int(s) for i, s in enumerate(n.shape_of(node))]
    return replace(line, rows=lines.call(aten.expand.default, line.rows, sizes), dim=to)


@rule("aten.flip")
def _flip(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    line, dims = lines.of(a["self"]), [n.normal_dim(d, n.rank(node)) for d in n.as_list(a["dims"])]
    if line is None or line.dim in dims or isinstance(line.fill, Node):
        return None
    return replace(line, rows=lines.call(aten.flip.default, line.rows, dims))


@rule("aten.linear", "aten.embedding")
def _token_wise(lines: Lines, node: Node, a: dict[str, Any]) -> Line | None:
    """The fill is left unknown: what padding becomes in a product is no number."""
    key = "input" if "input" in a else "indices"
    line = lines.of(a[key])
    if line is None or (key == "input" and line.dim == n.rank(node) - 1):
        return None
    args = [line.rows if x is a[key] else x for x in node.args]
    return replace(line, rows=lines.call(node.target, *args, **node.kwargs), fill=None)


def pointwise(lines: Lines, node: Node) -> Line | None:
    """Elementwise ops, on lines that have the same entries."""
    operands = [x for x in node.all_input_nodes if n.is_tensor(x)]
    rank, found = n.rank(node), {}
    for x in operands:
        line = lines.of(x)
        if line is not None:
            found[x] = replace(line, dim=line.dim + rank - n.rank(x))
        elif x not in lines.fixed:
            return None
    kinds = {(x.dim, x.extra) for x in found.values()}
    if len(kinds) != 1 or n.size_inputs(node):
        return None
    dim, extra = kinds.pop()
    before = min(x.before for x in found.values())
    if any(x.before > before and x.fill is None for x in found.values()):
        return None
    for x, line in found.items():
        if line.before > before:  # the same entries, later
            own = replace(line, dim=line.dim - rank + n.rank(x))
            found[x] = replace(line, rows=delayed(lines, own, line.before - before), before=before)
    rows = lines.call(node.target, *_swap(node.args, {x: y.rows for x, y in found.items()}), **node.kwargs)
    if before and all(y.fill is not None for y in found.values()):
        return Line(rows, dim, before, extra, _fill_of(lines, node, found))
    return Line(rows, dim, before, extra, None if before else 0)


def _fill_of(lines: Lines, node: Node, found: dict[Node, Line]) -> Number | Node | None:
    numbers = {x: y.fill for x, y in found.items()}
    fixed = [x for x in node.all_input_nodes if x not in found]
    constants = {x: constant_of(x) for x in fixed}
    if any(isinstance(x, Node) for x in numbers.values()) or any(c is None for c in constants.values()):
        fills = {}
        for x, y in found.items():
            shape = n.shape_of(x)
            back = replace(y, dim=y.dim - n.rank(node) + n.rank(x))
            fills[x] = lines.fill_node(back, shape, n.dtype_of(x))
        return lines.call(node.target, *_swap(node.args, fills), **node.kwargs)
    tensors = {
        x: torch.tensor(value).to(torch.float32 if n.dtype_of(x) is torch.bfloat16 else n.dtype_of(x))
        for x, value in {**numbers, **constants}.items()
    }
    if torch.bfloat16 in (*node.args, *node.kwargs.values()):
        return next(iter(numbers.values())) if len(numbers) == 1 else None
    return node.target(*_swap(node.args, tensors), **node.kwargs).item()


def _swap(args: Any, table: dict[Node, Any]) -> Any:
    return torch.fx.node.map_arg(args, lambda x: table.get(x, x))
