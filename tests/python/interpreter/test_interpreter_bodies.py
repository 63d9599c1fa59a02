"""`over_keys` on the interpreter: hand-written bodies against PyTorch, however sequences are scheduled and tiled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from over_keys_programs import CASES, rows_per_token

from autodeploy.artifact.program import Body
from autodeploy.interpreter import Interpreter
from autodeploy.interpreter.body import over_keys
from autodeploy.interpreter.generic import GENERIC
from autodeploy.lowering.printer import format_program
from autodeploy.ops import Batch, StateComponent, StateDecl, StateStore, schedule
from autodeploy.ops.base import SCHEDULES
from autodeploy.testing.compare import assert_close

CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def rows_of(body: Body, i: int, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    each = rows_per_token(body, i) if body.inputs[i].role == "query" else 1
    return x[start * each : stop * each]


@CASE
@pytest.mark.parametrize("steps", SCHEDULES.values(), ids=SCHEDULES)
def test_agrees_with_its_meaning_on_any_schedule(case, steps):
    program, params = case.program()
    interpreter = Interpreter(program, params)
    names = {case.body.values[i].name: i for i, g in enumerate(case.body.inputs) if g.role != "fixed"}
    batches = schedule(*steps)
    total: dict[tuple[int, int], int] = {}
    epoch: dict[int, int] = {}
    plan = []
    for batch in batches:
        parts = []
        for s in batch.sequences():
            epoch[s.slot] = epoch.get(s.slot, 0) + (s.past == 0)
            key = (s.slot, epoch[s.slot])
            total[key] = s.past + s.length
            parts.append((key, s))
        plan.append((batch, parts))
    operands = {key: case.tokens(10 * sum(key), n) for key, n in total.items()}
    meant = {key: case.meaning(x) for key, x in operands.items()}
    for step, (batch, parts) in enumerate(plan):
        inputs = {
            name: torch.cat([rows_of(case.body, i, operands[key][name], s.past, s.past + s.length) for key, s in parts])
            for name, i in names.items()
        }
        inputs |= {"token_ids": torch.zeros(batch.num_tokens, dtype=torch.int64), "positions": batch.positions()}
        found = interpreter.step(batch, inputs).outputs
        for j in range(len(case.body.outputs)):
            pieces = []
            for key, s in parts:
                x = meant[key][j]
                each = x.shape[0] // total[key]
                pieces.append(x[s.past * each : (s.past + s.length) * each])
            assert_close(found[f"out{j}"], torch.cat(pieces), 2e-5, f"{case.name} step {step} result {j}")


@CASE
@given(tile=st.integers(1, 8), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 5))
def test_tiles_and_cuts_change_nothing(case, tile, cuts, seed):
    program, params = case.program()
    body, length = case.body, sum(cuts)
    tokens = case.tokens(seed, length)
    components = [StateComponent(c.name, c.shape, c.dtype) for s in program.states for c in s.components]
    state = [StateStore(StateDecl("paged", tuple(components)))] if components else []
    dtypes = {"act": torch.float32, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
    pieces = []
    start = 0
    for n in cuts:
        batch = Batch.of([n], [start])
        operands = []
        for i, given_input in enumerate(body.inputs):
            name = body.values[i].name
            whole = params[name] if given_input.role == "fixed" else tokens[name]
            operands.append(whole if given_input.role == "fixed" else rows_of(body, i, whole, start, start + n))
        pieces.append(over_keys(body, program.regions, dtypes, batch, state, operands, tile=tile))
        start += n
    for j, expected in enumerate(case.meaning(tokens)):
        assert_close(torch.cat([p[j] for p in pieces]), expected, 2e-5, f"{case.name} result {j}")


def test_indices_outside_a_dim_read_zero_and_write_nothing():
    x, index = torch.arange(1.0, 7).reshape(2, 3), torch.tensor([[0, 3], [-1, 2]])
    attrs = {"dim": 1, "reduce": ""}
    (gathered,) = [GENERIC["gather"]([x, index], attrs, [2, 2])]
    assert gathered.tolist() == [[1, 0], [0, 6]]
    for reduce, expected in (("", [[9, 2, 3], [4, 5, 9]]), ("add", [[10, 2, 3], [4, 5, 15]])):
        source = torch.full((2, 2), 9.0)
        assert GENERIC["scatter"]([x, index, source], attrs | {"reduce": reduce}, [2, 3]).tolist() == expected
    assert GENERIC["index_select"]([x, torch.tensor([1, 7])], attrs, [2, 2]).tolist() == [[2, 0], [5, 0]]


@CASE
def test_printing_shows_the_body(case):
    text = format_program(case.program()[0])
    assert "bodies (1)" in text
    assert "over_keys b0" in text
    assert all(i.op in text for i in case.body.instructions)
