"""Values of a model's constants in full precision.

Models are captured in bfloat16, and some make their constants in the default type, or compute float32 ones through it.
The values are therefore taken from a second build in float32: what `act` is bound to later rounds once, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from autodeploy.ir import DTYPES, ConstantInfo

from .build import BuildOptions, build, fake_parameters
from .errors import CaptureError
from .export import export_prefill

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROOT = "model."  # where export's wrapper holds the model


def wide_constants(
    config: PretrainedConfig,
    options: BuildOptions,
    program: ExportedProgram,
    longest: int | None = None,
    prefix: int = 0,
) -> dict[str, ConstantInfo]:
    """Buffers that no checkpoint holds, and tensors made by the model's code, by their names in `program`.

    The dtype (act or f32) is that of the capture in bfloat16. A second export is made only where the code itself makes
    bfloat16 tensors.

    Raises:
        CaptureError: code run in float32 makes other constants than in bfloat16.
    """
    signature = program.graph_signature
    narrow = {str(s.target): program.constants[str(s.target)] for s in signature.input_specs if _is_constant(s)}
    if not narrow:
        return {}
    twin = build(config, options, torch.float32)
    wide = {ROOT + name: value for name, value in twin.named_buffers(remove_duplicate=False)}
    made = [name for name in narrow if name not in wide]
    if any(narrow[name].dtype == torch.bfloat16 for name in made):
        fake_parameters(twin)
        other, _ = export_prefill(twin, longest, prefix)
        names = [str(s.target) for s in other.graph_signature.input_specs if s.kind is InputKind.CONSTANT_TENSOR]
        values = [other.constants[name] for name in names]
        if [tuple(narrow[name].shape) for name in made] != [tuple(value.shape) for value in values]:
            raise CaptureError(
                "[capture] expected the same constants from code run in bfloat16 and in float32, found "
                f"{len(made)} and {len(values)}"
            )
        wide.update(zip(made, values, strict=True))
    return {name: _info(name, value, wide.get(name, value)) for name, value in narrow.items()}


def _is_constant(spec: torch.export.graph_signature.InputSpec) -> bool:
    return spec.kind is InputKind.CONSTANT_TENSOR or (spec.kind is InputKind.BUFFER and not spec.persistent)


def _info(name: str, narrow: torch.Tensor, wide: torch.Tensor) -> ConstantInfo:
    name, value = name.removeprefix(ROOT), wide.detach().clone()
    if wide.is_meta:
        raise CaptureError(f"[capture] expected constant {name} to have a value, found none")
    if narrow.shape != wide.shape:
        raise CaptureError(f"[capture] expected constant {name} of shape {narrow.shape}, found {wide.shape} in float32")
    if narrow.dtype in (torch.bfloat16, torch.float16):
        return ConstantInfo(name, "act", value.float())
    if narrow.dtype.is_floating_point:
        return ConstantInfo(name, "f32", value.float())
    if narrow.dtype.is_complex:
        raise CaptureError(f"[capture] expected real constants, found {name} of {narrow.dtype}")
    return ConstantInfo(name, DTYPES.get(narrow.dtype, "i64"), value if narrow.dtype == torch.bool else value.long())
