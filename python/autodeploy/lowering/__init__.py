"""Lowering: the canonical fx graph of a model becomes a Program (docs/program.md)."""
