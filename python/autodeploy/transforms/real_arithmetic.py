"""Complex numbers become pairs of real ones."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten
from .rewrite import Rewriter, erase_dead, replace

_Pair = tuple[Node, Node]


class RealArithmetic(Transform):
    """Rewrites complex values as their real and imaginary parts.

    1. view_as_complex(x) is the pair x[..., 0], x[..., 1]; polar(r, a) is r cos a, r sin a; complex(x, y) is x, y.
    2. Views, negation, sums and products with numbers and real tensors act on the parts; conj negates the second.
    3. (a + bi)(c + di) is (ac - bd) + (ad + bc)i.
    4. view_as_real stacks the parts in a last dim of 2; real and imag take one.
    5. Anything else that is complex stays, and is refused later.
    """

    name = "real_arithmetic"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        parts: dict[Node, _Pair] = {}
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or not n.is_tensor(node):
                continue
            if n.dtype_of(node).is_complex:
                found = _parts(rewriter, node, parts)
                if found is not None:
                    parts[node] = found
            elif node.args and node.args[0] in parts:
                new = _real(rewriter, node, parts[node.args[0]])
                if new is not None:
                    replace(node, new)
                    changed = True
        return bool(erase_dead(ir.graph)) or changed


def _parts(r: Rewriter, node: Node, parts: dict[Node, _Pair]) -> _Pair | None:
    """The real and imaginary part of a complex call."""

    def call(target: Any, *args: Any) -> Node:
        return r.call(target, *args, like=node, before=node)

    name = n.op_name(node)
    a = node.args
    if name == "aten.view_as_complex":
        last = n.rank(a[0]) - 1
        return call(aten.select.int, a[0], last, 0), call(aten.select.int, a[0], last, 1)
    if name == "aten.complex":
        return a[0], a[1]
    if name == "aten.polar":
        re, im = call(aten.cos.default, a[1]), call(aten.sin.default, a[1])
        if n.is_op(a[0], "aten.full") and n.bound(a[0])["fill_value"] == 1:
            return re, im
        return call(aten.mul.Tensor, a[0], re), call(aten.mul.Tensor, a[0], im)
    pairs = [parts.get(x) if isinstance(x, Node) and n.dtype_of(x).is_complex else None for x in a[:2]]
    if pairs[0] is None and (len(pairs) < 2 or pairs[1] is None):
        return None
    if n.is_view(node) or name == "aten.neg":
        return tuple(call(node.target, x, *a[1:]) for x in pairs[0])  # type: ignore[return-value,union-attr]
    if name in ("aten._conj", "aten.conj", "aten.resolve_conj"):
        re, im = pairs[0]  # type: ignore[misc]
        return re, im if name == "aten.resolve_conj" else call(aten.neg.default, im)
    if name == "aten.mul":
        if pairs[0] is not None and pairs[1] is not None:
            (p, q), (s, t) = pairs
            re = call(aten.sub.Tensor, call(aten.mul.Tensor, p, s), call(aten.mul.Tensor, q, t))
            im = call(aten.add.Tensor, call(aten.mul.Tensor, p, t), call(aten.mul.Tensor, q, s))
            return re, im
        pair, other = (pairs[0], a[1]) if pairs[0] is not None else (pairs[1], a[0])
        if not isinstance(other, complex):
            return tuple(call(aten.mul.Tensor, x, other) for x in pair)  # type: ignore[return-value,union-attr]
    if name in ("aten.add", "aten.sub") and pairs[0] is not None and len(pairs) > 1 and pairs[1] is not None:
        return tuple(call(node.target, x, y) for x, y in zip(*pairs, strict=True))  # type: ignore[return-value]
    return None


def _real(r: Rewriter, node: Node, pair: _Pair) -> Node | None:
    """A real call on a complex value."""
    name = n.op_name(node)
    if name == "aten.view_as_real":
        last = n.rank(node) - 1
        columns = [r.call(aten.unsqueeze.default, x, last, like=node, before=node) for x in pair]
        return r.call(aten.cat.default, columns, last, like=node, before=node)
    if name in ("aten.real", "aten.imag"):
        return pair[name == "aten.imag"]
    return None
