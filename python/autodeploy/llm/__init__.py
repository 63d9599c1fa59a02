"""The Python face of the engine: needs neither torch nor transformers."""

from .errors import CompileError, EngineError, RequestError
from .llm import LLM
from .outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from .sampling_params import SamplingParams

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
