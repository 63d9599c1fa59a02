"""Values that repeat themselves along the last dim, and the half of them that says everything.

Rotary tables are often made at full width from angles of half the width: `cat([a, a])` where halves of a head turn
together, every element twice where neighbours do. `Halves` proves that from the graph and rebuilds the value at half
its width.
"""

from __future__ import annotations

from torch.fx import Node

from . import nodes as n
from .forms import sizes
from .nodes import aten
from .pointwise import POINTWISE
from .rewrite import Rewriter

_VIEWS = ("aten.unsqueeze", "aten.squeeze", "aten.reshape", "aten.expand", "aten.permute")


class Halves:
    """Half-width forms of values, each made once and put beside the value that it halves."""

    def __init__(self, rewriter: Rewriter):
        self.rewriter = rewriter
        self._made: dict[tuple[Node, bool], Node | None] = {}

    def half(self, node: Node, interleaved: bool) -> Node | None:
        """y such that `node` is cat([y, y], -1), or y with every element twice; None where that cannot be shown."""
        key = (node, interleaved)
        if key not in self._made:
            self._made[key] = self._find(node, interleaved)
        return self._made[key]

    def _find(self, node: Node, interleaved: bool) -> Node | None:
        if not n.is_tensor(node) or not n.last_size(node) or n.last_size(node) % 2:
            return None
        direct = _twice_each(node) if interleaved else _twice_in_a_row(node)
        if direct is not None:
            return self._shaped(direct, node)
        if n.op_name(node) in POINTWISE:
            return self._pointwise(node, interleaved)
        if n.op_name(node) in _VIEWS:
            return self._view(node, interleaved)
        return None

    def _shaped(self, half: Node, like: Node) -> Node:
        shape = [*n.shape_of(like)[:-1], n.last_size(like) // 2]
        if n.rank(half) == len(shape) and all(map(n.same_size, n.shape_of(half), shape)):
            return half
        return self.rewriter.call(aten.reshape.default, half, sizes(shape), like=like, before=like)

    def _pointwise(self, node: Node, interleaved: bool) -> Node | None:
        width = n.last_size(node)
        args = []
        for x in node.args:
            if isinstance(x, Node) and n.rank(x) and n.last_size(x) == width:
                x = self.half(x, interleaved)
                if x is None:
                    return None
            elif not isinstance(x, Node) and isinstance(x, (list, tuple)):
                return None
            args.append(x)
        if any(isinstance(x, Node) for x in node.kwargs.values()):
            return None
        return self.rewriter.call(node.target, *args, like=node, before=node, **node.kwargs)

    def _view(self, node: Node, interleaved: bool) -> Node | None:
        """A view that leaves the last dim as it is."""
        x = node.args[0]
        if not n.rank(x) or n.last_size(x) != n.last_size(node):
            return None
        if n.is_op(node, "aten.permute") and node.args[1][-1] != n.rank(x) - 1:
            return None
        if n.is_op(node, "aten.unsqueeze", "aten.squeeze") and n.rank(node) - 1 in n.as_list(node.args[1]):
            return None
        half = self.half(x, interleaved)
        if half is None:
            return None
        args = list(node.args[1:])
        if n.is_op(node, "aten.reshape"):
            args = [sizes([*n.shape_of(node)[:-1], n.last_size(node) // 2])]
        return self.rewriter.call(node.target, half, *args, like=node, before=node)


def _twice_in_a_row(node: Node) -> Node | None:
    """a when node is cat([a, a], -1), or a repeated twice along the last dim."""
    if n.is_op(node, "aten.reshape") and n.is_op(node.args[0], "aten.expand"):
        return _expanded_twice(node)
    if not n.is_op(node, "aten.cat") or node.args[1] != n.rank(node) - 1:
        return None
    parts = node.args[0]
    return parts[0] if len(parts) == 2 and parts[0] is parts[1] else None


def _expanded_twice(node: Node) -> Node | None:
    """a when node is a reshape of [.., 2, R/2] to [.., R], with the dim of 2 expanded from 1."""
    wide = node.args[0]
    single = wide.args[0]
    if n.rank(wide) < 2 or n.rank(single) != n.rank(wide) or 2 * (n.last_size(wide) or 0) != n.last_size(node):
        return None
    shape, before = n.shape_of(wide), n.shape_of(single)
    if shape[-2] != 2 or before[-2] != 1 or before[-1] != shape[-1]:
        return None
    if not all(map(n.same_size, shape[:-2], before[:-2])):
        return None
    return single


def _twice_each(node: Node) -> Node | None:
    """a when node has every element of a twice: a pair dim of equal values, merged into the last dim."""
    if not n.is_op(node, "aten.reshape"):
        return None
    pairs = node.args[0]
    if n.rank(pairs) < 2 or n.last_size(pairs) != 2 or 2 * (n.shape_of(pairs)[-2]) != n.last_size(node):
        return None
    if n.is_op(pairs, "aten.expand"):
        single = pairs.args[0]
        if n.last_size(single) != 1 or n.rank(single) != n.rank(pairs):
            return None
        if not all(map(n.same_size, n.shape_of(single)[:-1], n.shape_of(pairs)[:-1])):
            return None
    elif n.is_op(pairs, "aten.cat") and pairs.args[1] == n.rank(pairs) - 1:
        parts = pairs.args[0]
        if len(parts) != 2 or parts[0] is not parts[1]:
            return None
        single = parts[0]
    else:
        return None
    if n.is_op(single, "aten.unsqueeze") and single.args[1] == n.rank(single) - 1:
        return single.args[0]
    if n.is_op(single, "aten.reshape") and n.last_size(single) == 1:
        inner = single.args[0]
        return inner if n.last_size(inner) == n.shape_of(pairs)[-2] else None
    return None
