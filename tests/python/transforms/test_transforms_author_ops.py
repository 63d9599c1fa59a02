"""Operators of a model's author in the proof of the token axis and in the Program."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transform_graphs import capture

from autodeploy.artifact import validate
from autodeploy.custom_ops import declared_op, register_op
from autodeploy.interpreter.author_ops import run_author_op
from autodeploy.lowering import lower
from autodeploy.transforms import TransformError, run_pipeline


@torch.library.custom_op("authors_test::scaled", mutates_args=())
def scaled(x: torch.Tensor, by: torch.Tensor, power: int, extra: torch.Tensor | None = None) -> torch.Tensor:
    y = x * by**power
    return y if extra is None else y + extra


@scaled.register_fake
def _(x, by, power, extra=None):
    return torch.empty_like(x)


@torch.library.custom_op("authors_test::pairs", mutates_args=())
def pairs(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT


@pairs.register_fake
def _(x):
    return x.new_empty(*x.shape[:-1], x.shape[-2])


@torch.library.custom_op("authors_test::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@unknown.register_fake
def _(x):
    return torch.empty_like(x)


register_op("authors_test::scaled", library="libscaled.so")
register_op("authors_test::pairs")


class Model(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op
        self.embed, self.by, self.head = nn.Embedding(16, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 16)

    def forward(self, input_ids, position_ids):
        return self.head(self.op(self.embed(input_ids), self.by))


def test_a_declared_operator_is_one_instruction():
    ir = capture(Model(lambda x, by: scaled(x, by, 3)))
    run_pipeline(ir)
    (record,) = [r for r in ir.metadata["explain"] if r["kind"] == "author"]
    assert (record["op"], record["via"]) == ("authors_test::scaled", "author")
    program = lower(ir)
    validate(program)
    (call,) = [i for i in program.instructions if "::" in i.op]
    assert (call.op, call.attrs, call.states) == ("authors_test::scaled", {"power": 3}, [])
    assert call.inputs[2] is None
    assert program.metadata["author_ops"] == {"authors_test::scaled": {"library": "libscaled.so"}}
    x, by = torch.randn(1, 5, 8), torch.randn(8)
    (y,) = run_author_op(call, [x, by, None])
    assert torch.equal(y, x * by**3)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (lambda x, by: unknown(x), r"authors_test::unknown.*declare it.*register_op"),
        (lambda x, by: x * pairs(x).mean(-1, keepdim=True), "rows of its operands in one dim"),
        (lambda x, by: scaled(x.mT.contiguous().mT, by, x.shape[1]), "number of tokens"),
    ],
)
def test_what_is_refused(op, reason):
    with pytest.raises(TransformError, match=reason):
        run_pipeline(capture(Model(op)))


def test_declarations():
    assert declared_op("authors_test::nothing") is None
    for name in ("gated", "aten::add", "autodeploy::linear", "a::b::c", ""):
        with pytest.raises(ValueError, match="expected a name such as"):
            register_op(name)
    with pytest.raises(ValueError, match="its path is the user's"):
        register_op("authors_test::scaled", library="/lib/libscaled.so")
