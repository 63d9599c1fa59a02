"""Binds the activation type: graphs are captured in bfloat16, and run in any floating type."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule

from .model_ir import ModelIR


def retyped(ir: ModelIR, act: torch.dtype) -> GraphModule:
    """A copy of the graph in which every literal bfloat16 is `act`; for running it eagerly, values are not inferred."""
    graph = copy.deepcopy(ir.graph)
    for node in graph.nodes:
        if node.op == "call_function":
            node.args = _bind(node.args, act)
            node.kwargs = _bind(node.kwargs, act)
    return GraphModule(torch.nn.Module(), graph)


def _bind(x: Any, act: torch.dtype) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_bind(y, act) for y in x)
    if isinstance(x, dict):
        return {k: _bind(v, act) for k, v in x.items()}
    return act if x is torch.bfloat16 else x
