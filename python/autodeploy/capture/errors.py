"""What capture says when it cannot go on, and where in the model it was."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import FrameType

_LIBRARIES = tuple(os.path.join(sysconfig.get_paths()["purelib"], name) + os.sep for name in ("torch", "accelerate"))
_HERE = os.path.dirname(__file__) + os.sep


class CaptureError(ValueError):
    """A model that cannot be captured: `[what] expected, found, what to do`, with the line of the model's source."""


class UnknownAttention(CaptureError):
    """A call of the attention interface that asks for what the hook does not know; the model's own code may."""


def calling_line() -> str:
    """ "file.py:123 function" of the model's code that called into a hook, for messages."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        shared = os.sep + os.path.join("transformers", "") in path and os.sep + "models" + os.sep not in path
        if not path.startswith((_HERE, *_LIBRARIES, "<")) and not shared and "contextlib" not in path:
            return f"{os.path.basename(path)}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "an unknown line"
