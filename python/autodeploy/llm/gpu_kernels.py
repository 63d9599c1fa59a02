"""Which kernels a compile should make for the device that will serve the model."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

_GPU = re.compile(r"cuda(:\d+)?")
_DEFAULT_ACT = "bfloat16"


@dataclass(frozen=True)
class GpuKernels:
    """An architecture (90 for 9.0) and the activation type that is served."""

    arch: int
    act: str


def kernels_for(device: str, dtype: str) -> GpuKernels | None:
    """What kernels are wanted for a device and a dtype as users name them.

    None for what is no GPU, where there is no Triton to compile with (the runtime's own kernels serve then), and where
    the GPU cannot be asked (the engine says why).
    """
    if not _GPU.fullmatch(device) or importlib.util.find_spec("triton") is None:
        return None
    from autodeploy._load_native import load_native

    try:
        major, minor = load_native().describe_device(device)["compute_capability"].split(".")
        arch = 10 * int(major) + int(minor)
    except (ImportError, RuntimeError, ValueError, KeyError):
        return None
    return GpuKernels(arch, _DEFAULT_ACT if dtype == "auto" else dtype)
