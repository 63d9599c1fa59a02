"""Every view op and generic op: lowered, validated, interpreted, and compared with torch at several lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowering_graphs import check, model_of

import autodeploy.ops  # noqa: F401
from autodeploy.lowering import LoweringError, lower

TABLE = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 0, 2], [2, 2, 0], [0, 1, 1], [1, 2, 0], [0, 0, 0], [2, 1, 0], [1, 1, 1], [2, 0, 1]])


def tokens(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return torch.ops.autodeploy.embedding(ids, table)


def picks(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """i64 [T, 3] with entries below 3."""
    return table[ids]


# name -> function of x [T, 24] (float32) and i [T, 3] (i64 below 3).
CASES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "heads": lambda x, i: x.unsqueeze(0).view(1, -1, 4, 6).transpose(1, 2).transpose(1, 2).reshape(-1, 24),
    "heads_copy": lambda x, i: x.view(-1, 4, 6).transpose(1, 2).reshape(-1, 24),
    "flatten_heads": lambda x, i: x.view(-1, 4, 6).flatten(1),
    "slice_step": lambda x, i: x[:, 1:20:3],
    "select": lambda x, i: x.view(-1, 4, 6)[:, -1],
    "split": lambda x, i: x.split([8, 10, 6], -1)[1].contiguous(),
    "chunk": lambda x, i: torch.cat(x.chunk(5, -1)[::-1], -1),
    "unbind": lambda x, i: torch.stack(x.view(-1, 4, 6).unbind(1)[::-1], 1),
    "expand": lambda x, i: x.view(-1, 4, 1, 6).expand(-1, 4, 3, 6).reshape(-1, 12, 6),
    "unfold": lambda x, i: x.unfold(-1, 5, 3).contiguous(),
    "movedim": lambda x, i: x.view(-1, 2, 3, 4).movedim(1, -1).clone(),
    "permute": lambda x, i: x.view(-1, 2, 3, 4).permute(0, 3, 1, 2).clone(),
    "squeeze": lambda x, i: x.view(-1, 1, 24, 1).squeeze(1).squeeze(-1).clone(),
    "diagonal": lambda x, i: x[:, :16].view(-1, 4, 4).diagonal(0, 1, 2).clone(),
    "swapaxes_mT": lambda x, i: x.view(-1, 4, 6).mT.swapaxes(1, 2).clone(),
    "cat": lambda x, i: torch.cat([x[:, 12:], x[:, :12], x[:, ::2]], -1),
    "cat_batched": lambda x, i: torch.cat([x[None, :, 12:], x[None, :, :12]], -1),
    "cat_negated_empty": lambda x, i: torch.cat([x[:, :0], x], 1),
    "stack": lambda x, i: torch.stack([x, x.flip(-1)], 1),
    "sum": lambda x, i: x.view(-1, 4, 6).sum(1),
    "sum_keep": lambda x, i: x.view(1, -1, 4, 6).sum((-1, 2), keepdim=True),
    "sum_ints": lambda x, i: i.sum(-1),
    "mean": lambda x, i: x.mean(-1, keepdim=True),
    "amax": lambda x, i: x.view(-1, 4, 6).amax((1, 2)),
    "amin": lambda x, i: x.amin(-1),
    "prod": lambda x, i: x.view(-1, 4, 6).prod(1),
    "any_of_ints": lambda x, i: i.any(-1),
    "all_keep": lambda x, i: i.all(-1, keepdim=True),
    "argmax": lambda x, i: x.argmax(-1),
    "argmin_ties": lambda x, i: i.argmin(-1, keepdim=True),
    "max_dim": lambda x, i: x.view(-1, 4, 6).max(1).values,
    "max_dim_indices": lambda x, i: x.max(-1, keepdim=True).indices,
    "min_dim": lambda x, i: x.min(-1)[0],
    "softmax": lambda x, i: x.view(1, -1, 4, 6).softmax(2),
    "softmax_cast": lambda x, i: i.softmax(-1, dtype=torch.float32),
    "log_softmax": lambda x, i: x.log_softmax(-1),
    "topk": lambda x, i: torch.cat(list(x.topk(3, -1)), -1),
    "topk_smallest": lambda x, i: x.view(1, -1, 24).topk(2, -1, largest=False)[1],
    "sort": lambda x, i: x.sort(-1, descending=True)[0],
    "sort_stable_ints": lambda x, i: i.sort(stable=True, dim=-1)[1],
    "argsort": lambda x, i: x.argsort(-1),
    "cumsum": lambda x, i: x.view(-1, 4, 6).cumsum(1),
    "cumsum_ints": lambda x, i: i.cumsum(-1),
    "matmul": lambda x, i: torch.matmul(x.view(-1, 4, 6), x.view(-1, 6, 4)),
    "matmul_broadcast": lambda x, i: torch.matmul(x.view(-1, 1, 4, 6), x[:, :12].view(-1, 2, 6, 1)),
    "bmm_transposed": lambda x, i: torch.bmm(x.view(-1, 4, 6), x.view(-1, 4, 6).transpose(1, 2)),
    "gather": lambda x, i: x.gather(-1, i),
    "gather_part": lambda x, i: x.view(-1, 4, 6).gather(2, i.view(-1, 3, 1)),
    "scatter": lambda x, i: x.scatter(-1, i[:, :1], x[:, 5:6]),
    "scatter_value": lambda x, i: torch.zeros_like(x).scatter(-1, i[:, :1], 1.5),
    "scatter_add": lambda x, i: x.scatter_add(-1, i, x[:, 4:7]),
    "index_select": lambda x, i: x.index_select(-1, i.new_ones(2)),
    "index_one": lambda x, i: x[:, torch.arange(3, 9)],
    "flip": lambda x, i: x.view(-1, 4, 6).flip(1, 2),
    "roll": lambda x, i: x.roll(5, -1),
    "repeat": lambda x, i: x.view(-1, 4, 6).repeat(1, 2, 3),
    "repeat_interleave": lambda x, i: x.view(-1, 4, 6).repeat_interleave(3, 1),
    "pad": lambda x, i: torch.nn.functional.pad(x.view(-1, 4, 6), (2, 1, -1, 3), value=0.5),
    "full": lambda x, i: torch.cat([x, x.new_full((x.shape[0], 2), 3.0)], -1),
    "ones": lambda x, i: torch.cat([torch.zeros_like(x), x.new_ones(x.shape[0], 1)], -1),
    "arange": lambda x, i: x.index_select(1, torch.arange(20, 4, -3)),
    "cast": lambda x, i: i.to(torch.float32),
    "contiguous": lambda x, i: x.view(-1, 4, 6).transpose(1, 2).contiguous(),
    "dropout": lambda x, i: torch.nn.functional.dropout(x, 0.5, False),
}


@pytest.mark.parametrize("name", CASES)
def test_op(name: str) -> None:
    def function(
        token_ids: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        return CASES[name](tokens(token_ids, table), picks(token_ids, ids))

    check(function, {"table": TABLE, "ids": IDS})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum(0), r"\[aten\.sum\.dim_IntList\] expected to reduce within a token, found the dimension T"),
        (lambda x: x.cumsum(0), "expected to add up within a token"),
        (lambda x: x[-1:], "expected all of a dimension of size T"),
        (lambda x: x[0], "expected an index into a dimension of size T"),
        (lambda x: torch.arange(x.shape[0]), "expected positions from the step's input"),
        (lambda x: x.matmul(x.T), r"found T\*T elements: tokens pair up"),
        (lambda x: x.reshape(-1).argmax(), "expected a dimension, found argmax over all"),
        (lambda x: torch.linalg.svdvals(x), "expected an op that a Program has"),
        (lambda x: x.double().sum(-1), "found torch.float64"),
        (lambda x: torch.nn.functional.dropout(x, 0.5, True), "found dropout that is switched on"),
    ],
)
def test_refusals_name_the_op_and_the_line(
    function: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    model = model_of(lambda ids, positions, table: function(tokens(ids, table)), {"table": TABLE})
    with pytest.raises(LoweringError, match=message) as caught:
        lower(model)
    assert "model.py:" in str(caught.value)
