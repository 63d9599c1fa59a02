"""Settings of all tests: one thread for torch, reproducible property tests, and shared helper modules."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent))

# Helper modules of the rooms (tests/python/<room>/*.py) are imported by name from any test.
for _room in sorted(p for p in Path(__file__).parent.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))):
    if str(_room) not in sys.path:
        sys.path.append(str(_room))

settings.register_profile(
    "autodeploy", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("autodeploy")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """tests/data: what tests need to know that code must not, such as names of model types."""
    return Path(__file__).parents[1] / "data"
