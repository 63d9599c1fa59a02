"""Finds the extension module `autodeploy._native`.

An installed package holds it. To use a developer's build, set AUTODEPLOY_NATIVE_DIR to the folder of the built
`_native*.so` (for example `build/dev/cpp/bindings`): that one is then used instead.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

_NAME = "autodeploy._native"


def load_native() -> ModuleType:
    """The module `autodeploy._native`; raises ImportError saying how to build it where it is absent."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    folder = os.environ.get("AUTODEPLOY_NATIVE_DIR")
    if folder:
        return _load_from(Path(folder))
    try:
        return importlib.import_module(_NAME)
    except ModuleNotFoundError as e:
        raise ImportError(
            "[autodeploy] expected the extension module autodeploy._native, found none: install the package with pip, "
            "or build with cmake -DAUTODEPLOY_PYTHON=ON and set AUTODEPLOY_NATIVE_DIR to the folder of _native*.so"
        ) from e


def _load_from(folder: Path) -> ModuleType:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_native{suffix}"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(_NAME, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[_NAME] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[_NAME]
                raise
            return module
    raise ImportError(f"[autodeploy] expected _native*.so in AUTODEPLOY_NATIVE_DIR={folder}, found none")
