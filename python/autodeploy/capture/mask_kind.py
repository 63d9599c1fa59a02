"""Which tokens a mask function of transformers lets see each other, read from the overlays that it was composed of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .errors import CaptureError, calling_line


@dataclasses.dataclass
class MaskKind:
    """Key j of query i is seen if j <= i (causal), i - j < window (unless 0), i // chunk == j // chunk (unless 0)."""

    causal: bool = False
    window: int = 0
    chunk: int = 0

    def narrow(self, field: str, value: Any) -> None:
        """Intersects with a window or a chunk."""
        if not isinstance(value, int):
            raise CaptureError(f"[mask] expected a number as {field}, found {value!r} at {calling_line()}")
        value = value if value > 0 else -1  # nothing is seen; refused where attention reads such a mask
        present = getattr(self, field)
        if field == "chunk" and present not in (0, value):
            raise CaptureError(f"[mask] expected one chunk size, found {present} and {value} at {calling_line()}")
        setattr(self, field, min(present, value) if present else value)


# Functions of transformers.masking_utils that a mask is composed of, by the name of the outermost function. Those that
# wrap others without changing which tokens of one whole sequence see each other are listed as transparent.
_TRANSPARENT = {"and_masks", "add_offsets_to_mask_function"}


def describe(mask_function: Callable[..., Any]) -> MaskKind:
    """The kind of a mask function.

    Raises:
        CaptureError: it holds a part that has no place in an attention op.
    """
    kind = MaskKind()
    _visit(mask_function, kind)
    return kind


def _visit(function: Callable[..., Any], kind: MaskKind) -> None:
    code = getattr(function, "__code__", None)
    if code is None:
        raise CaptureError(f"[mask] expected a mask function, found {function!r} at {calling_line()}")
    name = function.__qualname__.split(".<locals>")[0]
    closure = getattr(function, "__closure__", None) or ()
    cells = {n: c.cell_contents for n, c in zip(code.co_freevars, closure, strict=True)}
    if name == "causal_mask_function":
        kind.causal = True
    elif name == "bidirectional_mask_function":
        pass
    elif name == "sliding_window_overlay":
        kind.narrow("window", cells.get("sliding_window"))
    elif name == "chunked_overlay":
        kind.narrow("chunk", cells.get("chunk_size"))
    elif name in _TRANSPARENT:
        for value in cells.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if callable(part):
                    _visit(part, kind)
    else:
        raise CaptureError(
            f"[mask] expected causal, window and chunk overlays, found {function.__qualname__} at {calling_line()}; "
            "this kind of mask has no canonical op yet"
        )
