"""A whole small model: its Program as text (golden), its meaning, its views, aliases, regions and states."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lowering_graphs import GATE, fused, model_of, run_program, small_model, small_params

from autodeploy.artifact import Program, validate
from autodeploy.interpreter import Interpreter
from autodeploy.lowering import LoweringError, format_program, lower
from autodeploy.ops import Batch

GOLDEN = Path(__file__).parent / "golden"
PARAMS = small_params()


@pytest.fixture(scope="module")
def program() -> Program:
    made = lower(model_of(small_model, PARAMS, act=True))
    validate(made)
    return made


def logits_of(ids: torch.Tensor) -> torch.Tensor:
    return small_model(ids, torch.arange(len(ids)), *PARAMS.values())


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("use_parts", [False, True])
def test_meaning(program: Program, count: int, use_parts: bool) -> None:
    ids = torch.randint(0, 32, (count,), generator=torch.Generator().manual_seed(count))
    (found,) = run_program(program, PARAMS, ids, use_parts)
    torch.testing.assert_close(found, logits_of(ids), rtol=1e-5, atol=1e-5)


def test_ragged_steps(program: Program) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(0, 32, (n,), generator=generator) for n in (8, 5))
    interpreter = Interpreter(program, PARAMS)

    def step(batch: Batch, *parts: torch.Tensor) -> torch.Tensor:
        inputs = {"token_ids": torch.cat(parts), "positions": batch.positions()}
        return interpreter.step(batch, inputs).outputs["logits"]

    found = [
        step(Batch.of([3], slots=[2]), first[:3]),
        step(Batch.of([1, 4], past=[3, 0], slots=[2, 1]), first[3:4], second[:4]),
        step(Batch.of([1, 4], past=[4, 4], slots=[1, 2], rows=[0, 4]), second[4:], first[4:]),
    ]
    want_first, want_second = logits_of(first), logits_of(second)
    torch.testing.assert_close(found[0], want_first[:3])
    torch.testing.assert_close(found[1], torch.cat([want_first[3:4], want_second[:4]]))
    torch.testing.assert_close(found[2], torch.stack([want_second[4], want_first[7]]))


def test_golden(program: Program) -> None:
    """The printed Program; AUTODEPLOY_UPDATE_GOLDEN=1 writes it anew."""
    text = format_program(program)
    path = GOLDEN / "small_model.txt"
    if os.environ.get("AUTODEPLOY_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert format_program(Program.from_json(program.to_json())) == text


def test_no_copies_and_views_of_the_fused_projection(program: Program) -> None:
    ops = [i.op for i in program.instructions]
    assert "copy" not in ops
    attention = next(i for i in program.instructions if i.op == "attention")
    assert attention.inputs[2].strides == (32, 4, 1)
    assert attention.inputs[2].offset == 24


def test_equal_regions_are_one(program: Program) -> None:
    gates = [i.attrs["region"] for i in program.instructions if i.op == "region" and len(i.inputs) == 2]
    assert len(gates) == 3
    assert len(set(gates)) == 2  # the angle, and the gate of both layers


def test_states_in_order(program: Program) -> None:
    assert [(s.kind, [c.name for c in s.components]) for s in program.states] == [("paged", ["k", "v"])] * 2
    assert [i.states for i in program.instructions if i.op == "attention"] == [[0], [1]]


def test_aliases(program: Program) -> None:
    norms = [i for i in program.instructions if i.op == "add_rms_norm"]
    assert all(i.alias == [(1, 1)] for i in norms)
    assert all(len(i.parts) == 2 for i in norms)
    # k and q are views of one value: neither may be turned in place.
    assert all(not i.alias for i in program.instructions if i.op == "rope")


def test_an_operand_read_twice_is_not_overwritten() -> None:
    def region_of(other: int) -> list[tuple[int, int]]:
        def graph(ids: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            x = torch.ops.autodeploy.embedding(ids, table)
            y = [x, x.view(-1, 2, 8).flip(1).view(-1, 16), x[:, :1]][other]
            return fused(GATE, x, y)

        made = lower(model_of(graph, {"table": PARAMS["table"]}, act=True))
        return next(i.alias for i in made.instructions if i.op == "region")

    assert region_of(0) == []  # the same value as both operands
    assert region_of(1) == [(0, 0)]  # another value
    assert region_of(2) == []  # the same value, broadcast


def test_rows_are_copied_only_where_they_are_not_contiguous() -> None:
    def graph(ids: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = torch.ops.autodeploy.embedding(ids, table)
        straight = torch.ops.autodeploy.linear(x[:, 4:12], w, None)
        crossed = torch.ops.autodeploy.linear(x[:, ::2], w, None)
        return torch.cat([straight, crossed, torch.ops.autodeploy.linear(x[:, ::2], w, None)], -1)

    weight = torch.randn(3, 8)
    made = lower(model_of(graph, {"table": PARAMS["table"], "w": weight}))
    validate(made)
    assert [i.op for i in made.instructions] == ["embedding", "linear", "copy", "linear", "linear", "cat"]


def test_a_computed_weight_is_multiplied_generically() -> None:
    def graph(
        ids: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, w: torch.Tensor, b: torch.Tensor
    ) -> torch.Tensor:
        x = torch.ops.autodeploy.embedding(ids, table)
        return torch.ops.autodeploy.linear(x[None], w.t(), b)[0]

    params = {"table": PARAMS["table"], "w": torch.randn(16, 3), "b": torch.randn(3)}
    made = lower(model_of(graph, params))
    validate(made)
    assert [i.op for i in made.instructions] == ["embedding", "matmul", "region"]
    ids = torch.arange(5)
    torch.testing.assert_close(run_program(made, params, ids)[0], graph(ids, ids, *params.values()))


def test_an_op_of_captured_graphs_is_refused() -> None:
    def graph(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return torch.ops.autodeploy.mask(positions, None, True)

    with pytest.raises(LoweringError, match=r"\[autodeploy.mask.default\] .*transform should have replaced.*model.py"):
        lower(model_of(graph, {}))


def test_a_value_may_be_part_of_another_tensor() -> None:
    """With one token a part of a row is contiguous, and an op that changes nothing passes it on as it is."""
    same = "act | r1 = cast act r0 | r1"

    def graph(ids: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        part = fused(same, torch.ops.autodeploy.embedding(ids, table)[:, 4:12])
        return torch.cat([part[:, 1::2], part[:, ::2]], -1)

    params = {"table": PARAMS["table"]}
    made = lower(model_of(graph, params, act=True))
    for ids in (torch.tensor([3]), torch.tensor([3, 1])):
        torch.testing.assert_close(run_program(made, params, ids)[0], graph(ids, ids, params["table"]))
