"""Program and artifact, between objects and bytes. Standard library only."""

from .dims import Dim, eval_dim, format_dim, mul_dims, parse_dim
from .errors import ArtifactError
from .program import (
    Instruction,
    Operand,
    Param,
    Program,
    Region,
    RegionNode,
    State,
    StateComponent,
    Value,
)
from .validate import validate

__all__ = [
    "ArtifactError",
    "Dim",
    "Instruction",
    "Operand",
    "Param",
    "Program",
    "Region",
    "RegionNode",
    "State",
    "StateComponent",
    "Value",
    "eval_dim",
    "format_dim",
    "mul_dims",
    "parse_dim",
    "validate",
]
