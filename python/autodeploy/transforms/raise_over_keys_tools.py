"""Small questions that `raise_over_keys` and its helpers ask of a graph."""

from __future__ import annotations

from torch.fx import Node

from ..ir import ModelIR
from . import nodes as n


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
