"""Compile-time changes of a model's graph: one file is one transform, `pipeline.py` is the list."""

from .base import Transform, TransformError
from .manager import Phase, Report, run_phases
from .pipeline import phases, run_pipeline

__all__ = ["Phase", "Report", "Transform", "TransformError", "phases", "run_phases", "run_pipeline"]
