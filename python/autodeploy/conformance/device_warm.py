"""Imported once by the server that jobs on a device are forked from. Nothing here may open one or start a thread."""

from __future__ import annotations

import os
import sys
import traceback

os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import torch

    torch.set_num_threads(1)
    from autodeploy._load_native import load_native
    from autodeploy.conformance import device_case  # noqa: F401

    load_native()
except Exception:  # the jobs themselves will say what is wrong
    traceback.print_exc(file=sys.stderr)
