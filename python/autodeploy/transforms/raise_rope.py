"""Rotary position embedding, written out in one of its ways, becomes `rope`."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .forms import sizes
from .halves import Halves
from .nodes import aten, canonical
from .raise_norms import narrow_source
from .rewrite import Rewriter, erase_dead, replace


class RaiseRope(Transform):
    """Finds rotations of channel pairs by an angle per token.

    1. x * cos + turn(x) * sin, turn(x) = cat([-second half, first half]): pairs are (i, i + R/2).
    2. The same with turn(x) = (-x1, x0, -x3, x2, ...): pairs are (2i, 2i + 1), `interleaved`.
    3. cat([a * cos - b * sin, b * cos + a * sin]) of the halves a, b of x; interleaved: of even and odd channels,
       stacked in the last dim.
       Read from even and odd channels but written as halves, it is interleaved, and its result sorted into halves.
    4. Cos and sin of full width, or the first half of that, must be shown to repeat (`Halves`), and are rebuilt at half
       width.
    5. cos and sin must be the same for all heads: one row per token.
    6. cat([rope(x[..., :R]), x[..., R:]]) is `rope(x)`: the op lets channels after the rotated ones pass.
    7. A rotation computed in float32 of a narrower x and converted back is that of x: the op computes in float32.
    """

    name = "raise_rope"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        halves = Halves(rewriter)
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or not node.users:
                continue
            turn = None
            if n.is_op(node, "aten.add", "aten.sub") and len(node.args) == 2 and not node.kwargs:
                turn = _by_turned_copy(node, halves)
            elif n.is_op(node, "aten.cat"):
                turn = _by_halves(node)
            elif n.is_op(node, "aten.reshape"):
                turn = _by_pairs(node)
            if turn is not None and turn.emit(rewriter, halves):
                changed = True
        for node in n.calls(ir.graph, "aten.cat"):
            if _let_rest_pass(rewriter, node):
                changed = True
        return bool(erase_dead(ir.graph)) or changed


@dataclass
class _Turn:
    """A rotation found: `node` is x turned by angles with these cosines and sines [T, .., h]."""

    node: Node
    x: Node
    cos: Node
    sin: Node
    interleaved: bool
    sorted: bool = False  # interleaved, but the result has all first channels of pairs before all second ones

    def emit(self, r: Rewriter, halves: Halves) -> bool:
        node = self.node
        if not n.has_tokens(self.x) or not n.is_symbolic(n.shape_of(self.x)[0]) or n.rank(self.x) < 2:
            return False
        cos, sin = (_per_token(r, _whole_half(t, halves), self.x, node) for t in (self.cos, self.sin))
        if cos is None or sin is None:
            return False
        last, x = node, narrow_source(self.x)
        user = n.only_user(node)
        if n.dtype_of(x) != n.dtype_of(node) and user is not None and n.is_float_cast(user):
            if n.dtype_of(user) == n.dtype_of(x):
                last = user
        if n.dtype_of(x) != n.dtype_of(last):
            x = r.call(aten.to.dtype, x, n.dtype_of(last), like=node, before=node)
        shape = n.shape_of(x)
        if len(shape) != 3:
            heads = 1
            for s in shape[1:-1]:
                heads *= int(s)
            x = r.call(aten.reshape.default, x, [-1, heads, int(shape[-1])], like=node, before=node)
        out = r.call(canonical.rope.default, x, cos, sin, self.interleaved, like=node, before=node)
        out.meta.setdefault("via", "pattern")
        if not n.same_shape(out, last):
            out = r.call(aten.reshape.default, out, sizes(n.shape_of(last)), like=node, before=node)
        if self.sorted:
            dim, width = n.rank(out) - 1, n.last_size(out)
            parts = [r.call(aten.slice.Tensor, out, dim, i, width, 2, like=node, before=node) for i in (0, 1)]
            out = r.call(aten.cat.default, parts, dim, like=node, before=node)
        replace(last, out)
        return True


def _whole_half(table: Node, halves: Halves) -> Node:
    """A table that is the first half of one that repeats: that one's half, which need not be cut."""
    inner = table.args[0] if n.is_op(table, "aten.unsqueeze") and table.args[1] < n.rank(table) - 1 else table
    part = _part(inner) if n.is_op(inner, "aten.slice") else None
    if part is None or part[1:] != (0, n.last_size(inner), 1) or n.last_size(part[0]) != 2 * n.last_size(inner):
        return table
    half = halves.half(part[0], False)
    if half is None:
        return table
    if inner is table:
        return half
    return halves.rewriter.call(aten.unsqueeze.default, half, table.args[1], like=table, before=table)


def _per_token(r: Rewriter, table: Node, x: Node, like: Node) -> Node | None:
    """Angles [T, h] of a table that broadcasts to x; None when they differ between heads."""
    shape = n.shape_of(table)
    tokens = n.shape_of(x)[0]
    if len(shape) != n.rank(x) or not n.same_size(shape[0], tokens) or any(s != 1 for s in shape[1:-1]):
        return None
    if len(shape) == 2:
        return table
    if n.is_op(table, "aten.unsqueeze") and n.rank(table) == 3 and table.args[1] == 1:
        return table.args[0]
    return r.call(aten.reshape.default, table, [-1, int(shape[-1])], like=like, before=like)


def _factors(node: Node) -> tuple[Node, Node] | None:
    """Operands of a product of two tensors."""
    node = n.without_casts(node)
    if n.is_op(node, "aten.mul") and all(n.is_tensor(y) for y in node.args):
        return node.args[0], node.args[1]
    return None


def _same(a: Node, b: Node) -> bool:
    return narrow_source(a) is narrow_source(b)


def _by_turned_copy(node: Node, halves: Halves) -> _Turn | None:
    """Rules 1, 2 and 4."""
    if n.is_op(node, "aten.sub"):
        return None
    products = [_factors(x) if isinstance(x, Node) else None for x in node.args]
    if products[0] is None or products[1] is None:
        return None
    for straight, turned in (products, products[::-1]):
        for t, sin in (turned, turned[::-1]):
            found = _turned(n.without_casts(t))
            if found is None:
                continue
            x, interleaved = found
            for y, cos in (straight, straight[::-1]):
                if _same(x, y) and n.same_shape(y, node):
                    c, s = halves.half(cos, interleaved), halves.half(sin, interleaved)
                    if c is not None and s is not None:
                        return _Turn(node, y, c, s, interleaved)
    return None


def _turned(node: Node) -> tuple[Node, bool] | None:
    """(x, interleaved) when node is x with its pairs turned by a right angle."""
    if n.is_op(node, "aten.cat") and len(node.args[0]) == 2 and node.args[1] == n.rank(node) - 1:
        second, first = node.args[0]
        negated = _negated(second)
        x = None if negated is None else _split_halves(first, negated)
        return None if x is None else (x, False)
    pair = _interleaved(node)
    if pair is not None and 2 * pair[0].meta["val"].shape[-1] == n.last_size(node):
        negated = _negated(pair[0])
        x = None if negated is None else _split_even_odd(pair[1], negated)
        return None if x is None else (x, True)
    return None


def _negated(node: Node) -> Node | None:
    node = n.without_casts(node)
    if n.is_op(node, "aten.neg"):
        return n.without_casts(node.args[0])
    if n.is_op(node, "aten.mul") and node.args[1] == -1:
        return n.without_casts(node.args[0])
    return None


def _part(node: Node) -> tuple[Node, int, int, int] | None:
    """(x, start, stop, step) of a slice of the last dim."""
    node = n.without_casts(node)
    if not n.is_op(node, "aten.slice") or node.args[1] != n.rank(node) - 1:
        return None
    a = n.bound(node)
    return a["self"], a["start"], a["end"], a["step"]


def _split_halves(first: Node, second: Node) -> Node | None:
    """x when these are x[..., :R/2] and x[..., R/2:]."""
    a, b = _part(first), _part(second)
    if a is None or b is None or not _same(a[0], b[0]):
        return None
    width = n.last_size(a[0])
    return a[0] if width and a[1:] == (0, width // 2, 1) and b[1:] == (width // 2, width, 1) else None


def _even_odd_index(node: Node) -> tuple[Node, int] | None:
    """(x, 0 or 1) when node is the even or the odd channels of x."""
    node = n.without_casts(node)
    part = _part(node)
    if part is not None and part[3] == 2 and part[1] in (0, 1):
        width = n.last_size(part[0])
        return (part[0], part[1]) if width and part[2] >= width - 1 + part[1] else None
    if n.is_op(node, "aten.select") and node.args[1] == n.rank(node.args[0]) - 1:  # of x reshaped to pairs
        pairs = n.without_casts(node.args[0])
        if n.last_size(pairs) == 2 and n.is_op(pairs, "aten.reshape"):
            x = pairs.args[0]
            if n.last_size(x) == 2 * n.shape_of(pairs)[-2]:
                return x, node.args[2]
    return None


def _split_even_odd(first: Node, second: Node) -> Node | None:
    """x when these are its even and its odd channels."""
    a, b = _even_odd_index(first), _even_odd_index(second)
    if a is None or b is None or a[1] != 0 or b[1] != 1 or not _same(a[0], b[0]):
        return None
    return a[0]


def _interleaved(node: Node) -> tuple[Node, Node] | None:
    """(p, q) when node is a reshape of pairs (p0, q0), (p1, q1), ... in that order."""
    if not n.is_op(node, "aten.reshape"):
        return None
    pairs = n.without_casts(node.args[0])
    if not n.is_op(pairs, "aten.cat") or pairs.args[1] != n.rank(pairs) - 1 or len(pairs.args[0]) != 2:
        return None
    if n.last_size(pairs) != 2:
        return None
    parts = []
    for x in pairs.args[0]:
        if not (n.is_op(x, "aten.unsqueeze") and x.args[1] == n.rank(x) - 1):
            return None
        parts.append(x.args[0])
    return parts[0], parts[1]


def _by_halves(node: Node) -> _Turn | None:
    """Rule 3, halves."""
    if len(node.args[0]) != 2 or node.args[1] != n.rank(node) - 1:
        return None
    found = _rotation(node, *node.args[0], interleaved=False)
    if found is None:
        found = _rotation(node, *node.args[0], interleaved=True)
        if found is not None:
            found.sorted = True
    return found


def _by_pairs(node: Node) -> _Turn | None:
    """Rule 3, interleaved."""
    pair = _interleaved(node)
    return None if pair is None else _rotation(node, *pair, interleaved=True)


def _rotation(node: Node, first: Node, second: Node, interleaved: bool) -> _Turn | None:
    """first = a cos - b sin, second = b cos + a sin."""
    first, second = n.without_casts(first), n.without_casts(second)
    if not n.is_op(first, "aten.sub") or not n.is_op(second, "aten.add") or first.kwargs or second.kwargs:
        return None
    products = [_factors(x) if isinstance(x, Node) else None for x in (*first.args, *second.args)]
    if any(p is None for p in products):
        return None
    split = _split_even_odd if interleaved else _split_halves
    for a, cos in (products[0], products[0][::-1]):  # type: ignore[index]
        for b, sin in (products[1], products[1][::-1]):  # type: ignore[index]
            x = split(a, b)
            if x is None:
                continue
            wanted = {(narrow_source(b), cos), (narrow_source(a), sin)}
            for p, q in ((products[2], products[3]),):
                found = {(narrow_source(y), t) for pair in (p, q) for y, t in (pair, pair[::-1])}  # type: ignore[index]
                if wanted <= found and (interleaved or n.same_size(n.shape_of(node)[-1], n.shape_of(x)[-1])):
                    return _Turn(node, x, cos, sin, interleaved)
    return None


def _let_rest_pass(r: Rewriter, node: Node) -> bool:
    """Rule 6."""
    parts = node.args[0]
    if len(parts) != 2 or node.args[1] != n.rank(node) - 1 or not node.users:
        return False
    turned, rest = parts
    rope = turned
    if n.is_op(rope, "aten.reshape"):
        rope = rope.args[0]
    if not n.is_op(rope, "autodeploy.rope") or len(rope.users) != 1:
        return False
    x = rope.args[0]
    if n.is_op(x, "aten.reshape"):
        x = x.args[0]
    a, b = _part(x), _part(rest)
    if a is None or b is None or a[0] is not b[0] or a[1] != 0 or a[2] != b[1] or b[2] != n.last_size(a[0]):
        return False
    if a[3] != 1 or b[3] != 1 or n.dtype_of(a[0]) != n.dtype_of(node):
        return False
    whole, shape = a[0], n.shape_of(a[0])
    if len(shape) != 3:
        heads = 1
        for s in shape[1:-1]:
            heads *= int(s)
        whole = r.call(aten.reshape.default, whole, [-1, heads, int(shape[-1])], like=node, before=node)
    out = r.call(canonical.rope.default, whole, *rope.args[1:], like=rope, before=node)
    if len(shape) != 3:
        out = r.call(aten.reshape.default, out, sizes(shape), like=node, before=node)
    replace(node, out)
    return True


