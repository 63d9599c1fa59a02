"""Attention as one node: the function registered in transformers' attention interface."""

from __future__ import annotations

from typing import Any

import torch

from autodeploy.ops import OPS

from .errors import CaptureError, UnknownAttention, calling_line
from .hook_state import state, unknown_arguments


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, Hq, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv] -> [1, T, Hq, Dv], None.

    With a mask, the mask says everything about which keys are seen, as in transformers' own eager attention.
    """
    current = state()
    unknown = unknown_arguments(kwargs)
    if unknown:
        raise UnknownAttention(
            f"[attention] expected arguments of the attention interface, found {', '.join(unknown)} at "
            f"{calling_line()}; no canonical op takes them yet"
        )
    if current is None:
        raise CaptureError("[attention] this attention implementation exists only while a model is captured")
    if _knows_no_tokens(query, key):
        others = [x for x in (s_aux, sinks, indices) if x is not None]
        if others or sliding_window:
            raise UnknownAttention(
                f"[attention] expected scores, a mask and a bias over keys that are no tokens, found more at "
                f"{calling_line()}; no canonical op takes them"
            )
        return _written_out(query, key, value, attention_mask, scaling, softcap, position_bias), None
    _check_shapes(query, key, value)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None:
        causal, window = False, 0
    else:
        window = int(sliding_window or 0)
    sinks = s_aux if sinks is None else sinks
    if sinks is not None and sinks.dim() == 4:  # [1, Hq, T, 1]: a sink for every token
        sinks = sinks.squeeze(0).squeeze(-1)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    out = OPS["masked_attention"].torch_op(
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        None if attention_mask is None else attention_mask.squeeze(0),
        sinks,
        None if position_bias is None else position_bias.squeeze(0),
        None if indices is None else indices.squeeze(0).to(torch.int64),
        float(scaling),
        bool(causal),
        window,
        float(softcap or 0.0),
    )
    return out.unsqueeze(0), None


def _knows_no_tokens(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether queries and keys are a fixed number of things of each token: tokens are rows, and nothing mixes them."""
    return query.dim() == 4 and key.dim() == 4 and isinstance(query.shape[2], int) and isinstance(key.shape[2], int)


def _written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Plain arithmetic: q [B, Hq, n, D], k [B, Hkv, m, D], v [B, Hkv, m, Dv] -> [B, n, Hq, Dv]."""
    if query.shape[1] != key.shape[1]:
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2)


def _check_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    shapes = f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4 or query.shape[0] != 1:
        raise UnknownAttention(f"[attention] expected q, k, v [1, heads, T, width], found {shapes} at {calling_line()}")
    if str(key.shape[2]) != str(query.shape[2]) or str(value.shape[2]) != str(query.shape[2]):
        raise UnknownAttention(
            f"[attention] expected as many keys as tokens, found {shapes} at {calling_line()}; attention over other "
            "keys than the sequence's own tokens has no canonical op yet"
        )
