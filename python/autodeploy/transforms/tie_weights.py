"""Parameters that are the same bytes are one parameter."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ..ir import ModelIR
from .base import Transform
from .placeholders import drop_unused
from .rewrite import replace


class TieWeights(Transform):
    """Keeps one placeholder for parameters with the same origin.

    1. Parameters that the model ties, and parameters whose expressions are equal once tied ones count as one, share the
       first of their placeholders when shape and dtype agree.
    2. So do constants with equal values (every layer may have buffers of its own).
    """

    name = "tie_weights"

    def run(self, ir: ModelIR) -> bool:
        first: dict[str, Any] = {}
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "placeholder":
                break
            key = _origin(ir, str(node.target))
            if key is None:
                continue
            kept = first.setdefault(key, node)
            if kept is not node:
                replace(node, kept)
                changed = True
        if changed:
            drop_unused(ir)
        return changed


def _origin(ir: ModelIR, key: str) -> str | None:
    """A text that is equal for parameters, and for constants, that are the same."""
    if key in ir.params:
        info = ir.params[key]
        origin = [[s.rows, _resolved(s.expr, ir.tied)] for s in info.segments]
        return json.dumps([info.shape, info.dtype, origin], sort_keys=True)
    if key in ir.constants:
        constant = ir.constants[key]
        data = constant.value.detach().contiguous()
        digest = hashlib.sha256(data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return json.dumps([list(data.shape), str(data.dtype), constant.dtype, digest])
    return None


def _resolved(expr: Any, tied: dict[str, str]) -> Any:
    """An expression with tied parameters named by the one they share storage with."""
    if isinstance(expr, dict):
        if expr.get("op") == "tensor":
            return {"op": "tensor", "name": tied.get(expr["name"], expr["name"])}
        return {k: _resolved(v, tied) for k, v in expr.items()}
    return [_resolved(x, tied) for x in expr] if isinstance(expr, list) else expr
