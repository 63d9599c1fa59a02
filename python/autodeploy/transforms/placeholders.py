"""Parameters and constants as inputs of a graph: adding them, naming them, dropping those that nothing reads."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Node

from ..ir import ModelIR


def fresh_name(ir: ModelIR, stem: str) -> tuple[str, str]:
    """(key, name) for a new parameter or constant: the placeholder's identifier, and a readable name; both unused."""
    taken = {p.name for p in ir.params.values()} | {c.name for c in ir.constants.values()}
    name, i = stem, 1
    while name in taken or _key(name) in ir.params or _key(name) in ir.constants:
        i += 1
        name = f"{stem}.{i}"
    return _key(name), name


def _key(name: str) -> str:
    return "p_" + re.sub(r"\W", "_", name)


def add_placeholder(ir: ModelIR, key: str, like: Node | torch.Tensor, source: str = "") -> Node:
    """A placeholder for a parameter or constant, after the others of its kind; value (and source) as `like`'s."""
    is_param = key in ir.params
    last = next(iter(ir.graph.nodes))
    for x in ir.graph.nodes:
        if x.op != "placeholder":
            break
        if not is_param or str(x.target) not in ir.constants:
            last = x
    with ir.graph.inserting_after(last):
        node = ir.graph.placeholder(key)
    value = like.meta["val"] if isinstance(like, Node) else like
    node.meta = {"val": value, "source": like.meta.get("source", "") if isinstance(like, Node) else source}
    return node


def drop_unused(ir: ModelIR) -> bool:
    """Removes placeholders of parameters and constants that nothing reads, and constants that no expression names."""
    changed = False
    placed = set()
    for node in list(ir.graph.nodes):
        if node.op != "placeholder":
            break
        key = str(node.target)
        if not node.users and (key in ir.params or key in ir.constants):
            ir.params.pop(key, None)
            ir.graph.erase_node(node)
            changed = True
        else:
            placed.add(key)
    named = {leaf for p in ir.params.values() for s in p.segments for leaf in constant_leaves(s.expr)}
    for key in [k for k in ir.constants if k not in placed and k not in named]:
        del ir.constants[key]
        changed = True
    return changed


def constant_leaves(expr: Any) -> list[str]:
    """Keys of the constants that an expression reads."""
    if isinstance(expr, dict):
        if expr.get("op") == "constant":
            return [expr["name"]]
        return [leaf for x in expr.values() for leaf in constant_leaves(x)]
    if isinstance(expr, list):
        return [leaf for x in expr for leaf in constant_leaves(x)]
    return []
