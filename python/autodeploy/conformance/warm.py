"""Imported once by the server that cases are forked from: libraries, hooks, and one compile that fills their caches.

No modelling module may be imported here but after the hooks are installed, and nothing may start a thread.
"""

from __future__ import annotations

import os
import sys
import traceback

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def warm_up() -> None:
    """Imports what every case needs, and compiles a first tiny model."""
    from autodeploy.capture import hooks

    hooks.install()
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from autodeploy._load_native import load_native
    from autodeploy.capture.capture import capture
    from autodeploy.lowering.lower import lower
    from autodeploy.testing.tiny_config import load_rules, tiny_config
    from autodeploy.transforms import run_pipeline

    from . import checks, run_case  # noqa: F401
    from .case import source_hash

    source_hash()  # of the sources as they are now: those are what the cases run
    load_native()
    first = next(iter(load_rules()["variants"])).split("+")[0]
    ir = capture(tiny_config(first))
    run_pipeline(ir)
    lower(ir)


try:
    warm_up()
except Exception:  # the cases themselves will say what is wrong
    traceback.print_exc(file=sys.stderr)
