"""A model that is compiled from its configuration alone: every parameter is a tensor that is nowhere.

The weight program of such a model is complete but for the files; the runtime makes its weights up (load format dummy).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint
from .derive import Derivation
from .expr import data
from .formats import stored_bytes
from .weight_program import StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABSENT = "absent"
_LARGEST_BUFFER = 1 << 16  # elements of a buffer that weights.json holds
_FORMATS = {
    "float32": "f32",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}


def derive_absent(model: PreTrainedModel, fmt: str, path: Path) -> tuple[Derivation, Checkpoint]:
    """Where parameters would come from if a checkpoint had each of them under its name in `fmt`; shared ones once.

    Buffers that a checkpoint would hold have the values that the model's code gives them.
    """
    derivation, checkpoint = Derivation(), Checkpoint(ABSENT, path)
    owner: dict[int, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if owner.setdefault(id(parameter), name) == name:
            shape = tuple(parameter.shape)
            checkpoint.tensors[name] = StoredTensor(None, 0, stored_bytes(fmt, shape), fmt, shape)
        derivation.origins[name] = checkpoint.tensors[owner[id(parameter)]].expr(owner[id(parameter)])
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target in parameters and source in parameters:
            derivation.origins[target] = derivation.origins[source]
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in stored and not buffer.is_meta and buffer.numel() <= _LARGEST_BUFFER:
            numbers = buffer.float() if buffer.is_floating_point() else buffer
            values, kind = numbers.contiguous().numpy(), _FORMATS.get(str(numbers.dtype).removeprefix("torch."))
            if kind is not None:
                derivation.origins[name] = data(values, kind)
    return derivation, checkpoint
