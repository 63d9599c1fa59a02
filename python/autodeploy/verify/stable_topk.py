"""The k largest of equal scores: the runtime takes the lower index, and so must the reference.

torch.topk takes any of them, another one for another shape. Where a model selects experts or keys by scores that are
exactly equal (tokens that repeat, rectified scores that are all zero), either choice is right, but both must make one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TOPK = {torch.topk, torch.Tensor.topk}


class StableTopk(TorchFunctionMode):
    """Within it, ties of `topk` go to the lower index."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _TOPK or "out" in kwargs:
            return func(*args, **kwargs)
        call = dict(zip(("input", "k", "dim", "largest"), args, strict=False)) | kwargs
        x, dim = call.get("input", call.get("self")), int(call.get("dim", -1))
        values, indices = torch.sort(x, dim=dim, descending=bool(call.get("largest", True)), stable=True)
        return torch.return_types.topk((values.narrow(dim, 0, call["k"]), indices.narrow(dim, 0, call["k"])))
