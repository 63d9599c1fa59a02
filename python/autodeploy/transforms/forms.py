"""What the rules of `normal_forms` share: their table, and how they write shapes and filled tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from . import nodes as n
from .nodes import aten
from .rewrite import Rewriter

Form = Callable[[Rewriter, Node, dict[str, Any]], "Node | None"]
FORMS: dict[str, Form] = {}


def form(*names: str) -> Callable[[Form], Form]:
    """Decorator: the rule of these ops, a function (rewriter, node, arguments by name) -> the node in its place, or
    None where it has its form already."""

    def add(function: Form) -> Form:
        FORMS.update(dict.fromkeys(names, function))
        return function

    return add


def sizes(shape: Any) -> list[int]:
    """A shape as arguments of reshape or expand: numbers, and -1 in the place of the size with T in it."""
    out = [-1 if n.is_symbolic(s) else int(s) for s in shape]
    if out.count(-1) > 1:
        raise ValueError(f"[normal_forms] expected one dim with tokens, found {list(shape)}")
    return out


def equal_arguments(x: Any, y: Any) -> bool:
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(map(equal_arguments, x, y))
    if isinstance(x, Node) or isinstance(y, Node):
        return x is y
    return type(x) is type(y) and bool(x == y)


def spelled(r: Rewriter, node: Node, target: Any, *args: Any) -> Node | None:
    """`target(*args)` in the place of `node`; None when it is that already."""
    args = tuple(list(x) if isinstance(x, (list, tuple)) else x for x in args)
    if node.target is target and not node.kwargs and equal_arguments(node.args, args):
        return None
    return r.call(target, *args, like=node, before=node)


def expand_sizes(x: Node, shape: Any) -> list[int] | None:
    """Sizes for expand: -1 keeps; None when an expansion makes a dim of tokens out of a constant one."""
    lead = len(shape) - n.rank(x)
    out = []
    for i, size in enumerate(shape):
        keeps = i >= lead and n.same_size(n.shape_of(x)[i - lead], size)
        if n.is_symbolic(size) and not keeps:
            return None
        out.append(-1 if keeps else int(size))
    return out


def full(r: Rewriter, node: Node, shape: Any, value: Any, dtype: torch.dtype) -> Node:
    """A tensor of one value, made before `node`; sizes with T in them are products of `sym_size(token_ids, 0)`."""
    args = [tokens(r, node, n.tokens_in(s)) if n.is_symbolic(s) else int(s) for s in shape]
    return r.call(aten.full.default, args, value, like=node, before=node, dtype=dtype)


def tokens(r: Rewriter, node: Node, factor: int) -> Node:
    """factor * T as a node before `node`."""
    ids = r.ir.input("token_ids")
    existing = next((u for u in ids.users if n.is_op(u, "aten.sym_size") and u.args[1] == 0), None)
    if existing is None:
        first = next(x for x in r.graph.nodes if x.op != "placeholder")
        existing = r.call(aten.sym_size.int, ids, 0, like=ids, before=first)
    return existing if factor == 1 else r.call(operator.mul, existing, factor, like=node, before=node)
