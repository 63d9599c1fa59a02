"""Where every parameter of a transformers model comes from in a checkpoint, without reading a weight.

The checkpoint's tensors become `Recorded` ones, and transformers' own loading code (its conversion mapping, renaming
and converters) runs on them, as `from_pretrained` would. What arrives at a parameter is its expression.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import Checkpoint
from .derive_gguf import gguf_mapping, gguf_tensors
from .errors import WeightError
from .evaluate import Read, evaluate, rows
from .expr import Expr, tensor_names
from .expr_json import to_json
from .inner_model import inner_names
from .record import Recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 5
_CHUNK = 1 << 24  # elements


@dataclass
class Derivation:
    """`origins` gives each parameter, and each persistent buffer that the checkpoint holds, by its name in the model.

    Tied names share an expression. `unused` are checkpoint tensors that nothing took; `copies` those whose parameter
    takes the tensor of another one that it is tied to.
    """

    origins: dict[str, Expr] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    copies: set[str] = field(default_factory=set)


def derive(model: PreTrainedModel, checkpoint: Checkpoint) -> Derivation:
    """Derives all origins. The model's parameters may be on meta or fake: only names, shapes and ties are looked at.

    Raises:
        WeightError: a parameter is missing in the checkpoint or has another shape there, a tensor has a format that is
            not read, or the conversion does something that expressions cannot say.
    """
    result = Derivation()
    if checkpoint.kind == "gguf":
        mapping = gguf_mapping(model, checkpoint)
        tensors = gguf_tensors(model, checkpoint, result.unused.append)
    else:
        from transformers.conversion_mapping import get_model_conversion_mapping

        mapping = get_model_conversion_mapping(model)
        tensors = {name: t.expr(name) for name, t in checkpoint.tensors.items()}
    _convert(model, mapping, tensors, checkpoint.unsupported, result)
    if checkpoint.kind != "gguf" and _embedding(model) not in result.origins:
        result = _convert_inner(model, mapping, tensors, checkpoint.unsupported) or result
    _tie(model, checkpoint, result)
    _check(model, checkpoint, result)
    return result


def _convert(
    model: PreTrainedModel,
    mapping: Iterable[Any],
    tensors: Mapping[str, Expr],
    unsupported: Mapping[str, str],
    result: Derivation,
) -> None:
    """Follows transformers.core_model_loading.convert_and_load_state_dict_in_model."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = list(mapping)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix

    loads: dict[str, Any] = {}
    for name in sorted({*tensors, *unsupported}, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=state)
        if target not in state:
            result.unused.append(name)
            continue
        if name in unsupported:
            raise WeightError(
                f"[{name}] has the type {unsupported[name]}, which is not read: convert the checkpoint to bfloat16"
            )
        recorded = Recorded.make(tensors[name])
        fresh = copy.deepcopy(by_pattern[pattern]) if pattern is not None else WeightRenaming(name, target)
        load = loads.setdefault(target, fresh)
        load.add_tensor(target, name, pattern if pattern is not None else name, lambda t=recorded: t)

    for first, load in loads.items():
        try:
            converted = load.convert(first, model=model, config=model.config)
        except WeightError as e:
            raise WeightError(f"[{first}] {e}") from None
        for name, value in converted.items():
            value = value[0] if isinstance(value, list) else value
            if not isinstance(value, Recorded):
                raise WeightError(
                    f"[{name}] the checkpoint's conversion made a tensor of its own, not one of the file's"
                )
            result.origins[name] = value.expr


def _embedding(model: PreTrainedModel) -> str:
    """Name of the input embedding's weight."""
    weight = model.get_input_embeddings().weight
    return next((n for n, p in model.named_parameters(remove_duplicate=False) if p is weight), "")


def _convert_inner(
    model: PreTrainedModel, mapping: Iterable[Any], tensors: Mapping[str, Expr], unsupported: Mapping[str, str]
) -> Derivation | None:
    """The same for a checkpoint of a larger model that holds this one; None where it is not found in there."""
    state = model.state_dict()
    names = {*tensors, *unsupported}
    inner = inner_names(names, state.keys(), model.base_model_prefix, _embedding(model))
    if not inner:
        return None
    result = Derivation()
    taken = {new: tensors[old] for old, new in inner.items() if old in tensors}
    _convert(model, mapping, taken, {new: unsupported[old] for old, new in inner.items() if old in unsupported}, result)
    back = {new: old for old, new in inner.items()}
    result.unused = sorted({*(back[n] for n in result.unused), *(names - set(inner))})
    return result


def _tie(model: PreTrainedModel, checkpoint: Checkpoint, result: Derivation) -> None:
    """Parameters that share storage, and those that transformers ties, take the expression of the one that is there.

    `from_pretrained` unties names whose values differ in the checkpoint. A model that was built with one parameter for
    both cannot do that, so it is refused.
    """
    read = checkpoint.reader()
    twins: dict[int, list[str]] = {}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in everything:
        twins.setdefault(id(tensor), []).append(name)
    groups = list(twins.values())
    groups += [[target, source] for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items()]
    for names in [*groups, *groups[::-1]]:
        source = next((n for n in names if n in result.origins), None)
        for name in names:
            if source is None:
                continue
            if not _equal(result.origins.setdefault(name, result.origins[source]), result.origins[source], read):
                raise WeightError(
                    f"[{checkpoint.path}] the configuration ties {source} and {name}, but their weights differ: set "
                    "tie_word_embeddings to false in config.json"
                )
            if result.origins[name] is not result.origins[source]:
                result.copies |= tensor_names(result.origins[name])
            result.origins[name] = result.origins[source]


def _equal(a: Expr, b: Expr, read: Read) -> bool:
    """Whether two expressions have the same value; compared in chunks when they are not the same tensor."""
    if a is b or to_json(a) == to_json(b):
        return True
    if a.shape != b.shape or not a.shape:
        return a.shape == b.shape and np.array_equal(evaluate(a, read).to_f32(), evaluate(b, read).to_f32())
    step = max(1, _CHUNK // max(1, math.prod(a.shape[1:])))
    for at in range(0, a.shape[0], step):
        first, second = (evaluate(rows(x, at, min(at + step, x.shape[0])), read).to_f32() for x in (a, b))
        if not np.array_equal(first, second):
            return False
    return True


def _check(model: PreTrainedModel, checkpoint: Checkpoint, result: Derivation) -> None:
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, x in result.origins.items():
        if name in shapes and x.shape != shapes[name]:
            raise WeightError(
                f"[{name}] expected the shape {list(shapes[name])}, found {list(x.shape)} in {checkpoint.path}: the "
                "configuration and the weights do not belong together"
            )
    allowed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    missing = [n for n in parameters if n not in result.origins and not any(re.search(p, n) for p in allowed)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        found = f"; it holds {', '.join(result.unused[:_SHOWN])}, which nothing takes" if result.unused else ""
        raise WeightError(
            f"[{checkpoint.path}] has no weights for {', '.join(missing[:_SHOWN])}{more}{found}: it is not a whole "
            "checkpoint of this model, download it again or check its configuration"
        )
