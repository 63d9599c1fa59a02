"""Canonical ops: one file is one op of docs/program.md: schema, shape rule, reference and samples (see base.py)."""

from . import (  # noqa: F401  (importing registers)
    rms_norm,
)
from .base import OPS, Batch, Memory, Op, Sample, StateComponent, StateDecl, StateStore, Step, op_of, running

__all__ = [
    "OPS",
    "Batch",
    "Memory",
    "Op",
    "Sample",
    "StateComponent",
    "StateDecl",
    "StateStore",
    "Step",
    "op_of",
    "running",
]
