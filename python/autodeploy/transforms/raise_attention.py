"""Softmax attention written out in a model's own code becomes `attention`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .attention_masks import RESHAPES, hidden_kind, is_hidden, mask_kind, same_square
from .attention_terms import Terms, read_added, slopes_of, table_of
from .base import Transform
from .forms import sizes
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace
from .token_forms import constant_number


class RaiseAttention(Transform):
    """Finds softmax(scores) @ v where scores pair tokens with tokens.

    1. Upwards from the softmax over keys: conversions, reshapes of leading dims, products with and quotients by
       numbers, a maximum with a very negative number, masks, and c * tanh(s / c) (a soft cap) around q @ k^T.
    2. A mask is the opaque mask node, unchanged but for its shape, or is made from token places (tril, triu,
       comparisons), or a triangle of constants cut to T x T; as booleans (where, masked_fill) or as numbers to add
       (0 where a key is seen, very negative where not), before or after other numbers (`attention_terms`).
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
            if product is not None and scores.read(rewriter, node.args[0], node):
                changed = _emit(rewriter, node, scores, product) or changed
        return bool(erase_dead(ir.graph)) or changed


@dataclass
class _Scores:
    """What stands between q @ k^T and the softmax."""

    terms: Terms = field(default_factory=Terms)
    product: Node | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def read(self, r: Rewriter, node: Node, before: Node) -> bool:
        """Follows scores up to their product; False when something does not fit."""
        while self.product is None:
            following = self._step(r, n.without_casts(node), before)
            if following is None:
                return False
            node = following
        return bool(self.terms.kinds)

    def _step(self, r: Rewriter, x: Node, before: Node) -> Node | None:
        if n.is_op(x, "aten.matmul", "aten.bmm"):
            self.product = x
            return x
        if n.is_op(x, "aten.baddbmm"):
            return self._product_with_bias(r, x, before)
        if n.op_name(x) in RESHAPES:
            return x.args[0] if same_square(x, x.args[0]) else None
        if n.is_op(x, "aten.mul", "aten.div"):
            return self._scaled(r, x)
        if n.is_op(x, "aten.add") and not x.kwargs:
            return self._added(r, x, before)
        if n.is_op(x, "aten.where", "aten.masked_fill"):
            return self._hidden(r.ir, x)
        if n.is_op(x, "aten.maximum", "aten.clamp", "aten.clamp_min"):
            return x.args[0] if is_hidden(constant_number(r.ir, x.args[1])) else None
        return None

    def _product_with_bias(self, r: Rewriter, x: Node, before: Node) -> Node | None:
        a = n.bound(x)
        beta, zero = float(a["beta"]), constant_number(r.ir, a["self"]) == 0
        if beta and not zero:
            if self.softcap or not read_added(r, a["self"], self.terms, self.scale * beta, before):
                return None
        self.scale *= float(a["alpha"])
        self.product = x
        return x

    def _added(self, r: Rewriter, x: Node, before: Node) -> Node | None:
        if self.softcap or not all(isinstance(y, Node) for y in x.args):
            return None
        for scores, added in (x.args, x.args[::-1]):
            terms = Terms()
            if not _is_scores(scores) or _is_scores(added):
                continue
            if read_added(r, added, terms, self.scale, before):
                self.terms.kinds += terms.kinds
                self.terms.slopes += terms.slopes
                self.terms.tables += terms.tables
                return scores
        return None

    def _scaled(self, r: Rewriter, x: Node) -> Node | None:
        number = constant_number(r.ir, x.args[1])
        if number is None and n.is_op(x, "aten.mul") and isinstance(x.args[1], Node):
            # 1 where seen and 0 where not, of keys that are hidden behind it.
            kind = mask_kind(r.ir, x.args[1])
            return x.args[0] if kind is not None and kind in self.terms.kinds else None
        if not number:
            return None
        inner = n.without_casts(x.args[0])
        if n.is_op(inner, "aten.tanh") and n.is_op(x, "aten.mul"):
            capped = n.without_casts(inner.args[0])
            divisor = n.number(capped.args[1]) if n.is_op(capped, "aten.div", "aten.mul") else None
            if not divisor or self.softcap or self.scale != 1.0:
                return None
            factor = float(divisor) if n.is_op(capped, "aten.div") else 1 / float(divisor)
            if not math.isclose(factor, number, rel_tol=1e-6):
                return None
            self.softcap = float(number)
            return capped.args[0]
        self.scale *= float(number) if n.is_op(x, "aten.mul") else 1 / float(number)
        return x.args[0]

    def _hidden(self, ir: ModelIR, x: Node) -> Node | None:
        """where(seen, scores, very negative), or masked_fill(scores, hidden, very negative)."""
        if n.is_op(x, "aten.where"):
            seen, scores, value = x.args
            kind = mask_kind(ir, seen)
            if not isinstance(scores, Node) or not _is_scores(scores):
                scores, value = value, scores
                kind = hidden_kind(ir, seen)
        else:
            scores, hidden, value = x.args
            kind = hidden_kind(ir, hidden)
        if kind is None or not is_hidden(constant_number(ir, value)):
            return None
        self.terms.kinds.append(kind)
        return scores


def _is_scores(x: object) -> bool:
    """Whether a product of activations, cut to pairs of tokens, stands behind a value: scores, not what is added."""
    while isinstance(x, Node):
        if n.is_op(x, "aten.matmul", "aten.bmm", "aten.baddbmm"):
            return n.rank(x) >= 2 and all(map(n.is_symbolic, n.shape_of(x)[-2:]))
        if n.is_op(x, "aten.where"):
            if _is_scores(x.args[2]):
                return True
            x = x.args[1]
        elif n.is_op(x, "aten.add"):
            return any(_is_scores(y) for y in x.args[:2])
        elif n.is_op(x, "aten.mul", "aten.div", "aten.masked_fill", "aten.maximum", "aten.clamp", "aten.clamp_min",
                     "aten.tanh") or n.is_cast(x) or n.op_name(x) in RESHAPES:
            x = x.args[0]
        else:
            return False
    return False


def _values_product(softmax: Node) -> Node | None:
    """The product of the probabilities with v."""
    node = softmax
    while True:
        user = n.only_user(node)
        if user is None:
            return None
        if n.is_float_cast(user) or n.op_name(user) in RESHAPES:
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
    merged = scores.terms.merged()
    if merged is None or not merged.causal or merged.window < 0:  # later tokens: refused by `raise_over_keys`
        return False
    slopes = slopes_of(r, scores.terms, query, product)
    table = table_of(r, scores.terms, query, product)
    if (scores.terms.slopes and slopes is None) or (scores.terms.tables and table is None):
        return False

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
        slopes,
        table,
        None,
        scores.scale,
        merged.causal,
        merged.window,
        merged.chunk,
        scores.softcap,
        like=softmax,
        before=product,
    )
    out.meta["via"] = "pattern"
    out = r.call(aten.permute.default, out, [1, 0, 2], like=product, before=product)
    replace(product, r.call(aten.reshape.default, out, sizes(n.shape_of(product)), like=product, before=product))
    return True
