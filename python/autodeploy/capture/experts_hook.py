"""A mixture of experts as two products by expert: the function registered in transformers' experts interface."""

from __future__ import annotations

import torch

from autodeploy.ops import OPS

from .errors import CaptureError, calling_line
from .hook_state import state


def experts_forward(
    self: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden_states [T, H], top_k_index i64 [T, k], top_k_weights [T, k] -> [T, H].

    The gate, the activation, the weighting and the sum stay ordinary operations of the graph.
    """
    if state() is None:
        raise CaptureError("[experts] this experts implementation exists only while a model is captured")
    if hidden_states.dim() != 2 or top_k_index.dim() != 2:
        shapes = f"{tuple(hidden_states.shape)}, {tuple(top_k_index.shape)}"
        raise CaptureError(f"[experts] expected states [T, H] and indices [T, k], found {shapes} at {calling_line()}")
    tokens, per_token = top_k_index.shape
    ids = top_k_index.reshape(-1).to(torch.int64)
    first = "gate_up_proj" if self.has_gate else "up_proj"
    up = _product(self, first, hidden_states, ids, per_token)
    inner = self._apply_gate(up) if self.has_gate else self.act_fn(up)
    down = _product(self, "down_proj", inner, ids, 1)
    if getattr(self, "has_post_expert_norm", False):
        down = self.post_expert_norm(down)
    weighted = down.view(tokens, per_token, down.shape[-1]) * top_k_weights.reshape(tokens, per_token, 1)
    return weighted.sum(1).to(hidden_states.dtype)


def _product(module: torch.nn.Module, name: str, x: torch.Tensor, ids: torch.Tensor, repeat: int) -> torch.Tensor:
    weight = getattr(module, name)
    if module.is_transposed:  # stored [E, in, out]
        weight = weight.transpose(1, 2)
    bias = getattr(module, name + "_bias") if module.has_bias else None
    return OPS["expert_linear"].torch_op(x, weight, ids, bias, repeat)
