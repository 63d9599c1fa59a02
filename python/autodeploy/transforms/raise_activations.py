"""Activations written out in arithmetic become the one op that they are."""

from __future__ import annotations

import math

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten
from .rewrite import Rewriter, erase_dead, replace

_TOLERANCE = 1e-4  # of coefficients: models write sqrt(2/pi) and 0.044715 with five digits or more
_TANH_1, _TANH_3 = math.sqrt(2 / math.pi), math.sqrt(2 / math.pi) * 0.044715
_ERF_1 = math.sqrt(0.5)


class RaiseActivations(Transform):
    """Finds GELU and SiLU in arithmetic.

    1. x/2 * (1 + tanh(p(x))) with p(x) = sqrt(2/pi) * (x + 0.044715 x^3), however the products are ordered, is gelu(x)
       with approximate="tanh" (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    2. x/2 * (1 + erf(x / sqrt(2))) is gelu(x).
    3. x * sigmoid(x) is silu(x).
    """

    name = "raise_activations"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.tanh", "aten.erf", "aten.sigmoid"):
            found = _sigmoid(node) if n.is_op(node, "aten.sigmoid") else _gelu(node)
            if found is None:
                continue
            last, x, approximate = found
            if approximate is None:
                new = rewriter.call(aten.silu.default, x, like=last, before=last)
            else:
                new = rewriter.call(aten.gelu.default, x, like=last, before=last, approximate=approximate)
            if n.dtype_of(new) == n.dtype_of(last):
                replace(last, new)
                changed = True
        return bool(erase_dead(ir.graph)) or changed


def _sigmoid(node: Node) -> tuple[Node, Node, None] | None:
    x = node.args[0]
    for user in node.users:
        if n.is_op(user, "aten.mul") and set(user.args) == {x, node}:
            return user, x, None
    return None


def _gelu(node: Node) -> tuple[Node, Node, str] | None:
    plus_one = n.only_user(node)
    if plus_one is None or not n.is_op(plus_one, "aten.add") or 1 not in plus_one.args or plus_one.kwargs:
        return None
    inner = node.args[0]
    for x in _bases(inner):
        p = _polynomial(inner, x)
        if p is None:
            continue
        if n.is_op(node, "aten.erf"):
            kind = "none" if _close(p, {1: _ERF_1}) else None
        else:
            kind = "tanh" if _close(p, {1: _TANH_1, 3: _TANH_3}) else None
        last = _half_product(plus_one, x) if kind is not None else None
        if last is not None:
            return last, x, kind
    return None


def _bases(node: Node, depth: int = 6) -> list[Node]:
    """Values that an arithmetic expression may be a polynomial of: its leaves, and x of a power of x."""
    if depth and n.is_op(node, "aten.mul", "aten.add", "aten.div", "aten.pow", "aten.square"):
        found: dict[Node, None] = {}
        for y in node.args:
            if isinstance(y, Node):
                found.update(dict.fromkeys(_bases(y, depth - 1)))
        return list(found)
    return [node]


def _polynomial(node: Node | float, x: Node, depth: int = 8) -> dict[int, float] | None:
    """Coefficients by power when node is a polynomial of x."""
    if n.number(node) is not None:
        return {0: float(node)}  # type: ignore[arg-type]
    if node is x:
        return {1: 1.0}
    if not depth or not isinstance(node, Node) or node.kwargs:
        return None
    if n.is_op(node, "aten.square"):
        inner = _polynomial(node.args[0], x, depth - 1)
        return None if inner is None else _product(inner, inner)
    if not n.is_op(node, "aten.mul", "aten.add", "aten.div", "aten.pow"):
        return None
    a, b = node.args[0], node.args[1]
    if n.is_op(node, "aten.pow"):
        base = _polynomial(a, x, depth - 1)
        if base is None or b not in (2, 3):
            return None
        square = _product(base, base)
        return square if b == 2 else _product(square, base)
    p, q = _polynomial(a, x, depth - 1), _polynomial(b, x, depth - 1)
    if p is None or q is None:
        return None
    if n.is_op(node, "aten.add"):
        return {k: p.get(k, 0.0) + q.get(k, 0.0) for k in p.keys() | q.keys()}
    if n.is_op(node, "aten.div"):
        return {k: v / q[0] for k, v in p.items()} if set(q) == {0} and q[0] else None
    return _product(p, q)


def _product(p: dict[int, float], q: dict[int, float]) -> dict[int, float]:
    out: dict[int, float] = {}
    for i, a in p.items():
        for j, b in q.items():
            out[i + j] = out.get(i + j, 0.0) + a * b
    return out


def _close(p: dict[int, float], wanted: dict[int, float]) -> bool:
    p = {k: v for k, v in p.items() if v}
    return p.keys() == wanted.keys() and all(math.isclose(p[k], wanted[k], rel_tol=_TOLERANCE) for k in p)


def _half_product(factor: Node, x: Node) -> Node | None:
    """The node that is factor * x / 2, found by going up from `factor` through products."""
    node, coefficient, has_x = factor, 1.0, False
    for _ in range(3):
        if abs(coefficient - 0.5) < 1e-6 and has_x:
            return node
        user = n.only_user(node)
        if user is None or not n.is_op(user, "aten.mul", "aten.div") or user.kwargs:
            return None
        if n.is_op(user, "aten.div"):
            if user.args[0] is not node or not n.number(user.args[1]):
                return None
            coefficient /= float(user.args[1])
        else:
            other = user.args[1] if user.args[0] is node else user.args[0]
            if n.number(other) is not None:
                coefficient *= float(other)
            elif has_x:
                return None
            else:
                scale = _polynomial(other, x)
                if scale is None or set(scale) != {1}:
                    return None
                coefficient, has_x = coefficient * scale[1], True
        node = user
    return node if abs(coefficient - 0.5) < 1e-6 and has_x else None
