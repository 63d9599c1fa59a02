"""Light cleaning of a captured graph: what says nothing goes. Rewriting is the transforms' work."""

from __future__ import annotations

import torch
from torch.fx import Graph

aten = torch.ops.aten

_SILENT = {aten._assert_tensor_metadata.default, torch._C._set_grad_enabled}
_SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.lift_fresh.default}


def tidy(graph: Graph) -> None:
    """Removes assertions about dtypes, aliases, conversions to a device or dtype that a value has, unused calls."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _SILENT:
            graph.erase_node(node)
        elif node.target in _SAME or _is_same_type(node) or _is_idle_dropout(node):
            node.replace_all_uses_with(node.args[0], propagate_meta=False)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _is_idle_dropout(node: torch.fx.Node) -> bool:
    return node.target is aten.dropout.default and not node.args[2]


def _is_same_type(node: torch.fx.Node) -> bool:
    """A conversion to another device (there is one), or to the dtype that the value has."""
    if getattr(node.target, "overloadpacket", None) is not aten.to:
        return False
    return node.args[0].meta["val"].dtype == node.meta["val"].dtype
