"""Attention models from checkpoint to tokens: the interpreter, the runtime and the engine against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from e2e_models import PLANS, case, check_greedy, check_plan, names, run_steps

pytestmark = pytest.mark.e2e
MODELS = names("attention")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_interpreter(name: str, plan: str) -> None:
    c = case(name)
    check_plan(c, c.interpreter(), PLANS[plan](c.feeds))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_runtime(name: str, plan: str) -> None:
    c = case(name)
    steps = PLANS[plan](c.feeds)
    check_plan(c, c.runtime(steps), steps)


@pytest.mark.parametrize("name", MODELS)
def test_threads_change_no_bit(name: str) -> None:
    c = case(name)
    steps = PLANS["ragged"](c.feeds)
    one, two = (run_steps(c.runtime(steps, threads), steps) for threads in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_shared_memory_changes_no_bit(name: str) -> None:
    """Values that lie in each other's memory, once they are dead, compute what they compute in memory of their own."""
    c = case(name)
    steps = PLANS["ragged"](c.feeds)
    shared, apart = (run_steps(c.runtime(steps, poison=p), steps) for p in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(shared, apart, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_engine(name: str) -> None:
    check_greedy(case(name))
