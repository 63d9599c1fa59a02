"""Every op: samples run, shapes follow the shape rule, optional operands and attributes are declared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from autodeploy.ops import OPS, Batch, Memory, running, schedule

PROGRAM_PAGE = Path(__file__).parents[3] / "docs" / "program.md"


@pytest.mark.parametrize("name", OPS)
def test_samples_follow_the_shape_rule(name):
    op = OPS[name]
    names = set()
    for sample in op.samples():
        assert sample.name not in names, f"two samples of {name} are called {sample.name}"
        names.add(sample.name)
        assert set(sample.attrs) == set(op.attributes)
        for step, found in zip(sample.steps, op.expected(sample), strict=True):
            assert set(step.operands) == set(op.operands)
            if name != "select_rows":  # its rows are known from the batch alone
                args = [step.operands[n] for n in op.operands] + [sample.attrs[a] for a in op.attributes]
                fake = op.torch_op(*[a.to("meta") if isinstance(a, torch.Tensor) else a for a in args])
                fake = fake if isinstance(fake, tuple) else (fake,)
                assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in fake], sample.name
            for x in found:
                assert not x.is_floating_point() or torch.isfinite(x).all(), f"{name}: {sample.name}"
    assert names


@pytest.mark.parametrize("name", OPS)
def test_samples_are_the_same_every_time(name):
    first, again = list(OPS[name].samples()), list(OPS[name].samples())
    for a, b in zip(first, again, strict=True):
        for x, y in zip(a.steps, b.steps, strict=True):
            for key, value in x.operands.items():
                assert value is None or torch.equal(value, y.operands[key])


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.in_program])
def test_operands_are_those_of_the_program_page(name):
    row = re.search(rf"^\| `{name}`.*$", PROGRAM_PAGE.read_text(), re.MULTILINE)
    assert row is not None
    cells = [c.strip() for c in row[0].strip("|").split("|")]
    operands = [re.match(r"([a-z_]+\??(?: and [a-z]+)?)", part.strip())[1] for part in split_outside_brackets(cells[1])]
    op = OPS[name]
    declared = [f"{n}?" if n in op.optional else n for n in op.operands]
    assert operands == declared
    weights = {m[1] for m in re.finditer(r"(\w+) \[[^\]]*\] \*weight\*", cells[1])}
    assert weights == set(op.weight_operands)
    for attribute in op.attributes:
        assert f"`{attribute}`" in row[0], f"{name}.{attribute} is not on the page"


def split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def test_bind_fills_defaults_and_refuses_missing_ones():
    op = OPS["rms_norm"]
    x = torch.ones(1, 2)
    assert op.bind((x,), {"eps": 1e-5}) == {"x": x, "weight": None, "eps": 1e-5, "offset": 0.0}
    with pytest.raises(ValueError, match=r"\[rms_norm\] expected argument eps"):
        op.bind((x, None))


def test_eager_call_is_one_fresh_sequence_and_a_context_changes_that():
    x, w = torch.randn(6, 3), torch.randn(3, 4)
    conv = torch.ops.autodeploy.causal_conv1d
    alone = [conv(part, w, None, "") for part in x.split([4, 2])]
    with running(Batch.of([4, 2])):
        joined = conv(x, w, None, "")
    assert torch.equal(joined, torch.cat(alone))
    assert not torch.equal(joined, conv(x, w, None, ""))
    memory, parts = Memory(), []
    for batch, part in zip(schedule({1: 4}, {1: 2}), x.split([4, 2]), strict=True):
        with running(batch, memory):
            parts.append(conv(part, w, None, ""))
    torch.testing.assert_close(torch.cat(parts), conv(x, w, None, ""))


def test_memory_tells_another_graph():
    x, w = torch.randn(2, 3), torch.randn(3, 4)
    with running(Batch.of([2])) as memory:
        torch.ops.autodeploy.causal_conv1d(x, w, None, "")
    q = torch.randn(1, 1, 4)
    with running(Batch.of([1], past=[2]), memory), pytest.raises(ValueError, match="to be causal_conv1d"):
        torch.ops.autodeploy.attention(q, q, q, None, None, None, None, 1.0)


def test_a_missing_state_is_an_error_and_a_stale_one_is_not_read():
    op = OPS["causal_conv1d"]
    x, w = torch.randn(2, 3), torch.randn(3, 4)
    states = op.make_states(x, w, None, "")
    with pytest.raises(ValueError, match="expected a state in slot 1"):
        op.run(Batch.of([2], past=[5]), states, [x, w, None], {"activation": ""})
    (first,) = op.run(Batch.of([2]), states, [x, w, None], {"activation": ""})
    (again,) = op.run(Batch.of([2]), states, [x, w, None], {"activation": ""})
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "bad", [{"lengths": [0]}, {"lengths": [2], "past": [-1]}, {"lengths": [1, 1], "slots": [3, 3]}]
)
def test_batches_are_checked(bad):
    with pytest.raises(ValueError, match=r"\[batch\]"):
        Batch.of(**bad)


def test_batch_geometry():
    (_, batch) = schedule({3: 4, 1: 2}, {1: 1, 5: 3})
    assert batch.query_start == (0, 1, 4)
    assert batch.kv_len == (3, 3)
    assert batch.has_state == (True, False)
    assert batch.slots == (1, 5)
    assert batch.num_decodes == 1
    assert batch.positions().tolist() == [2, 0, 1, 2]
