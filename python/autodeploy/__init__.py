"""autodeploy: an unmodified Hugging Face causal LM in, an artifact and a fast C++ runtime out.

The names below are imported on first use, so that importing the package costs nothing: the compiler's child process
and the command line each load only what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .llm import LLM, CompletionOutput, RequestError, RequestOutput, SamplingParams

__version__ = "0.1.0"

__all__ = ["LLM", "CompletionOutput", "RequestError", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(".llm", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
