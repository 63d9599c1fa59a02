"""Rotary frequencies that depend on how long the sequence is, chosen for each token.

transformers has one decorator for them, `modeling_rope_utils.dynamic_rope_update`: it takes the largest position of a
call, and sets the module's frequencies before they are used. In `generate` that number is, for the tokens of a prompt,
the prompt's length, and for a token that was generated its own position + 1: what the op `known_length` says, whoever
else is in the batch. So while a model is captured, frequencies are a function of that number, token by token. Keys
that were rotated by other frequencies earlier stay as they are in the cache, as they do in transformers.

Not reproduced, because transformers makes it depend on earlier calls of the same model object: with `dynamic`, a
prompt shorter than the longest one that the object has seen, but above the original length, keeps that one's
frequencies. Here every sequence has its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autodeploy.ops import OPS

from .errors import CaptureError, calling_line
from .hook_state import state


def hooked(usual: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator `usual` with our way beside it."""

    @functools.wraps(usual)
    def dynamic_rope_update(rope_forward: Callable[..., Any]) -> Callable[..., Any]:
        outside = usual(rope_forward)

        @functools.wraps(rope_forward)
        def wrapper(self: Any, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
            kwargs = {} if layer_type is None else {"layer_type": layer_type}
            if state() is None:
                return outside(self, x, position_ids, **kwargs)
            kind = self.rope_type if layer_type is None else self.rope_type[layer_type]
            if "dynamic" in kind:
                return _dynamic(rope_forward, self, x, position_ids, kind, kwargs)
            if kind == "longrope":
                return _two_lengths(rope_forward, self, x, position_ids, kind, kwargs)
            return rope_forward(self, x, position_ids, **kwargs)

        return wrapper

    return dynamic_rope_update


def longest_extension(config: Any) -> float:
    """How many times `max_position_embeddings` positions may reach: frequencies of kind `dynamic` grow beyond it.

    They do so without end; `factor` is taken as the limit, as other engines take it.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    each = list(parameters.values()) if all(isinstance(p, dict) for p in parameters.values()) else [parameters]
    factors = [p.get("factor") for p in each if "dynamic" in str(p.get("rope_type"))]
    return min((float(f) for f in factors if f), default=1.0)


def _known_length(position_ids: torch.Tensor) -> torch.Tensor:
    """i64 [T]"""
    if position_ids.dim() != 2:
        raise CaptureError(f"[rope] expected positions [1, T], found {tuple(position_ids.shape)} at {calling_line()}")
    return OPS["known_length"].torch_op(position_ids.squeeze(0))


def _frequencies(module: Any, kind: str, length: Any, layer_type: str | None) -> torch.Tensor:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, _ = ROPE_INIT_FUNCTIONS[kind](module.config, torch.device("cpu"), seq_len=length, layer_type=layer_type)
    return found


def _dynamic(
    forward: Callable[..., Any], module: Any, x: Any, position_ids: torch.Tensor, kind: str, kwargs: dict[str, Any]
) -> Any:
    """Frequencies [T, R] that grow with the length; at the original length and below they are the usual ones."""
    layer_type = kwargs.get("layer_type")
    length = _known_length(position_ids).unsqueeze(-1)
    with _as_frequencies(module, layer_type, _frequencies(module, kind, length, layer_type)):
        return forward(module, x, position_ids, **kwargs)


def _two_lengths(
    forward: Callable[..., Any], module: Any, x: Any, position_ids: torch.Tensor, kind: str, kwargs: dict[str, Any]
) -> Any:
    """Both results, of lengths up to the original one and above it, and a choice for each token."""
    layer_type = kwargs.get("layer_type")
    parameters = module.config.rope_parameters
    limit = (parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"]
    results = []
    for length in (limit, limit + 1):
        frequencies = _frequencies(module, kind, length, layer_type)
        with _as_frequencies(module, layer_type, frequencies), _LargestPosition(position_ids, length - 1):
            results.append(forward(module, x, position_ids, **kwargs))
    long = _known_length(position_ids) > limit

    def choose(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.where(long.reshape(1, -1, *[1] * (a.dim() - 2)), a, b)

    short_result, long_result = results
    if isinstance(short_result, tuple):
        return tuple(choose(b, a) for b, a in zip(short_result, long_result, strict=True))
    return choose(short_result, long_result)


@contextlib.contextmanager
def _as_frequencies(module: Any, layer_type: str | None, value: torch.Tensor) -> Iterator[None]:
    """The module's `inv_freq` is `value` inside."""
    name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    place = module._buffers if name in module._buffers else module.__dict__
    if name not in place:
        raise CaptureError(f"[rope] expected frequencies {name} of {type(module).__name__}, found none")
    before = place[name]
    place[name] = value
    try:
        yield
    finally:
        place[name] = before


class _LargestPosition(TorchFunctionMode):
    """Inside, the largest of these positions is a number: code that asks for it itself chooses accordingly."""

    def __init__(self, positions: torch.Tensor, value: int):
        super().__init__()
        self.positions, self.value = positions, value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.max, torch.Tensor.max, torch.amax, torch.Tensor.amax) and len(args) == 1 and not kwargs:
            if args[0] is self.positions:
                return self.value
        return func(*args, **(kwargs or {}))
