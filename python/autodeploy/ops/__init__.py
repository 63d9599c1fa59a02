"""Canonical ops: one file is one op of docs/program.md: schema, shape rule, reference and samples (see base.py)."""

from . import (  # noqa: F401  (importing registers)
    add_layer_norm,
    add_rms_norm,
    attention,
    causal_conv1d,
    embedding,
    expert_linear,
    gated_delta_rule,
    known_length,
    layer_norm,
    linear,
    linear_attention,
    linear_scan,
    mask,
    masked_attention,
    mlstm,
    rms_norm,
    rope,
    select_rows,
    selective_scan,
    ssd,
    window,
    wkv,
)
from .base import OPS, Batch, Memory, Op, Sample, StateComponent, StateDecl, StateStore, Step, op_of, running, schedule

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
    "schedule",
]
