"""Removes calls that compute nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .base import Transform
from .rewrite import erase_dead, replace

_CHECKS = {
    "aten._assert_scalar", "aten._assert_tensor_metadata", "aten._assert_async", "aten.sym_constrain_range",
    "aten.sym_constrain_range_for_size",
}  # fmt: skip
_COPIES = {"aten.alias", "aten.detach", "aten.lift_fresh_copy", "aten.lift_fresh", "aten.contiguous", "aten.clone"}
_IDENTITY_VIEWS = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.expand", "aten.squeeze", "aten.flatten", "aten.view_as",
    "aten.expand_as",
}  # fmt: skip
_RESHAPES = {"aten.reshape", "aten.view", "aten.unsqueeze", "aten.squeeze"}
_NEUTRAL = {"aten.mul": 1, "aten.div": 1, "aten.add": 0, "aten.sub": 0, "aten.pow": 1, "aten.true_divide": 1}


class CleanUp(Transform):
    """Removes calls whose result is their operand, and calls without users.

    1. Run-time assertions go: what they state is part of the Program's types.
    2. alias, detach, clone, contiguous and lift_fresh yield their operand (values are immutable here); so does dropout
       outside training.
    3. A conversion to the dtype that a value has goes; of float conversions up and back down, both go.
    4. A view to the same shape, a slice of everything and a permutation in order go; a permutation of a permutation
       is one, a reshape of a reshape is the last one.
    5. x * 1, x / 1, x + 0, x - 0 and x ** 1 are x where dtype and shape stay.
    6. A cat of one tensor is that tensor; neg(neg(x)) is x.
    7. Calls without users go.
    """

    name = "clean_up"

    def run(self, ir: ModelIR) -> bool:
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function":
                continue
            if n.op_name(node) in _CHECKS:
                ir.graph.erase_node(node)
                changed = True
                continue
            while node.users:
                same = identity_of(node)
                if same is not None:
                    replace(node, same)
                elif not _merge_views(node):
                    break
                changed = True
        return bool(erase_dead(ir.graph)) or changed


def identity_of(node: Node) -> Node | None:
    """The operand that a call returns unchanged, if it does."""
    name = n.op_name(node)
    if not name.startswith("aten.") or not node.args or not n.is_tensor(node):
        return None
    if name in ("aten.cat", "aten.concat"):
        return node.args[0][0] if len(node.args[0]) == 1 else None
    x = node.args[0]
    if not isinstance(x, Node) or not n.is_tensor(x):
        return None
    if name in _COPIES:
        return x
    if name in ("aten.dropout", "aten.feature_dropout"):
        a = n.bound(node)
        return x if not a["train"] or a["p"] == 0 else None
    if n.dtype_of(x) != n.dtype_of(node):
        return None
    if name in ("aten.to", "aten._to_copy", "aten.type_as"):
        return x
    if not n.same_shape(x, node):
        return None
    if name in _IDENTITY_VIEWS or (name == "aten.slice" and n.is_whole_slice(node)):
        return x
    if name == "aten.neg" and n.is_op(x, "aten.neg"):
        return x.args[0]
    order = n.permutation(node) if name in ("aten.permute", "aten.transpose", "aten.t") else None
    if order is not None:
        return x if order == sorted(order) else None
    return x if name in _NEUTRAL and _is_neutral(node, name) else None


def _is_neutral(node: Node, name: str) -> bool:
    a = n.bound(node)
    other: Any = a.get("other", a.get("exponent"))
    return n.number(other) is not None and other == _NEUTRAL[name] and a.get("rounding_mode") is None


def _merge_views(node: Node) -> bool:
    """Rules 3 and 4 for a pair of calls: rewires `node` to read what its operand reads."""
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or x.op != "call_function":
        return False
    name, inner = n.op_name(node), n.op_name(x)
    if n.is_float_cast(node) and n.is_float_cast(x):
        base = x.args[0]
        # Widening and narrowing again changes nothing; narrowing in between does.
        if _bits(n.dtype_of(x)) >= _bits(n.dtype_of(base)):
            if n.dtype_of(base) == n.dtype_of(node):
                replace(node, base)
            else:
                node.args = (base, *node.args[1:])
            return True
    if name in ("aten.reshape", "aten.view") and inner in _RESHAPES:
        node.args = (x.args[0], *node.args[1:])
        return True
    if name == "aten.permute" and inner == "aten.permute":
        first = n.permutation(x)
        assert first is not None
        node.args = (x.args[0], [first[d] for d in n.permutation(node) or []])
        return True
    return False


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits
