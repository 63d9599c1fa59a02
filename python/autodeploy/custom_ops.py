"""What a model's own code says about its operators (`torch.library.custom_op`), so that they can be compiled.

    @torch.library.custom_op("mylib::gated_act", mutates_args=())
    def gated_act(x: torch.Tensor, gate: torch.Tensor, limit: float) -> torch.Tensor: ...

    @gated_act.register_fake
    def _(x, gate, limit): return torch.empty_like(x)

    register_op("mylib::gated_act", library="libgated_act.so")

A declared operator stays one node of the graph and becomes one instruction. Its kernel comes from a shared library
(cpp/include/autodeploy/plugin.h) that whoever runs the model gives by path; its PyTorch implementation is its meaning.
This module imports nothing: the model's code may import it whether or not autodeploy compiles it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*")
_OURS = ("aten", "prims", "prim", "autodeploy")


@dataclass(frozen=True)
class CustomOp:
    """A declaration: the operator's name, and the file name of the library that has its kernel ("" where unsaid)."""

    name: str
    library: str = ""


_DECLARED: dict[str, CustomOp] = {}


def register_op(name: str, *, library: str = "") -> CustomOp:
    """Declares that the operator `name` ("namespace::name") is token-wise.

    That is: in whichever dim of its operands the tokens stand, they stand in the corresponding dim of its results, and
    what it computes for a token depends on that token's operands alone, however many there are. Operands without tokens
    (parameters) are the same for all. The compiler takes the author's word for it, says so in `explain`, and `verify`
    compares numbers. An operator that mixes tokens or keeps a state between steps cannot be declared.

    library: file name of the shared library with its kernel, for messages and the artifact; the path is the user's.

    Raises:
        ValueError: the name has another form, or belongs to PyTorch or autodeploy.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.split("::")[0] in _OURS:
        raise ValueError(
            f"[custom op] expected a name such as 'mylib::gated_act' of a namespace of yours, found {name!r}"
        )
    if "/" in library:
        raise ValueError(f"[custom op] expected the file name of a library, found {library!r}: its path is the user's")
    _DECLARED[name] = CustomOp(name, library)
    return _DECLARED[name]


def declared_op(name: str) -> CustomOp | None:
    """The declaration of an operator, or None where its author made none."""
    return _DECLARED.get(name)
