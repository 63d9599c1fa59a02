"""Program and artifact, between objects and bytes. Standard library only."""

from .dims import Dim, eval_dim, format_dim, mul_dims, parse_dim
from .errors import ArtifactError
from .files import Provenance
from .program import (
    Body,
    BodyInput,
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
from .reader import Artifact, is_artifact, read_artifact, read_manifest
from .validate import validate
from .writer import write_artifact

__all__ = [
    "Artifact",
    "ArtifactError",
    "Body",
    "BodyInput",
    "Dim",
    "Instruction",
    "Operand",
    "Param",
    "Program",
    "Provenance",
    "Region",
    "RegionNode",
    "State",
    "StateComponent",
    "Value",
    "eval_dim",
    "format_dim",
    "is_artifact",
    "mul_dims",
    "parse_dim",
    "read_artifact",
    "read_manifest",
    "validate",
    "write_artifact",
]
