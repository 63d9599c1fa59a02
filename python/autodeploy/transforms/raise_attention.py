"""Softmax attention written out in a model's own code becomes `attention`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from ..ir import ModelIR
from ..ops import OPS, op_of
from . import nodes as n
from .base import Transform
from .forms import sizes
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace

_HIDDEN = -1e4  # what is added to scores to hide a key is at most this
_RESHAPES = ("aten.reshape", "aten.view", "aten.unsqueeze", "aten.squeeze", "aten.expand")


class RaiseAttention(Transform):
    """Finds softmax(scores) @ v where scores pair tokens with tokens.

    1. Upwards from the softmax over keys: conversions, reshapes of leading dims, products with and quotients by
       numbers, a maximum with a very negative number, masks, and c * tanh(s / c) (a soft cap) around q @ k^T.
    2. A mask is the opaque mask node, unchanged but for its shape, as booleans (where, masked_fill) or as numbers to
       add (0 where a key is seen, very negative where not); or a lower triangle of constants, cut to T x T.
    3. The probabilities may be converted before they meet v. Leading dims must be one of heads and others of size 1.
    4. Keys and values may have fewer heads than queries when these are a multiple (one key head for all queries).
    5. What does not fit stays, and the proof of the token axis refuses it with its line.
    """

    name = "raise_attention"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.softmax"):
            shape = n.shape_of(node)
            if len(shape) < 2 or node.args[1] != len(shape) - 1 or not all(map(n.is_symbolic, shape[-2:])):
                continue
            scores = _Scores()
            product = _values_product(node)
            if product is not None and scores.read(ir, node.args[0]) and _emit(rewriter, node, scores, product):
                changed = True
        return bool(erase_dead(ir.graph)) or changed


@dataclass
class _Scores:
    """What stands between q @ k^T and the softmax."""

    product: Node | None = None
    scale: float = 1.0
    softcap: float = 0.0
    kinds: list[dict[str, int]] = field(default_factory=list)

    def read(self, ir: ModelIR, node: Node) -> bool:
        """Follows scores up to their product; False when something does not fit."""
        while self.product is None:
            following = self._step(ir, n.without_casts(node))
            if following is None:
                return False
            node = following
        return bool(self.kinds)

    def _step(self, ir: ModelIR, x: Node) -> Node | None:
        if n.is_op(x, "aten.matmul", "aten.bmm"):
            self.product = x
            return x
        if n.is_op(x, "aten.baddbmm"):
            a = n.bound(x)
            if not _is_zero(a["self"]) and a["beta"] != 0:
                return None
            self.scale *= float(a["alpha"])
            self.product = x
            return x
        if n.op_name(x) in _RESHAPES:
            same = [str(s) for s in n.shape_of(x)[-2:]] == [str(s) for s in n.shape_of(x.args[0])[-2:]]
            return x.args[0] if same else None
        if n.is_op(x, "aten.mul", "aten.div"):
            return self._scaled(x)
        if n.is_op(x, "aten.add") and not x.kwargs:
            for scores, mask in (x.args, x.args[::-1]):
                kind = _added_mask(ir, mask) if isinstance(mask, Node) else None
                if kind is not None and isinstance(scores, Node):
                    self.kinds.append(kind)
                    return scores
            return None
        if n.is_op(x, "aten.where", "aten.masked_fill"):
            return self._hidden(ir, x)
        if n.is_op(x, "aten.maximum", "aten.clamp", "aten.clamp_min"):
            bound = x.args[1]
            return x.args[0] if _number_of(ir, bound) is not None and _number_of(ir, bound) <= _HIDDEN else None
        return None

    def _scaled(self, x: Node) -> Node | None:
        number = n.number(x.args[1])
        if number is None or not number:
            return None
        inner = n.without_casts(x.args[0])
        if n.is_op(inner, "aten.tanh") and n.is_op(x, "aten.mul"):
            capped = n.without_casts(inner.args[0])
            divided = n.is_op(capped, "aten.div", "aten.mul") and n.number(capped.args[1])
            if not divided or self.softcap:
                return None
            factor = float(capped.args[1]) if n.is_op(capped, "aten.div") else 1 / float(capped.args[1])
            if not math.isclose(factor, number, rel_tol=1e-6) or self.scale != 1.0:
                return None
            self.softcap = float(number)
            return capped.args[0]
        self.scale *= float(number) if n.is_op(x, "aten.mul") else 1 / float(number)
        return x.args[0]

    def _hidden(self, ir: ModelIR, x: Node) -> Node | None:
        """where(seen, scores, very negative), or masked_fill(scores, hidden, very negative)."""
        if n.is_op(x, "aten.where"):
            seen, scores, value = x.args
            kind = _mask_kind(ir, seen)
        else:
            scores, hidden, value = x.args
            kind = _mask_kind(ir, hidden.args[0]) if n.is_op(hidden, "aten.bitwise_not", "aten.logical_not") else None
        number = _number_of(ir, value)
        if kind is None or number is None or number > _HIDDEN:
            return None
        self.kinds.append(kind)
        return scores


def _number_of(ir: ModelIR, x: object) -> float | None:
    """The number that an argument is: itself, a filled tensor, or a constant of one element."""
    if not isinstance(x, Node):
        return n.number(x)
    x = n.without_casts(x)
    if n.is_op(x, "aten.full"):
        return n.number(n.bound(x)["fill_value"])
    constant = ir.constants.get(str(x.target)) if x.op == "placeholder" else None
    return float(constant.value.item()) if constant is not None and constant.value.numel() == 1 else None


def _is_zero(x: Node) -> bool:
    if n.is_op(x, "aten.full"):
        return n.bound(x)["fill_value"] == 0
    return n.is_op(x, "aten.zeros", "aten.new_zeros", "aten.zeros_like")


def _added_mask(ir: ModelIR, x: Node) -> dict[str, int] | None:
    """The kind of mask in numbers: where(seen, 0, very negative)."""
    x = _unshaped(x)
    if not n.is_op(x, "aten.where") or len(x.args) != 3:
        return None
    seen, zero, value = x.args
    number = _number_of(ir, value)
    if _number_of(ir, zero) != 0 or number is None or number > _HIDDEN:
        return None
    return _mask_kind(ir, seen)


def _unshaped(x: Node) -> Node:
    """The value before conversions and reshapes that leave the last two dims alone."""
    while True:
        x = n.without_casts(x)
        if n.op_name(x) not in _RESHAPES:
            return x
        if [str(s) for s in n.shape_of(x)[-2:]] != [str(s) for s in n.shape_of(x.args[0])[-2:]]:
            return x
        x = x.args[0]


def _mask_kind(ir: ModelIR, x: Node) -> dict[str, int] | None:
    """Attributes of `attention` that a boolean mask stands for."""
    x = _unshaped(x)
    if n.is_cast(x):
        return _mask_kind(ir, x.args[0])
    op = op_of(getattr(x, "target", None))
    if op is OPS["mask"]:
        a = op.bind(x.args, x.kwargs)
        if a.get("padding") is not None:
            return None
        return {k: int(a[k]) for k in ("causal", "window", "chunk")}
    return _triangle(ir, x)


def _triangle(ir: ModelIR, x: Node) -> dict[str, int] | None:
    """The kind of a constant triangle [.., N, N] cut to [.., T, T] from its first row and column."""
    cut = 0
    while n.is_op(x, "aten.slice") or n.op_name(x) in _RESHAPES:
        a = n.bound(x)
        if n.is_op(x, "aten.slice"):
            dim = n.normal_dim(a["dim"], n.rank(x))
            if dim >= n.rank(x) - 2 and not n.same_shape(x, a["self"]):
                if a["start"] not in (None, 0) or a["step"] != 1:
                    return None
                cut += 1
        x = x.args[0]
    constant = ir.constants.get(str(x.target)) if x.op == "placeholder" else None
    if constant is None or cut != 2 or constant.value.dim() < 2 or constant.value[..., 0, 0].numel() != 1:
        return None
    table = constant.value.reshape(constant.value.shape[-2:]).bool()
    rows = torch.arange(table.shape[0])
    distance = rows[:, None] - torch.arange(table.shape[1])[None, :]
    if table.shape[0] != table.shape[1]:
        return None
    window = int(table[-1].sum())
    for kind in (0, window):
        seen = (distance >= 0) & (distance < kind) if kind else distance >= 0
        if torch.equal(table, seen):
            return {"causal": 1, "window": kind, "chunk": 0}
    return None


def _values_product(softmax: Node) -> Node | None:
    """The product of the probabilities with v."""
    node = softmax
    while True:
        user = n.only_user(node)
        if user is None:
            return None
        if n.is_float_cast(user) or n.op_name(user) in _RESHAPES:
            node = user
            continue
        return user if n.is_op(user, "aten.matmul", "aten.bmm") and user.args[0] is node else None


def _heads(x: Node, rows: int) -> list[int] | None:
    """Heads of [.., H, T, D] whose dim -rows is T: sizes of the leading dims but for ones; None unless at most one."""
    shape = n.shape_of(x)
    if not n.is_symbolic(shape[-rows]) or n.is_symbolic(shape[-3 + rows]):
        return None
    lead = [s for s in shape[:-2] if not n.same_size(s, 1)]
    if len(lead) > 1 or any(n.is_symbolic(s) for s in lead):
        return None
    return [int(s) for s in lead] or [1]


def _emit(r: Rewriter, softmax: Node, scores: _Scores, product: Node) -> bool:
    dot = scores.product
    assert dot is not None
    q, k = dot.args[-2:] if n.is_op(dot, "aten.baddbmm") else dot.args[:2]
    v = product.args[1]
    found = [_heads(q, 2), _heads(k, 1), _heads(v, 2)]
    if any(h is None for h in found):
        return False
    query, key, value = (h[0] for h in found)  # type: ignore[index]
    if query % key or key != value:
        return False
    merged: dict[str, int] = {"causal": 0, "window": 0, "chunk": 0}
    for kind in scores.kinds:
        for name, size in kind.items():
            if name == "causal":
                merged[name] |= size
            elif size:
                if name == "chunk" and merged[name] not in (0, size):
                    return False
                merged[name] = min(merged[name] or size, size)

    def tokens_first(x: Node, heads: int, order: list[int]) -> Node:
        """x as [T, heads, width]: `order` of its dims [heads, a, b]."""
        shape = n.shape_of(x)
        flat = r.call(aten.reshape.default, x, sizes([heads, *shape[-2:]]), like=product, before=product)
        flat = r.call(aten.permute.default, flat, order, like=product, before=product)
        if n.dtype_of(flat) != n.dtype_of(product):
            flat = r.call(aten.to.dtype, flat, n.dtype_of(product), like=product, before=product)
        return flat

    out = r.call(
        canonical.attention.default,
        tokens_first(q, query, [1, 0, 2]),
        tokens_first(k, key, [2, 0, 1]),
        tokens_first(v, value, [1, 0, 2]),
        None,
        scores.scale,
        bool(merged["causal"]),
        merged["window"],
        merged["chunk"],
        scores.softcap,
        like=softmax,
        before=product,
    )
    out.meta["via"] = "pattern"
    out = r.call(aten.permute.default, out, [1, 0, 2], like=product, before=product)
    replace(product, r.call(aten.reshape.default, out, sizes(n.shape_of(product)), like=product, before=product))
    return True
