"""A plain interpreter of Programs: each instruction is run by its op's reference in PyTorch, in float32.

It is the meaning of a Program, made to be read and trusted rather than fast; every backend is compared against it.
"""

from .interpreter import Interpreter, StepResult

__all__ = ["Interpreter", "StepResult"]
