"""A mask as one opaque node: the functions registered in transformers' mask interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autodeploy.ops import OPS

from .errors import CaptureError, calling_line
from .hook_state import state, unknown_arguments
from .mask_kind import describe

# Arguments that only say how to make the tensor, or repeat what the mask function says.
_HOW = frozenset(
    {
        "allow_is_bidirectional_skip",
        "allow_is_causal_skip",
        "allow_torch_fix",
        "batch_size",
        "config",
        "device",
        "dtype",
        "kv_length",
        "local_size",
        "q_length",
        "use_vmap",
    }
)


def boolean_mask(
    *,
    mask_function: Callable[..., Any],
    attention_mask: torch.Tensor | None = None,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    **kwargs: Any,
) -> torch.Tensor:
    """bool [1, 1, T, T], True where a token is seen. A padding mask that the model made itself goes along."""
    current = state()
    unknown = unknown_arguments({k: x for k, x in kwargs.items() if k not in _HOW})
    if unknown:
        raise CaptureError(f"[mask] expected known arguments, found {', '.join(unknown)} at {calling_line()}")
    if current is None or current.positions is None:
        raise CaptureError("[mask] this mask implementation exists only while a model is captured")
    if not isinstance(q_offset, int) or not isinstance(kv_offset, int) or q_offset or kv_offset:
        raise CaptureError(f"[mask] expected no offsets, found {q_offset}, {kv_offset} at {calling_line()}")
    if attention_mask is not None:
        if attention_mask.dim() != 2:
            raise CaptureError(f"[mask] expected padding [1, T], found {attention_mask.shape} at {calling_line()}")
        attention_mask = attention_mask.squeeze(0)
    kind = describe(mask_function)
    seen = OPS["mask"].torch_op(current.positions, attention_mask, kind.causal, kind.window, kind.chunk)
    return seen[None, None]


def additive_mask(*, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """float [1, 1, T, T]: 0 where a token is seen, else the lowest number; for attention written out in a model."""
    return torch.where(boolean_mask(**kwargs), 0.0, torch.finfo(dtype).min).to(dtype)
