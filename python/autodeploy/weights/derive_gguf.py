"""What transformers does to the tensors of a GGUF file, as expressions.

transformers has two loaders. The newer one states conversions as data (`integrations.gguf`), which `derive` runs like
any other mapping. The older one maps names and passes each array to a processor, a Python function on NumPy arrays that
may reorder, split or change values. Its effect is learned by running it on arrays whose elements are numbered
(`learn_layout`), on a few columns only where that does, and checked on random numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import Checkpoint
from .errors import WeightError
from .expr import Expr, cat, join, on_values
from .formats import Array
from .gguf_fields import fast_gguf
from .learn_layout import Piece, Process, learn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def architecture(checkpoint: Checkpoint) -> str:
    """The file's name for its architecture."""
    found = checkpoint.metadata.get("general.architecture")
    if not isinstance(found, str):
        raise WeightError(f"[{checkpoint.path}] names no general.architecture: it is not a model file")
    return found


def gguf_mapping(model: PreTrainedModel, checkpoint: Checkpoint) -> Iterable[Any]:
    """The conversion mapping for what `gguf_tensors` gives."""
    if _is_declarative(architecture(checkpoint)):
        from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

        return get_gguf_conversion_mapping(architecture(checkpoint), model.config)
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(model)


def gguf_tensors(model: PreTrainedModel, checkpoint: Checkpoint, unused: Callable[[str], None]) -> dict[str, Expr]:
    """Expressions by the name that the mapping expects: the file's own, or the model's for the older loader."""
    if _is_declarative(architecture(checkpoint)):
        return {name: t.expr(name) for name, t in checkpoint.tensors.items()}
    return _processed(model, checkpoint, unused)


def _is_declarative(arch: str) -> bool:
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:
        return False
    return bool(is_gguf_arch_supported(arch))


@functools.lru_cache(maxsize=4)
def _parsed_config(path: Path) -> dict[str, Any]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with fast_gguf():
        config: dict[str, Any] = load_gguf_checkpoint(str(path), return_tensors=False)["config"]  # type: ignore
    return config


def _processed(model: PreTrainedModel, checkpoint: Checkpoint, unused: Callable[[str], None]) -> dict[str, Expr]:
    from transformers import modeling_gguf_pytorch_utils as loader

    make: Any = loader.TENSOR_PROCESSORS.get(architecture(checkpoint), loader.TensorProcessor)
    processor = make(config=_parsed_config(checkpoint.path))
    try:
        with fast_gguf():
            names = loader.get_gguf_hf_weights_map(model, processor)
    except NotImplementedError as e:
        raise WeightError(f"[{checkpoint.path}] transformers cannot map its tensors: {e}") from None

    pieces: dict[str, list[tuple[Piece, Expr]]] = {}
    for name, stored in checkpoint.tensors.items():
        found = learn(process_of(processor, name, names), stored.shape, name)
        if not found:
            unused(name)
        for target, piece in found.items():
            x = on_values(piece.apply, stored.expr(name))
            pieces.setdefault(target, []).append((piece, x))
    return {target: _joined(target, parts) for target, parts in pieces.items()}


def process_of(processor: Any, name: str, names: dict[str, str]) -> Process:
    """The processor as a function from one array to {parameter: array}."""

    def process(array: Array) -> dict[str, Array]:
        import torch

        stored: dict[str, Any] = {}
        with contextlib.redirect_stdout(None), torch.no_grad():
            result = processor.process(
                weights=array, name=name, tensor_key_mapping=names, parsed_parameters={"tensors": stored}
            )
        out = {key: np.asarray(t) for key, t in stored.items()}
        if result.name is not None and result.name in names:
            out[names[result.name]] = result.weights
        return out

    return process


def _joined(target: str, parts: list[tuple[Piece, Expr]]) -> Expr:
    """Pieces of a parameter that several tensors fill, in order along the dimension they share."""
    first = parts[0][0]
    dim, at = first.dim, 0
    if dim is None and len(parts) == 1:
        return parts[0][1]
    parts.sort(key=lambda part: part[0].start)
    for piece, _ in parts:
        if dim is None or piece.dim != dim or piece.start != at:
            raise WeightError(f"[{target}] the file's tensors do not fill it in an order that weights can express")
        at = piece.stop
    if dim is None or at != first.size:
        raise WeightError(f"[{target}] the file's tensors fill {at} of {first.size} entries of dim {dim}")
    return join(cat, [x for _, x in parts], dim)
