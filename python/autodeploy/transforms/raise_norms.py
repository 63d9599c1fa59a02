"""Normalisations, called or written out, become canonical ops."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .forms import sizes
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace

_NO_EPS = torch.finfo(torch.float32).eps  # what PyTorch takes when none is given, for float32


class RaiseNorms(Transform):
    """Finds root mean square and layer normalisation over the last dim.

    1. aten.layer_norm and aten.rms_norm over k trailing dims are `layer_norm` and `rms_norm` of the value with these
       dims made one.
    2. x * rsqrt(mean(x*x) + eps) is `rms_norm(x)`: the square may be pow, square or a product; the mean may be a sum
       times or over its size; the root may be rsqrt, 1/sqrt, a division by sqrt, or a power of -0.5; conversions to
       float32 in between don't count, for the op computes in float32.
    3. A weight [H] multiplied on afterwards is the op's weight, before or after the conversion back; offset + w is a
       weight with that `offset`. A reshape that leaves the last dim alone may stand in between.
    4. Where x is z - mean(z), it is `layer_norm(z)`, and a bias [H] added after the weight is the op's bias.
    5. The result has the dtype of the captured result; a conversion is put in where that of x differs.
    """

    name = "raise_norms"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or not node.users:
                continue
            if n.is_op(node, "aten.layer_norm", "aten.rms_norm"):
                replace(node, _called(rewriter, node))
                changed = True
            elif n.is_op(node, "aten.mul", "aten.div"):
                match = _Match.at(node)
                if match is not None:
                    replace(match.last, match.build(rewriter))
                    changed = True
        return bool(erase_dead(ir.graph)) or changed


def _called(r: Rewriter, node: Node) -> Node:
    a = n.bound(node)
    x, weight, bias, dims = a["input"], a["weight"], a.get("bias"), len(a["normalized_shape"])
    if dims > 1:
        shape = list(n.shape_of(x))
        width = 1
        for s in shape[len(shape) - dims :]:
            width *= int(s)
        x = r.call(aten.reshape.default, x, sizes([*shape[: len(shape) - dims], width]), like=node, before=node)
        weight, bias = (
            w if w is None else r.call(aten.reshape.default, w, [width], like=node, before=node) for w in (weight, bias)
        )
    eps = _NO_EPS if a["eps"] is None else float(a["eps"])
    if n.is_op(node, "aten.layer_norm"):
        out = r.call(canonical.layer_norm.default, x, weight, bias, eps, like=node, before=node)
    else:
        out = r.call(canonical.rms_norm.default, x, weight, eps, 0.0, like=node, before=node)
    out.meta.setdefault("via", "pattern")
    if dims > 1:
        out = r.call(aten.reshape.default, out, sizes(n.shape_of(node)), like=node, before=node)
    return out


def narrow_source(node: Node) -> Node:
    """The value before conversions to a wider float."""
    while n.is_float_cast(node):
        x = node.args[0]
        if torch.finfo(n.dtype_of(x)).bits > torch.finfo(n.dtype_of(node)).bits:
            break
        node = x
    return node


class _Match:
    """A written out normalisation: from `x` to `last`."""

    def __init__(self, x: Node, eps: float, root: Node):
        self.x, self.eps = x, eps
        self.width = n.last_size(x)
        self.last = root  # the result that the op takes the place of
        self.weight: Node | None = None
        self.bias: Node | None = None
        self.offset = 0.0
        self.shape_like = x
        centred = narrow_source(x)
        self.centre = _mean_removed(centred)

    @classmethod
    def at(cls, node: Node) -> _Match | None:
        """Rule 2 with `node` as the product or quotient that normalises."""
        a, b = node.args[0], node.args[1]
        pairs = [(a, b)] if n.is_op(node, "aten.div") else [(a, b), (b, a)]
        for x, scale in pairs:
            if not isinstance(x, Node) or not isinstance(scale, Node) or not n.rank(x):
                continue
            root = _square_root(scale) if n.is_op(node, "aten.div") else _reciprocal_root(scale)
            found = None if root is None else _mean_square(root)
            if found is not None and narrow_source(found[0]) is narrow_source(x) and n.same_shape(found[0], x):
                match = cls(x, found[1], node)
                match._absorb_users()
                return match
        return None

    def _absorb_users(self) -> None:
        """Rules 3 and 4: takes in what follows, while nothing else reads what stands between."""
        ahead: Node = self.last
        pending: list[Node] = []  # conversions and reshapes after `last`, taken in only with a weight behind them
        while (user := n.only_user(ahead)) is not None:
            if n.is_float_cast(user) or (n.is_op(user, "aten.reshape") and n.last_size(user) == self.width):
                pending.append(user)
                ahead = user
                continue
            if self.bias is None and n.is_op(user, "aten.mul") and self.weight is None:
                weight = self._vector(user, ahead)
                if weight is not None:
                    self.weight, self.offset = _split_offset(weight)
                    self.last = ahead = user
                    continue
            if self.centre is not None and self.bias is None and n.is_op(user, "aten.add") and len(user.args) == 2:
                bias = self._vector(user, ahead)
                if bias is not None and not user.kwargs:
                    self.bias = narrow_source(bias)
                    self.last = ahead = user
                    continue
            break
        after = n.only_user(self.last)
        if after is not None and n.is_float_cast(after):
            self.last = after

    def _vector(self, user: Node, x: Node) -> Node | None:
        """The other operand of `user` when it is a vector [H] without tokens."""
        other = user.args[1] if user.args[0] is x else user.args[0]
        if not n.is_tensor(other) or n.has_tokens(other) or other is x:
            return None
        shape = n.shape_of(other)
        if len(shape) > n.rank(user) or n.last_size(user) != self.width or n.last_size(other) != self.width:
            return None
        return other if all(s == 1 for s in shape[:-1]) else None

    def build(self, r: Rewriter) -> Node:
        """The canonical op in the place of `last`."""
        last = self.last
        dtype = n.dtype_of(last)
        x = narrow_source(self.x if self.centre is None else self.centre)
        widen = torch.finfo(n.dtype_of(x)).bits < torch.finfo(dtype).bits
        if widen:
            x = r.call(aten.to.dtype, x, dtype, like=last, before=last)
        if not n.same_shape(x, last):
            x = r.call(aten.reshape.default, x, sizes(n.shape_of(last)), like=last, before=last)
        weight, bias = (self._flat(r, w) for w in (self.weight, self.bias))
        if self.centre is None:
            out = r.call(canonical.rms_norm.default, x, weight, self.eps, self.offset, like=last, before=last)
        else:
            if self.offset and weight is not None:
                weight = r.call(aten.add.Tensor, weight, self.offset, like=last, before=last)
            out = r.call(canonical.layer_norm.default, x, weight, bias, self.eps, like=last, before=last)
        out.meta.setdefault("via", "pattern")
        if n.dtype_of(out) != dtype:
            out = r.call(aten.to.dtype, out, dtype, like=last, before=last)
        return out

    def _flat(self, r: Rewriter, vector: Node | None) -> Node | None:
        if vector is None or n.rank(vector) == 1:
            return vector
        return r.call(aten.reshape.default, vector, [self.width], like=self.last, before=self.last)


def _split_offset(weight: Node) -> tuple[Node, float]:
    """(w, offset) of a weight that is offset + w."""
    plain = narrow_source(weight)
    if n.is_op(plain, "aten.add") and n.number(plain.args[1]) is not None and not plain.kwargs:
        return narrow_source(plain.args[0]), float(plain.args[1])
    return plain, 0.0


def _reciprocal_root(x: Node) -> Node | None:
    """y when x is 1/sqrt(y)."""
    x = n.without_casts(x)
    if n.is_op(x, "aten.rsqrt"):
        return x.args[0]
    if n.is_op(x, "aten.pow") and x.args[1] == -0.5:
        return x.args[0]
    if n.is_op(x, "aten.reciprocal"):
        return _square_root(x.args[0])
    if n.is_op(x, "aten.pow") and x.args[1] == -1:
        return _square_root(x.args[0])
    if n.is_op(x, "aten.div") and x.args[0] == 1 and isinstance(x.args[1], Node):
        return _square_root(x.args[1])
    return None


def _square_root(x: Node) -> Node | None:
    """y when x is sqrt(y)."""
    x = n.without_casts(x)
    if n.is_op(x, "aten.sqrt") or (n.is_op(x, "aten.pow") and x.args[1] == 0.5):
        return x.args[0]
    return None


def _mean_square(x: Node) -> tuple[Node, float] | None:
    """(y, eps) when x is mean(y*y, last dim, kept) + eps."""
    x = n.without_casts(x)
    eps = 0.0
    if n.is_op(x, "aten.add"):
        number = next((y for y in x.args if n.number(y) is not None), None)
        inner = next((y for y in x.args if isinstance(y, Node)), None)
        if number is None or inner is None or x.kwargs:
            return None
        x, eps = inner, float(number)
    square = _mean_of(n.without_casts(x))
    if square is None:
        return None
    square = n.without_casts(square)
    if n.is_op(square, "aten.mul") and square.args[0] is square.args[1]:
        return square.args[0], eps
    if n.is_op(square, "aten.square") or (n.is_op(square, "aten.pow") and square.args[1] == 2):
        return square.args[0], eps
    return None


def _mean_of(x: Node) -> Node | None:
    """y when x is mean(y) over the last dim, which stays as a dim of size 1."""
    if n.is_op(x, "aten.unsqueeze") and x.args[1] == n.rank(x) - 1:
        inner, kept = x.args[0], True
    else:
        inner, kept = x, False
    if n.is_op(inner, "aten.mean"):
        return inner.args[0] if _over_last(inner, kept) else None
    if n.is_op(inner, "aten.mul", "aten.div") and isinstance(inner.args[0], Node):
        total = n.without_casts(inner.args[0])
        factor = n.number(inner.args[1])
        if n.is_op(total, "aten.sum") and factor and _over_last(total, kept):
            width = n.last_size(total.args[0])
            scale = factor if n.is_op(inner, "aten.mul") else 1 / factor
            if width and abs(scale * width - 1) < 1e-6:
                return total.args[0]
    return None


def _over_last(node: Node, unsqueezed: bool) -> bool:
    a = n.bound(node)
    return list(a["dim"]) == [n.rank(node.args[0]) - 1] and bool(a["keepdim"]) != unsqueezed


def _mean_removed(x: Node) -> Node | None:
    """z when x is z - mean(z)."""
    if not n.is_op(x, "aten.sub") or x.kwargs or not all(isinstance(y, Node) for y in x.args):
        return None
    z, mean = x.args
    found = _mean_of(n.without_casts(mean))
    return z if found is not None and narrow_source(found) is narrow_source(z) else None
