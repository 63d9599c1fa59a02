"""What a model's own code says about its operators (`torch.library.custom_op`), so that they can be compiled.

    @torch.library.custom_op("mylib::gated_act", mutates_args=())
    def gated_act(x: torch.Tensor, gate: torch.Tensor, limit: float) -> torch.Tensor: ...

    @gated_act.register_fake
    def _(x, gate, limit): return torch.empty_like(x)

    register_op("mylib::gated_act", library="libgated_act.so")

A declared operator stays one node of the graph and becomes one instruction. On the CPU its kernel comes from a shared
library (cpp/include/autodeploy/plugin.h) that whoever runs the model gives by path; for GPUs a function of Triton's is
compiled into the artifact:

    def launch(x, gate, limit, out):                # the operator's arguments, then its results
        size = out.numel()
        grid = (triton.cdiv(size, 1024),)
        return TritonLaunch({"x": x, "gate": gate, "out": out, "size": size, "limit": limit, "BLOCK": 1024}, grid)

    register_op("mylib::gated_act", triton=gated_act_kernel, launch=launch)

Its PyTorch implementation is the operator's meaning. This module imports nothing of weight: the model's code may import
it whether or not autodeploy compiles it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*")
_OURS = ("aten", "prims", "prim", "autodeploy")


@dataclass(frozen=True)
class TritonLaunch:
    """How a Triton function is run: its parameters by name (tensors, numbers; what `tl.constexpr` parameters are), the
    numbers of blocks, and how each block is compiled."""

    args: Mapping[str, Any]
    grid: Sequence[Any]
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class CustomOp:
    """A declaration: the operator's name, the file name of the library that has its kernel ("" where unsaid), and its
    kernel for GPUs with what says how it is run (None where there is none)."""

    name: str
    library: str = ""
    triton: Any = field(default=None, compare=False)
    launch: Callable[..., TritonLaunch] | None = field(default=None, compare=False)


_DECLARED: dict[str, CustomOp] = {}


def register_op(
    name: str, *, library: str = "", triton: Any = None, launch: Callable[..., TritonLaunch] | None = None
) -> CustomOp:
    """Declares that the operator `name` ("namespace::name") is token-wise.

    That is: in whichever dim of its operands the tokens stand, they stand in the corresponding dim of its results, and
    what it computes for a token depends on that token's operands alone, however many there are. Operands without tokens
    (parameters) are the same for all. The compiler takes the author's word for it, says so in `explain`, and `verify`
    compares numbers. An operator that mixes tokens or keeps a state between steps cannot be declared.

    library: file name of the shared library with its kernel, for messages and the artifact; the path is the user's.
    triton: a function of `@triton.jit` that computes it on a GPU.
    launch: called by the compiler with the operator's arguments in the order of its schema and then its results.
        Tensors have `shape`, `stride(d)`, `numel()`, `ndim` and `dtype` ("bfloat16" and so on), where sizes that hang
        on the number of tokens are placeholders that can be added, multiplied and divided; other arguments are what
        the model passes; optional tensors that are absent are None. Returns what the function is run with.

    Raises:
        ValueError: the name has another form, or belongs to PyTorch or autodeploy; one of `triton` and `launch` alone.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.split("::")[0] in _OURS:
        raise ValueError(
            f"[custom op] expected a name such as 'mylib::gated_act' of a namespace of yours, found {name!r}"
        )
    if "/" in library:
        raise ValueError(f"[custom op] expected the file name of a library, found {library!r}: its path is the user's")
    if (triton is None) != (launch is None):
        raise ValueError(f"[custom op] {name}: expected a Triton function and its launch together, found one of them")
    _DECLARED[name] = CustomOp(name, library, triton, launch)
    return _DECLARED[name]


def declared_op(name: str) -> CustomOp | None:
    """The declaration of an operator, or None where its author made none."""
    return _DECLARED.get(name)
