"""Matrix products with weights, and table look-ups, become canonical ops."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .forms import sizes
from .nodes import aten, canonical
from .rewrite import Rewriter, erase_dead, replace


class RaiseLinear(Transform):
    """Products of tokens with a weight become `linear`; rows of a table picked by token become `embedding`.

    1. aten.linear(x, w, b) whose weight has no tokens is `linear(x, w, b)`.
    2. x @ W with W [K, N] (mm, matmul, addmm; weights kept transposed) is `linear(x, W permuted)`: the permutation is
       folded into the weight program later.
    3. Of addmm, a bias [N] goes into the linear; anything else, and its factors alpha and beta, is written out.
    4. baddbmm, and addmm and linear of two values with tokens, are written out as matmul, mul and add.
    5. aten.embedding, index_select along the first dim that is not 1, and indexing by one tensor in dim 0, of a table
       of floats without tokens, are `embedding`; dims of a table after the first are one for the look-up.
    """

    name = "raise_linear"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in list(ir.graph.nodes):
            rule = _RULES.get(n.op_name(node))
            new = rule(rewriter, node, n.bound(node)) if rule is not None else None
            if new is not None:
                replace(node, new)
                changed = True
        return bool(erase_dead(ir.graph)) or changed


def _linear(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if n.has_tokens(weight) or n.rank(weight) != 2:
        out = r.call(aten.matmul.default, x, _transposed(r, node, weight), like=node, before=node)
        return out if bias is None else r.call(aten.add.Tensor, out, bias, like=node, before=node)
    return _raised(r, node, x, weight, bias)


def _raised(r: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None) -> Node:
    """linear(x, weight, bias) in the dtype of `node`."""
    out = r.call(canonical.linear.default, x, weight, bias, like=node, before=node)
    out.meta.setdefault("via", "pattern")
    return out


def _transposed(r: Rewriter, node: Node, weight: Node) -> Node:
    last = n.rank(weight) - 1
    order = [*range(last - 1), last, last - 1]
    if n.is_op(weight, "aten.permute") and list(weight.args[1]) == order:
        return weight.args[0]
    return r.call(aten.permute.default, weight, order, like=node, before=node)


def _product(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, weight = node.args[0], node.args[1]
    if n.has_tokens(weight) or not n.has_tokens(x) or n.rank(weight) != 2 or n.rank(x) < 2:
        return None
    return _raised(r, node, x, _transposed(r, node, weight), None)


def _addmm(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    added, x, weight = node.args[:3]
    alpha, beta = a.get("alpha", 1), a.get("beta", 1)
    width = n.last_size(node)
    plain = alpha == 1 and beta == 1 and n.rank(added) == 1 and n.last_size(added) == width
    if n.rank(weight) == 2 and not n.has_tokens(weight) and n.has_tokens(x):
        bias = added if plain and not n.has_tokens(added) else None
        out = _raised(r, node, x, _transposed(r, node, weight), bias)
        if bias is not None:
            return out
    else:
        out = r.call(aten.matmul.default, x, weight, like=node, before=node)
    if alpha != 1:
        out = r.call(aten.mul.Tensor, out, alpha, like=node, before=node)
    if beta == 0:
        return out
    if beta != 1:
        added = r.call(aten.mul.Tensor, added, beta, like=node, before=node)
    return r.call(aten.add.Tensor, out, added, like=node, before=node)


def _look_up(r: Rewriter, node: Node, table: Node, ids: Node) -> Node | None:
    if n.has_tokens(table) or not n.has_tokens(ids) or not n.rank(table) or not n.dtype_of(table).is_floating_point:
        return None  # a table of numbers to count with is read by the generic index_select
    shape = list(n.shape_of(table))
    flat = table
    if len(shape) != 2:
        flat = r.call(aten.reshape.default, table, [int(shape[0]), -1], like=node, before=node)
    out = r.call(canonical.embedding.default, ids, flat, like=node, before=node)
    out.meta.setdefault("via", "pattern")
    if len(shape) == 2:
        return out
    return r.call(aten.reshape.default, out, sizes(n.shape_of(node)), like=node, before=node)


def _embedding(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    return _look_up(r, node, a["weight"], a["indices"])


def _index_select(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    table, dim = a["self"], a["dim"]
    if not dim:
        return _look_up(r, node, table, a["index"])
    if n.has_tokens(table) or not n.has_tokens(a["index"]) or any(s != 1 for s in n.shape_of(table)[:dim]):
        return None
    table = r.call(aten.squeeze.dims, table, list(range(dim)), like=node, before=node)
    rows = r.call(aten.index_select.default, table, 0, a["index"], like=node, before=node)
    found = _look_up(r, rows, table, a["index"])
    if found is None:
        return None
    return r.call(aten.reshape.default, found, sizes(n.shape_of(node)), like=node, before=node)


def _index(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    indices = list(a["indices"])
    if indices[0] is None or any(x is not None for x in indices[1:]) or n.dtype_of(indices[0]).is_floating_point:
        return None
    return _look_up(r, node, a["self"], indices[0])


_RULES = {
    "aten.linear": _linear, "aten.mm": _product, "aten.matmul": _product, "aten.addmm": _addmm,
    "aten.baddbmm": _addmm, "aten.embedding": _embedding, "aten.index_select": _index_select, "aten.index": _index,
}  # fmt: skip
