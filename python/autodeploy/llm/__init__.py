"""The Python face of the engine: needs neither torch nor transformers.

Names are imported on first use: the command line reads the environment's table without loading a tokenizer library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import CompileError, EngineError, RequestError
    from .llm import LLM
    from .outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from .sampling_params import SamplingParams

_MODULES = {
    "LLM": "llm",
    "CompileError": "errors",
    "EngineError": "errors",
    "RequestError": "errors",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
}

__all__ = [
    "LLM",
    "CompileError",
    "CompletionOutput",
    "EngineError",
    "Logprob",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
