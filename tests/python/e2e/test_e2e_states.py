"""Experts, recurrent states, hybrids and quantized weights: the same checks as of attention models."""

from __future__ import annotations

import numpy as np
import pytest
from e2e_models import DATA, PLANS, Case, case, check_greedy, check_plan, gguf_case, names, run_steps

pytestmark = pytest.mark.e2e
MODELS = [*names("states"), *(f"gguf {i}" for i in range(len(DATA["gguf"])))]


def find(name: str) -> Case:
    return gguf_case(int(name.split()[1])) if name.startswith("gguf ") else case(name)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_interpreter(name: str, plan: str) -> None:
    c = find(name)
    check_plan(c, c.interpreter(), PLANS[plan](c.feeds))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_runtime(name: str, plan: str) -> None:
    c = find(name)
    steps = PLANS[plan](c.feeds)
    check_plan(c, c.runtime(steps), steps)


@pytest.mark.parametrize("name", MODELS)
def test_threads_change_no_bit(name: str) -> None:
    c = find(name)
    steps = PLANS["ragged"](c.feeds)
    one, two = (run_steps(c.runtime(steps, threads), steps) for threads in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_shared_memory_changes_no_bit(name: str) -> None:
    """Values that lie in each other's memory, once they are dead, compute what they compute in memory of their own."""
    c = find(name)
    steps = PLANS["ragged"](c.feeds)
    shared, apart = (run_steps(c.runtime(steps, poison=p), steps) for p in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(shared, apart, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_engine(name: str) -> None:
    check_greedy(find(name))


def test_quantized_weights_stay_quantized() -> None:
    """Blocks are multiplied as they are stored: every matrix keeps its format, and the artifact holds no weights."""
    c = gguf_case(0)
    formats = {s["format"] for p in c.artifact.weights["params"] for s in p["segments"] if len(p["shape"]) == 2}
    assert formats == {t.lower() for t in DATA["gguf"][0]["types"]}
    assert sum(c.artifact.files.values()) < c.checkpoint.stat().st_size


def test_int8_activations_stay_close() -> None:
    """The fast paths differ from float32 arithmetic, but little."""
    c = gguf_case(0)
    steps = PLANS["ragged"](c.feeds)
    exact, fast = (np.concatenate(run_steps(c.runtime(steps, exact=e), steps)) for e in (True, False))
    error = np.abs(fast - exact).max() / np.abs(exact).max()
    assert error < 0.05
