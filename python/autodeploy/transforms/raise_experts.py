"""Sums over experts, one term each, become one expression in which every row has the matrix of its own expert."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .nodes import aten, canonical
from .pointwise import POINTWISE
from .rewrite import Rewriter, erase_dead, replace


class RaiseExperts(Transform):
    """A loop over experts that capture unrolled becomes products by expert (`expert_linear`).

    1. A term is where(ids == e, y, 0), reshaped and summed over the cells of a token, or not: the share of expert e of
       the cells that `ids` names an expert for.
    2. Terms of one sum with the same ids, the same form and expressions y that differ in nothing but parameters (a row
       of one tensor, or parameters of one shape) form a group, if their experts are consecutive numbers.
    3. A group becomes one term: what is the same in all expressions is computed once; a linear whose weights differ is
       `expert_linear` over the stacked weights; a parameter that is added or multiplied is looked up by expert.
    4. Cells with an expert outside the group count nothing: a `where` says so, unless ids are places of a top-k that
       has no others.
    5. An expert_linear of rows that repeat each token k times reads the tokens themselves (`x_repeat`).
    """

    name = "raise_experts"

    def run(self, ir: ModelIR) -> bool:
        rewriter = Rewriter(ir)
        changed = False
        for node in list(ir.graph.nodes):
            if n.is_op(node, "aten.add") and not any(_is_part(user, node) for user in node.users):
                changed |= _raise_sum(rewriter, node)
        for node in n.calls(ir.graph, "autodeploy.expert_linear"):
            changed |= _read_tokens(rewriter, node)
        return bool(erase_dead(ir.graph)) or changed


@dataclasses.dataclass
class _Term:
    node: Node
    ids: Node  # before reshapes: [T, k] or [T]
    expert: int
    y: Node
    form: tuple[Any, ...]  # calls from the where to the term, without their first operand


def _is_part(user: Node, of: Node) -> bool:
    """Whether `user` is a plain sum that `of` is nothing but a part of."""
    return n.is_op(user, "aten.add") and _plain(user) and len(of.users) == 1


def _plain(node: Node) -> bool:
    a = n.bound(node)
    parts = (a["self"], a["other"])
    return a.get("alpha", 1) == 1 and all(
        isinstance(x, Node) and n.same_shape(x, node) and n.dtype_of(x) == n.dtype_of(node) for x in parts
    )


def _parts(root: Node) -> list[Node]:
    """The operands of a tree of plain sums, in order."""
    parts: list[Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if n.is_op(node, "aten.add") and _plain(node) and (node is root or len(node.users) == 1):
            stack += [node.args[1], node.args[0]]
        else:
            parts.append(node)
    return parts


def _term(node: Node) -> _Term | None:
    form: list[Any] = []
    at = node
    while n.is_op(at, "aten.sum", "aten.reshape"):
        form.append((at.target, str(at.args[1:]), str(n.shape_of(at)[1:])))
        at = at.args[0]
    if not n.is_op(at, "aten.where") or n.number(at.args[2]) != 0:
        return None
    mask, y = at.args[:2]
    while n.is_op(mask, "aten.reshape", "aten.unsqueeze"):
        mask = mask.args[0]
    if not n.is_op(mask, "aten.eq") or type(mask.args[1]) is not int or not isinstance(y, Node):
        return None
    ids = mask.args[0]
    while n.is_op(ids, "aten.reshape"):
        ids = ids.args[0]
    cells = 1
    for size in n.shape_of(ids)[1:]:
        cells *= int(size) if isinstance(size, int) else 0
    if not cells or not n.same_shape(at, y) or not n.same_size(n.shape_of(ids)[0] * cells, n.shape_of(y)[0]):
        return None
    where = at.args[0]
    if not n.same_size(n.shape_of(where)[0], n.shape_of(y)[0]) or any(s != 1 for s in n.shape_of(where)[1:]):
        return None
    return _Term(node, ids, mask.args[1], y, tuple(form))


def _raise_sum(r: Rewriter, root: Node) -> bool:
    if not _plain(root):
        return False
    parts = _parts(root)
    terms = [(part, _term(part)) for part in parts]
    groups: list[list[_Term]] = []
    for _, term in terms:
        if term is None:
            continue
        home = next((g for g in groups if _belongs(g, term)), None)
        if home is None:
            groups.append([term])
        else:
            home.append(term)
    groups = [sorted(g, key=lambda t: t.expert) for g in groups if len(g) > 1]
    groups = [g for g in groups if [t.expert for t in g] == list(range(g[0].expert, g[0].expert + len(g)))]
    if not groups:
        return False
    gone = {t.node for g in groups for t in g}
    rest = [part for part in parts if part not in gone and not _is_zero(part)]
    rest.extend(_Group(r, group, root).term() for group in groups)
    total = rest[0]
    for part in rest[1:]:
        total = r.call(aten.add.Tensor, total, part, like=root, before=root)
    replace(root, total)
    return True


def _is_zero(node: Node) -> bool:
    return n.is_op(node, "aten.full") and n.number(node.args[1]) == 0


def _belongs(group: list[_Term], term: _Term) -> bool:
    first = group[0]
    if first.ids is not term.ids or first.form != term.form or any(t.expert == term.expert for t in group):
        return False
    return _alike(first.y, term.y, n.shape_of(first.y)[0], (first.expert, term.expert), {})


def _alike(a: Any, b: Any, rows: Any, experts: tuple[int, int], seen: dict[tuple[Any, Any], bool]) -> bool:
    """Whether two expressions differ in nothing but parameters; every step that differs works row by row."""
    if a is b:
        return True
    if not isinstance(a, Node) or not isinstance(b, Node):
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
            return all(_alike(x, y, rows, experts, seen) for x, y in zip(a, b, strict=True))
        return type(a) is type(b) and a == b
    key = (a, b)
    if key not in seen:
        seen[key] = _alike_calls(a, b, rows, experts, seen)
    return seen[key]


def _alike_calls(a: Node, b: Node, rows: Any, experts: tuple[int, int], seen: dict[tuple[Any, Any], bool]) -> bool:
    if not n.is_tensor(a) or not n.is_tensor(b) or not n.same_shape(a, b) or n.dtype_of(a) != n.dtype_of(b):
        return False
    if not n.has_tokens(a):
        return _stackable(a, b, experts)
    if a.target is not b.target or a.op != "call_function" or a.kwargs != b.kwargs or not _by_row(a, rows):
        return False
    return len(a.args) == len(b.args) and all(
        _alike(x, y, rows, experts, seen) for x, y in zip(a.args, b.args, strict=True)
    )


def _stackable(a: Node, b: Node, experts: tuple[int, int]) -> bool:
    """Whether two values without tokens are parameters of one kind, or rows of one tensor."""
    if a.op == b.op == "placeholder":
        return True
    if a.op != b.op or a.target is not b.target or a.kwargs != b.kwargs or len(a.args) != len(b.args):
        return False
    if n.is_op(a, "aten.select") and a.args[0] is b.args[0]:
        return a.args[1] == b.args[1] and all(type(x) is int for x in (a.args[2], b.args[2]))
    return all(
        x is y or (_stackable(x, y, experts) if isinstance(x, Node) and isinstance(y, Node) else x == y)
        for x, y in zip(a.args, b.args, strict=True)
    )


_PER_ROW = ("aten.to", "aten._to_copy", "autodeploy.linear", "autodeploy.rms_norm", "autodeploy.layer_norm")
_ALONG = ("aten.slice", "aten.select", "aten.softmax", "aten.unsqueeze", "aten.cat")


def _by_row(node: Node, rows: Any) -> bool:
    """Whether row i of a result depends on rows i of the operands alone."""
    shape = n.shape_of(node)
    if not len(shape) or not n.same_size(shape[0], rows):
        return False
    if n.is_op(node, "autodeploy.rms_norm", "autodeploy.layer_norm"):
        return len(shape) > 1
    if n.is_op(node, *_PER_ROW) or n.op_name(node) in POINTWISE:
        return True
    if n.is_op(node, *_ALONG):
        dim = n.bound(node).get("dim", 0)
        return n.normal_dim(dim, len(shape)) > 0
    if n.is_op(node, "aten.reshape", "aten.permute"):
        before = n.shape_of(node.args[0])
        order = n.permutation(node) if n.is_op(node, "aten.permute") else [0]
        return bool(len(before)) and n.same_size(before[0], rows) and order is not None and order[0] == 0
    if n.is_op(node, "aten.sum", "aten.mean", "aten.amax"):
        return 0 not in n.reduced_dims(node, n.bound(node))
    return False


class _Group:
    """Makes the one term of a group."""

    def __init__(self, r: Rewriter, terms: list[_Term], before: Node):
        self.r, self.terms, self.before = r, terms, before
        self.first, self.low, self.high = terms[0], terms[0].expert, terms[-1].expert + 1
        self.made: dict[tuple[Any, ...], Any] = {}
        like = self.first.y
        self.ids = self._call(aten.reshape.default, self.first.ids, [-1], like=like)
        self.places = self.ids  # counted from the group's first expert
        if self.low:
            self.places = self._call(aten.sub.Tensor, self.ids, self.low, like=like)

    def _call(self, target: Any, *args: Any, like: Node, **kwargs: Any) -> Node:
        return self.r.call(target, *args, like=like, before=self.before, **kwargs)

    def term(self) -> Node:
        first = self.first
        y = self.joined([t.y for t in self.terms])
        mask = self._mask()
        chain: list[Node] = []
        at = first.node
        while not n.is_op(at, "aten.where"):
            chain.append(at)
            at = at.args[0]
        if mask is not None:
            shape = [-1] + [1] * (n.rank(y) - 1)
            mask = self._call(aten.reshape.default, mask, shape, like=at) if len(shape) > 1 else mask
            y = self._call(at.target, mask, y, *at.args[2:], like=at)
        for call in reversed(chain):
            y = self._call(call.target, y, *call.args[1:], like=call, **call.kwargs)
        return y

    def _mask(self) -> Node | None:
        like = self.first.y
        parts = []
        if self.low:
            parts.append(self._call(aten.ge.Scalar, self.ids, self.low, like=like))
        if not _below(self.first.ids, self.high):
            parts.append(self._call(aten.lt.Scalar, self.ids, self.high, like=like))
        if len(parts) == 2:
            return self._call(aten.logical_and.default, *parts, like=like)
        return parts[0] if parts else None

    def joined(self, values: list[Any]) -> Any:
        """The value that has, in each row, the row of its expert's value."""
        first = values[0]
        if all(v is first for v in values):
            return first
        if not isinstance(first, Node):
            if isinstance(first, (list, tuple)):
                return [self.joined([v[i] for v in values]) for i in range(len(first))]
            return first
        key = tuple(values)
        if key not in self.made:
            self.made[key] = self._joined_calls(values)
        return self.made[key]

    def _joined_calls(self, values: list[Node]) -> Node:
        first = values[0]
        if not n.has_tokens(first):
            return self._looked_up(values)
        if n.is_op(first, "autodeploy.linear") and any(v.args[1] is not first.args[1] for v in values):
            x = self.joined([v.args[0] for v in values])
            bias = None if first.args[2] is None else self.stacked([v.args[2] for v in values])
            weight = self.stacked([v.args[1] for v in values])
            shape = n.shape_of(first)
            if len(shape) != 2:
                x = self._call(aten.reshape.default, x, [-1, int(n.shape_of(x)[-1])], like=first)
            out = self._call(canonical.expert_linear.default, x, weight, self.places, bias, 1, like=first)
            out.meta["via"] = "pattern"
            if len(shape) != 2:
                out = self._call(aten.reshape.default, out, [-1, *map(int, shape[1:])], like=first)
            return out
        args = [self.joined([v.args[i] for v in values]) for i in range(len(first.args))]
        return self._call(first.target, *args, like=first, **first.kwargs)

    def _looked_up(self, values: list[Node]) -> Node:
        """A parameter of each row's expert, with its dims at the end."""
        shape = [int(s) for s in n.shape_of(values[0])]
        table = self._call(aten.reshape.default, self.stacked(values), [len(values), -1], like=values[0])
        places = self._call(aten.clamp.default, self.places, 0, len(values) - 1, like=values[0])
        rows = self._call(canonical.embedding.default, places, table, like=values[0])
        rank = n.rank(self.first.y)
        return self._call(aten.reshape.default, rows, [-1, *[1] * (rank - 1 - len(shape)), *shape], like=values[0])

    def stacked(self, values: list[Node]) -> Node:
        """[number of experts in the group, ...]"""
        first = values[0]
        if n.is_op(first, "aten.select") and all(v.args[0] is first.args[0] for v in values) and first.args[1] == 0:
            rows = [v.args[2] for v in values]
            if rows == list(range(rows[0], rows[0] + len(rows))):
                whole = first.args[0]
                if len(rows) == n.shape_of(whole)[0]:
                    return whole
                return self._call(aten.slice.Tensor, whole, 0, rows[0], rows[0] + len(rows), 1, like=first)
        if first.op == "call_function" and not n.is_op(first, "aten.select"):
            moved = self._stacked_inside(values)
            if moved is not None:
                return moved
        each = [self._call(aten.unsqueeze.default, v, 0, like=v) for v in values]
        return self._call(aten.cat.default, each, 0, like=first)

    def _stacked_inside(self, values: list[Node]) -> Node | None:
        """A permutation of each is a permutation of the stack."""
        first = values[0]
        if not n.is_op(first, "aten.permute"):
            return None
        order = n.permutation(first)
        assert order is not None
        inner = self.stacked([v.args[0] for v in values])
        return self._call(aten.permute.default, inner, [0, *(d + 1 for d in order)], like=first)


def _below(ids: Node, high: int) -> bool:
    """Whether ids are places of a top-k, an argmax or a sort among `high` at most."""
    if n.is_op(ids, "operator.getitem") and n.is_op(ids.args[0], "aten.topk", "aten.sort"):
        call = ids.args[0]
        if ids.args[1] != 1:
            return False
    elif n.is_op(ids, "aten.argmax"):
        call = ids
    else:
        return False
    dim = n.bound(call).get("dim", -1)
    if dim is None:
        return False
    size = n.shape_of(call.args[0])[n.normal_dim(dim, n.rank(call.args[0]))]
    return isinstance(size, int) and size <= high


def _read_tokens(r: Rewriter, node: Node) -> bool:
    a = n.bound(node)
    x = a["x"]
    if a["x_repeat"] != 1 or not n.is_op(x, "aten.reshape") or not n.is_op(x.args[0], "aten.expand"):
        return False
    wide = x.args[0]
    narrow = wide.args[0]
    shape, sizes = n.shape_of(narrow), n.shape_of(wide)
    if len(shape) != 3 or shape[1] != 1 or n.rank(x) != 2 or not isinstance(sizes[1], int):
        return False
    if not n.same_size(shape[0], sizes[0]) or shape[2] != sizes[2]:
        return False
    tokens = narrow.args[0] if n.is_op(narrow, "aten.unsqueeze") and n.rank(narrow.args[0]) == 2 else None
    if tokens is None:
        tokens = r.call(aten.reshape.default, narrow, [-1, int(shape[2])], like=narrow, before=node)
    node.args = (tokens, a["weight"], a["ids"], a["bias"], int(sizes[1]))
    return True
