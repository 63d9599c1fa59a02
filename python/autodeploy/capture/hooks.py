"""Puts capture's functions where transformers looks for implementations: three registries, and kernels by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from .errors import CaptureError, calling_line
from .hook_state import IMPLEMENTATION, state

_installed = False


def install() -> None:
    """Registers all hooks, once. They are inert outside of `hook_state.capturing()`.

    Raises:
        CaptureError: a modelling module was imported before; its replaceable functions can no longer be told by name.
    """
    global _installed
    if _installed:
        return
    early = sorted(name for name in sys.modules if name.startswith("transformers.models.") and _is_modelling(name))
    if early:
        raise CaptureError(
            f"[capture] expected no modelling module of transformers to be imported yet, found {early[0]}; call "
            "autodeploy.capture.hooks.install() first, or capture in a fresh process"
        )
    _replace_kernel_decorator()
    _choose_frequencies_by_token()
    _register_implementations()
    _skip_packed_sequences()
    _installed = True


def _is_modelling(name: str) -> bool:
    parts = name.split(".")
    return parts[-1].startswith("modeling_") and parts[2] != "auto"


def _replace_kernel_decorator() -> None:
    """Functions decorated as replaceable by a kernel first ask whether a capture wants them."""
    import transformers.integrations
    from transformers.integrations import hub_kernels

    from .kernel_hooks import KERNELS

    usual = hub_kernels.use_kernel_func_from_hub_with_fallback

    def use_kernel_func_from_hub_with_fallback(func_name: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        decorate = usual(func_name, *args, **kwargs)
        hook = KERNELS.get(func_name)

        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            outside = decorate(function)

            @functools.wraps(function)
            def dispatch(*args: Any, **kwargs: Any) -> Any:
                if state() is None:
                    return outside(*args, **kwargs)
                if hook is None:
                    raise CaptureError(
                        f"[capture] expected a kernel with a canonical op ({', '.join(sorted(KERNELS))}), found "
                        f"{func_name} at {calling_line()}; it cannot be compiled yet"
                    )
                return hook(func_name, function, args, kwargs)

            return dispatch

        return decorator

    for module in (hub_kernels, transformers.integrations):
        module.use_kernel_func_from_hub_with_fallback = use_kernel_func_from_hub_with_fallback


def _choose_frequencies_by_token() -> None:
    from transformers import modeling_rope_utils

    from .rope_hook import hooked

    modeling_rope_utils.dynamic_rope_update = hooked(modeling_rope_utils.dynamic_rope_update)


def _register_implementations() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from .attention_hook import attention_forward
    from .experts_hook import experts_forward
    from .mask_hook import additive_mask, boolean_mask

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, boolean_mask)
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)
    usual = ALL_MASK_ATTENTION_FUNCTIONS["eager"]

    @functools.wraps(usual)
    def eager_mask(*args: Any, **kwargs: Any) -> Any:
        return usual(*args, **kwargs) if state() is None else additive_mask(*args, **kwargs)

    ALL_MASK_ATTENTION_FUNCTIONS.register("eager", eager_mask)
    usual_boolean = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]

    @functools.wraps(usual_boolean)
    def sdpa_mask(*args: Any, **kwargs: Any) -> Any:
        return usual_boolean(*args, **kwargs) if state() is None else boolean_mask(*args, **kwargs)

    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", sdpa_mask)


def _skip_packed_sequences() -> None:
    """The captured graph is one sequence; where sequences meet in a batch is the mixers' business, not the mask's."""
    from transformers import masking_utils

    usual = masking_utils.find_packed_sequence_indices

    @functools.wraps(usual)
    def find_packed_sequence_indices(*args: Any, **kwargs: Any) -> Any:
        return usual(*args, **kwargs) if state() is None else None

    masking_utils.find_packed_sequence_indices = find_packed_sequence_indices
