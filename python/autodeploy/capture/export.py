"""torch.export of one whole sequence, its length left open."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from .errors import CaptureError
from .hook_state import HookState, capturing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The example's number of tokens: prime, so that no size of a model equals it or divides it, and above the windows and
# top-k sizes of common configurations, so that Python code which compares with them takes the branch of long sequences.
# Which branch it took does not go unnoticed: `guards` proves each comparison for every T, or capture is refused.
EXAMPLE_TOKENS = 61


class Prefill(torch.nn.Module):
    """step i64 [2, T] -> logits [T, V]: the forward that is captured, of one sequence from its start.

    Row 0 of `step` holds token ids, row 1 positions: one tensor, so that T is one symbol whatever is asked about it.
    The batch dim that models expect exists only inside.
    """

    def __init__(self, model: PreTrainedModel, hooks: HookState):
        super().__init__()
        self.model = model
        self.hooks = hooks
        parameters = inspect.signature(type(model).forward).parameters
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.names = frozenset(parameters)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        token_ids, positions = step[0], step[1]
        self.hooks.positions = positions
        arguments: dict[str, Any] = {}
        if "position_ids" in self.names or self.takes_any:
            arguments["position_ids"] = positions[None]
        if "use_cache" in self.names:
            arguments["use_cache"] = False
        return self.model(input_ids=token_ids[None], **arguments).logits.squeeze(0)


def export_prefill(model: PreTrainedModel, tokens: int = EXAMPLE_TOKENS) -> tuple[ExportedProgram, HookState]:
    """The exported program with a symbolic number of tokens, and what the hooks noted.

    Raises:
        CaptureError: the model's Python code cannot be followed for a symbolic T.
    """
    example = torch.stack([torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens)])
    length = torch.export.Dim("T", min=2)
    with capturing() as hooks, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                Prefill(model, hooks),
                (example,),
                dynamic_shapes={"step": {1: length}},
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except CaptureError:
            raise
        except Exception as e:
            cause = _first_capture_error(e)
            if cause is not None:
                raise cause from e
            raise CaptureError(f"[capture] expected a model that torch.export can follow, found: {_summary(e)}") from e
    return program, hooks


def _first_capture_error(error: BaseException) -> CaptureError | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CaptureError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _summary(error: Exception) -> str:
    """The error's first lines, and the line of the model where it came up."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:4] if line.strip())
    where = ""
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "modeling_" in path:
            where = f" (at {path.rsplit('/', 1)[-1]}:{trace.tb_lineno} {trace.tb_frame.f_code.co_qualname})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text[:600]}{where}"
