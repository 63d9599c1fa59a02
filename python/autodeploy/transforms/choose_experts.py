"""Experts that are all computed, with weights that are 0 for all but a few, are computed for those few."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten, canonical
from .pointwise import POINTWISE
from .rewrite import Rewriter, erase_dead, replace

_RESHAPES = ("aten.reshape", "aten.view")
_ZERO_AT_ZERO = {"aten.silu", "aten.gelu", "aten.relu", "aten.tanh", "aten.neg", "aten.abs", "aten.square", "aten.to",
                 "aten._to_copy", "aten.slice", "aten.reshape", "aten.expand", "aten.permute"}  # fmt: skip


class ChooseExperts(Transform):
    """Finds a sum over E experts of [E, T, H], each a product with the expert's own matrix of all tokens.

    1. Weights of experts [T, E] are a scatter of the best k values of a router into a tensor of one value, and what is
       made of it: the sigmoid or softmax of -inf, or 0, is 0 for every other expert.
    2. The sum's terms are 0 where the weight is: products, activations that are 0 at 0, parts and sums of such values.
    3. Then only the k experts of each token count: products by expert become `expert_linear` over their ids, the
       weights are gathered, tokens are repeated k times, and the sum runs over the k.
    """

    name = "choose_experts"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in n.calls(ir.graph, "aten.sum"):
            x = node.args[0]
            shape = n.shape_of(x)
            if len(shape) != 3 or n.is_symbolic(shape[0]) or n.reduced_dims(node, n.bound(node)) != [0]:
                continue
            if n.bound(node).get("keepdim") or not n.same_size(shape[1], ir.T):
                continue
            chosen = _Chosen(rewriter, node, int(shape[0]))
            if chosen.read(x):
                replace(node, chosen.write(x))
                changed = True
        return bool(erase_dead(ir.graph)) or changed


class _Chosen:
    """The terms of one sum: `scores` [T, E] are its weights, `ids` [T, k] the experts whose weights are not 0."""

    def __init__(self, r: Rewriter, total: Node, experts: int):
        self.r, self.total, self.experts = r, total, experts
        self.scores: Node | None = None
        self.ids: Node | None = None
        self.zero: dict[Node, bool] = {}
        self.rows: dict[Node, Node] = {}
        self.products = 0

    def read(self, x: Node) -> bool:
        """Whether the terms are of the known form, and 0 where their weight is."""
        return self._known(x) and self.scores is not None and self.products > 0 and self.zero[x]

    def _known(self, x: Node) -> bool:
        """Follows a value with experts; `zero` says whether it is 0 where the weight is."""
        if x in self.zero:
            return True
        name = n.op_name(x)
        if self._is_scores(x):
            self.zero[x] = True
            return True
        if name == "aten.expand" and len(n.shape_of(x)) == 3 and self._has_experts(x):
            self.zero[x] = False
            return n.rank(x.args[0]) == 2 or n.same_size(n.shape_of(x.args[0])[0], 1)
        if name in ("aten.bmm", "aten.matmul"):
            weight = x.args[1]
            if n.rank(weight) != 3 or n.has_tokens(weight) or n.shape_of(weight)[0] != self.experts:
                return False
            self.products += 1
            known = self._has_experts(x) and self._known(x.args[0])
            self.zero[x] = known and self.zero[x.args[0]]
            return known
        if name in _RESHAPES or name == "aten.slice":
            before = x.args[0]
            if not self._has_experts(x) or not self._has_experts(before) or not self._known(before):
                return False
            if name == "aten.slice" and n.normal_dim(n.bound(x)["dim"], n.rank(x)) != n.rank(x) - 1:
                return False
            if name in _RESHAPES and not n.same_size(n.shape_of(x)[-1], n.shape_of(before)[-1]):
                return False
            self.zero[x] = self.zero[before]
            return True
        if name in POINTWISE and self._has_experts(x):
            operands = list(n.tensor_inputs(x))
            if not all(self._known(y) if n.has_tokens(y) else n.rank(y) <= 1 for y in operands):
                return False
            zeros = [self.zero.get(y, False) for y in operands]
            if name == "aten.mul":
                self.zero[x] = any(zeros)
            else:
                plain = name in _ZERO_AT_ZERO or (name in ("aten.add", "aten.sub") and len(operands) == 2)
                self.zero[x] = plain and bool(zeros) and all(zeros)
            return True
        return False

    def _has_experts(self, x: Node) -> bool:
        """[E, T, D], or [E * T, D]."""
        shape = n.shape_of(x)
        tokens = self.r.ir.T
        if len(shape) == 3:
            return n.same_size(shape[0], self.experts) and n.same_size(shape[1], tokens)
        return len(shape) == 2 and n.is_symbolic(shape[0]) and n.same_size(shape[0], tokens * self.experts)

    def _is_scores(self, x: Node) -> bool:
        """[E * T, 1] or [E, T, 1] of the weights [T, E], expert by expert."""
        if not n.is_tensor(x) or not self._has_experts(x) or not n.same_size(n.shape_of(x)[-1], 1):
            return False
        before = x
        while n.op_name(before) in (*_RESHAPES, "aten.unsqueeze"):
            before = before.args[0]
        if not n.is_op(before, "aten.permute") or list(before.args[1]) != [1, 0]:
            return False
        scores = before.args[0]
        ids = _few(scores)
        if ids is None or self.scores not in (None, scores) or n.shape_of(scores)[-1] != self.experts:
            return False
        self.scores, self.ids = scores, ids
        return True

    # Writing.

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.r.call(target, *args, like=self.total, before=self.total, **kwargs)

    def write(self, x: Node) -> Node:
        assert self.ids is not None
        self.k = int(n.shape_of(self.ids)[-1])
        self.flat = self.call(aten.reshape.default, self.ids, [-1])
        rows = self._rows(x)
        rows = self.call(aten.reshape.default, rows, [-1, self.k, int(n.shape_of(rows)[-1])])
        return self.call(aten.sum.dim_IntList, rows, [1], False)

    def _rows(self, x: Node) -> Node:
        """A value with experts as [T * k, D]: row t * k + j is that of token t and its j-th expert."""
        if x not in self.rows:
            self.rows[x] = self._row_call(x)
        return self.rows[x]

    def _row_call(self, x: Node) -> Node:
        name, width = n.op_name(x), int(n.shape_of(x)[-1])
        if self._is_scores(x):
            weights = self.call(aten.gather.default, self.scores, 1, self.ids)
            return self.call(aten.reshape.default, weights, [-1, 1])
        if name == "aten.expand":
            tokens = self.call(aten.reshape.default, x.args[0], [-1, 1, width])
            tokens = self.call(aten.expand.default, tokens, [-1, self.k, -1])
            return self.call(aten.reshape.default, tokens, [-1, width])
        if name in ("aten.bmm", "aten.matmul"):
            weight = self.call(aten.permute.default, x.args[1], [0, 2, 1])
            out = self.call(canonical.expert_linear.default, self._rows(x.args[0]), weight, self.flat, None, 1)
            out.meta["via"] = "pattern"
            return out
        if name in _RESHAPES:
            return self._rows(x.args[0])
        if name == "aten.slice":
            a = n.bound(x)
            return self.call(aten.slice.Tensor, self._rows(a["self"]), 1, a["start"], a["end"], a["step"])
        swap = lambda y: self._rows(y) if n.has_tokens(y) else y  # noqa: E731
        args, kwargs = (_mapped(part, swap) for part in (x.args, x.kwargs))
        return self.call(x.target, *args, **kwargs)


def _mapped(arguments: Any, swap: Any) -> Any:
    if isinstance(arguments, dict):
        return {k: swap(y) if isinstance(y, Node) else y for k, y in arguments.items()}
    return tuple(swap(y) if isinstance(y, Node) else y for y in arguments)


def _few(scores: Node) -> Node | None:
    """ids [T, k] of the experts whose weights in scores [T, E] may be other than 0."""
    x, at_least = scores, False
    while True:
        if n.is_float_cast(x):
            x = x.args[0]
        elif n.is_op(x, "aten.sigmoid") or (n.is_op(x, "aten.softmax") and x.args[1] == n.rank(x) - 1):
            if at_least:
                return None  # of a weight, not of a router's value
            at_least, x = True, x.args[0]
        else:
            break
    if not n.is_op(x, "aten.scatter"):
        return None
    a = n.bound(x)
    base = n.without_casts(a["self"])
    if n.normal_dim(a["dim"], n.rank(x)) != n.rank(x) - 1 or not n.is_op(base, "aten.full") or n.rank(x) != 2:
        return None
    wanted = -math.inf if at_least else 0
    if n.bound(base)["fill_value"] != wanted:
        return None
    ids = a["index"]
    best = n.op_name(ids) == n.GETITEM and n.is_op(ids.args[0], "aten.topk") and ids.args[1] == 1
    return ids if best else None
