"""What can go wrong while serving. A user's mistake is a `ValueError`; these are the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .outputs import RequestOutput


class EngineError(RuntimeError):
    """The engine stopped, or was closed: no request of it can go on."""


class RequestError(RuntimeError):
    """One or more requests ended with a fault of their own; the others went on.

    `outputs` holds everything that was generated, in the order of the prompts: a request that failed has the
    finish reason "error" and its `error` text.
    """

    def __init__(self, message: str, outputs: list[RequestOutput]):
        super().__init__(message)
        self.outputs = outputs


class CompileError(RuntimeError):
    """The compiler's child process failed. `details` holds its traceback or the tail of what it printed."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details
