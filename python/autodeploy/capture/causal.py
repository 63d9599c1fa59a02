"""Refuses a model whose tokens see later ones: it has no next token to predict from what a cache holds."""

from __future__ import annotations

from torch.fx import Graph

from autodeploy.ops import op_of

from .errors import CaptureError


def refuse_encoders(graph: Graph) -> None:
    """Raises CaptureError where attention, or a mask that something reads, lets a token see later ones."""
    for node in graph.nodes:
        op = op_of(node.target) if node.op == "call_function" else None
        if op is None or op.name not in ("attention", "masked_attention", "mask") or not node.users:
            continue
        arguments = op.bind(node.args, node.kwargs)
        masked = any(arguments.get(name) is not None for name in ("mask", "bias"))
        if not arguments["causal"] and not masked:
            raise CaptureError(
                "[capture] expected a decoder-only language model, found an encoder: tokens see later ones at "
                f"{node.meta.get('source', 'an unknown line')}; a checkpoint that was trained as a decoder says so in "
                "its config.json (is_decoder)"
            )
