"""Lowering: the canonical graph of a model becomes a Program (docs/program.md)."""

from .builder import LoweringError
from .lower import lower
from .printer import format_program

__all__ = ["LoweringError", "format_program", "lower"]
