"""What a transform is: a named, numbered set of rules that edits a ModelIR and says whether it did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch.fx import Node

from ..ir import ModelIR


class TransformError(ValueError):
    """A model that a transform cannot carry on with: `[transform] what was expected, what was found, what to do`."""


class Transform(ABC):
    """One step of the pipeline. The class docstring states its rules as a numbered list.

    A transform sees a ModelIR and its own configuration, runs on fake tensors, and leaves the meaning of the graph
    unchanged (in float32, up to rounding). Running it a second time changes nothing.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, ir: ModelIR) -> bool:
        """Edits `ir` in place; True when anything changed."""


def refuse(stage: str, node: Node, reason: str, remedy: str) -> TransformError:
    """The error for a node that has no place in a Program, naming the op and the line of the model."""
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    line = node.meta.get("source") or "an unknown line"
    return TransformError(f"[{stage}] {what} at {line}: {reason}; {remedy}")
