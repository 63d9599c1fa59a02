"""What the hooks know while a model is being captured; outside of a capture every hook is inert."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

IMPLEMENTATION = "autodeploy"  # the name under which attention, mask and experts are registered


@dataclasses.dataclass
class HookState:
    """One capture. `positions` [T] is set by the wrapper at the start of forward: it carries T to the mask op.

    `longest`: the most tokens that a sequence may have for the captured program to be the model's, if there is a limit.
    """

    positions: torch.Tensor | None = None
    longest: int | None = None
    notes: set[str] = dataclasses.field(default_factory=set)


_STATE: contextvars.ContextVar[HookState | None] = contextvars.ContextVar("autodeploy_hooks", default=None)


def state() -> HookState | None:
    """The capture in progress, or None."""
    return _STATE.get()


@contextlib.contextmanager
def capturing() -> Iterator[HookState]:
    """Hooks are in force inside."""
    token = _STATE.set(HookState())
    try:
        current = _STATE.get()
        assert current is not None
        yield current
    finally:
        _STATE.reset(token)


# Arguments that transformers hands down to every layer; they say nothing about the mathematics of a hooked function.
PLUMBING = frozenset(
    {
        "cache_position",
        "deterministic",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "training",
        "use_cache",
    }
)


def unknown_arguments(arguments: dict[str, Any]) -> list[str]:
    """Names of arguments that carry a value which nobody took care of."""
    return sorted(name for name, x in arguments.items() if name not in PLUMBING and x is not None and x is not False)
