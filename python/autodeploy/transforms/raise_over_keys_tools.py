"""Small questions that `raise_over_keys` and its helpers ask of a graph."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n
from .pointwise import POINTWISE


def is_counted(ir: ModelIR, x: Node) -> bool:
    """Whether a value is made of token positions and constants alone."""
    stack, seen, found = [x], set(), False
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            if str(node.target) == "positions":
                found = True
            elif str(node.target) not in ir.constants:
                return False
        stack.extend(n.tensor_inputs(node))
    return found


def counts_keys(node: Node) -> bool:
    """Whether a call computes with a number made from sizes."""
    if n.op_name(node) in POINTWISE:
        return bool(n.size_inputs(node))
    if n.op_name(node) not in ("aten.full", "aten.new_full", "aten.full_like"):
        return False
    value = n.bound(node)["fill_value"]
    return isinstance(value, Node) and not n.is_tensor(value)
