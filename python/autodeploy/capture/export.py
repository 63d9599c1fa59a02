"""torch.export of one whole sequence, its length left open."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.fx.experimental._config
from torch.export import ExportedProgram

from .build import BuildOptions, build, model_files
from .errors import CaptureError
from .functionalize import parameter_writes
from .hook_state import HookState, capturing
from .prefix import WatchPrefix
from .recurrences import watching
from .routing import RoutedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers of tokens of the example, tried in order. T is symbolic in the graph, whatever the example is; it only decides
# which way Python code takes that compares T with a number, and `guards` proves that way for every T or refuses the
# model. The first is small, so that code which loops over tokens fails soon; the second is above the windows and top-k
# sizes of common configurations, for code that fails when T is below them. Both are prime: no size of a model equals
# them or divides them by chance.
EXAMPLE_TOKENS = (61, 10007)
# A model that does not say how long sequences may be is not limited to fewer tokens than this.
_USEFUL_LENGTH = 1024


class Prefill(torch.nn.Module):
    """step i64 [2, T] -> logits [T, V]: the forward that is captured, of one sequence from its start.

    Row 0 of `step` holds token ids, row 1 positions: one tensor, so that T is one symbol whatever is asked about it.
    The batch dim that models expect exists only inside. The model is called `calls` times. A `prefix` is the number of
    tokens at the start of a sequence that the model makes itself: it gets those behind them (prefix.py).
    """

    def __init__(self, model: PreTrainedModel, hooks: HookState, calls: int = 1, prefix: int = 0):
        super().__init__()
        self.model = model
        self.hooks = hooks
        self.calls = calls
        self.prefix = prefix
        parameters = inspect.signature(type(model).forward).parameters
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.names = frozenset(parameters)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        token_ids, positions = step[0], step[1]
        self.hooks.positions = positions
        if self.prefix:
            token_ids, positions = token_ids[self.prefix :], positions[self.prefix :] - self.prefix
        arguments: dict[str, Any] = {}
        if "position_ids" in self.names or self.takes_any:
            arguments["position_ids"] = positions[None]
        if "use_cache" in self.names:
            arguments["use_cache"] = False
        with RoutedRows():
            for _ in range(self.calls):
                logits = self.model(input_ids=token_ids[None], **arguments).logits.squeeze(0)
        return logits


def export_prefill(
    model: PreTrainedModel, longest: int | None = None, prefix: int = 0
) -> tuple[ExportedProgram, HookState]:
    """The exported program with a symbolic number of tokens (of at most `longest`), and what the hooks noted.

    What the model's code keeps in its modules while it runs is forgotten afterwards. Where the code goes another way
    for more than some number of tokens, and sequences cannot be that long or nothing says how long they may be, the
    program is that of the way below, and `HookState.longest` the number.

    Raises:
        CaptureError: the model's Python code cannot be followed for a symbolic T, or changes parameters at every call.
    """
    failures: list[Exception] = []
    attempts: list[tuple[int, int | None]] = [(min(tokens, longest or tokens), longest) for tokens in EXAMPLE_TOKENS]
    while attempts:
        tokens, limit = attempts.pop(0)
        try:
            with _attributes_restored(model):
                program, notes = _export(model, tokens + prefix, limit, prefix=prefix)
                writes = parameter_writes(program)
                if writes:
                    _check_settles(model, tokens + prefix, limit, len(writes), prefix)
            return program, notes
        except CaptureError:
            raise
        except Exception as e:
            cause = _first_capture_error(e)
            if cause is not None:
                raise cause from e
            failures.append(e)
            bound = _acceptable_bound(model, e)
            if bound is not None and limit is None:
                attempts.insert(0, (tokens, bound))
            elif _is_final(e):
                break
    raise CaptureError(f"[capture] {_explain(failures[-1])}") from failures[-1]


def _acceptable_bound(model: PreTrainedModel, error: Exception) -> int | None:
    """The largest number of tokens for which the model's code goes the captured way, if no longer sequence must be."""
    bounds = _BOUNDS.search(str(error))
    if bounds is None or bounds[2] == "IntInfinity" or int(bounds[1]) > 2:
        return None
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(bounds[2]) if int(bounds[2]) >= (positions if isinstance(positions, int) else _USEFUL_LENGTH) else None


def _export(
    model: PreTrainedModel, tokens: int, longest: int | None = None, calls: int = 1, prefix: int = 0
) -> tuple[ExportedProgram, HookState]:
    example = torch.stack([torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens)])
    length = torch.export.Dim("T", min=2 + prefix, max=longest)
    # Size-oblivious: PyTorch's own code asks whether sizes are 0 or 1 to choose strides and the like (of T - 1 rows:
    # whether T is 2); the ops mean the same either way, and branches of the model's code are still noted.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)
    twin = functools.partial(build, model.config, BuildOptions(type(model)), torch.float32)
    watch = functools.partial(watching, model, model_files(model), twin)
    with capturing() as hooks, watch(hooks), torch.no_grad(), _quiet(), oblivious, _prefix_watch(prefix):
        hooks.longest = longest
        program = torch.export.export(
            Prefill(model, hooks, calls, prefix),
            (example,),
            dynamic_shapes={"step": {1: length}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return program, hooks


@contextlib.contextmanager
def _attributes_restored(model: torch.nn.Module) -> Iterator[None]:
    """Modules have the attributes that they had, so that one export does not change the next."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _check_settles(model: PreTrainedModel, tokens: int, longest: int | None, writes: int, prefix: int) -> None:
    """Called twice, a model that changes parameters must change them as often as called once."""
    again, _ = _export(model, tokens, longest, calls=2, prefix=prefix)
    found = parameter_writes(again)
    if len(found) != writes:
        where = found[-1].meta.get("stack_trace", "").strip().splitlines()[-2:]
        raise CaptureError(
            "[capture] expected a forward pass that leaves parameters as they are, or changes them at its first call "
            f"alone, found one that writes {found[-1].args[0]} at every call: {' '.join(x.strip() for x in where)}"
        )


def _prefix_watch(prefix: int) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if prefix else WatchPrefix()


def _first_capture_error(error: BaseException) -> CaptureError | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CaptureError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints whole graphs when it fails; what matters of them is in our error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_BOUNDS = re.compile(r"generated guard (\d+) <= .*? <= (\d+|IntInfinity)")
_FIXED = re.compile(r"specialized value of (\d+)")


def _is_final(error: Exception) -> bool:
    """Whether the failure says that no other number of tokens would do."""
    text = str(error)
    return bool(_BOUNDS.search(text) or _FIXED.search(text)) or "data-dependent" in text


def _explain(error: Exception) -> str:
    """What was expected and found when torch.export failed, with the model's line where it is known."""
    text, where = str(error), _model_line(error)
    name = type(error).__name__
    bounds = _BOUNDS.search(text)
    if _FIXED.search(text) or (bounds and bounds[1] == bounds[2]):
        return (
            f"expected code that works on all tokens at once, found code unrolled over them{where}: a recurrence "
            "needs a canonical op, and is recognised by a replaceable kernel's name"
        )
    if bounds:
        low, high = bounds[1], "" if bounds[2] == "IntInfinity" else f" <= {bounds[2]}"
        return f"expected code that does the same for every number of tokens T, found a way for {low} <= T{high}{where}"
    if "DataDependent" in name or "data-dependent" in text:
        return f"expected code that does the same for all values, found a branch or loop on values of tensors{where}"
    lines = [line.strip() for line in text.strip().splitlines()[:4] if line.strip()]
    return f"expected a model that torch.export can follow, found {name}{where}: {' '.join(lines)[:600]}"


def _model_line(error: Exception) -> str:
    """ " at file.py:123 Class.forward", the innermost frame of a modelling file."""
    where, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        file = os.path.basename(code.co_filename)
        if file.startswith("modeling_"):
            where = f" at {file}:{trace.tb_lineno} {code.co_qualname}"
        trace = trace.tb_next
    return where
