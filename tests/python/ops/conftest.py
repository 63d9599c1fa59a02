"""Fixtures of the op tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def native():
    """The extension module; tests of kernels are skipped where it is not built."""
    from autodeploy._load_native import load_native

    try:
        return load_native()
    except ImportError as e:
        pytest.skip(str(e))
