"""expert_linear: each row goes through the matrix of its own expert (the two products of a mixture of experts)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .base import Batch, Op, Sample, StateStore, random, register


@register
class ExpertLinear(Op):
    """x [S/d, K], weight [E, N, K], ids i64 [S], bias [E, N] or None -> [S, N].

    Row s is weight[ids[s]] x[s // d] + bias[ids[s]], with d = `x_repeat`; ids outside [0, E) give zeros.
    """

    name = "expert_linear"
    schema = "(Tensor x, Tensor weight, Tensor ids, Tensor? bias, int x_repeat=1) -> Tensor"
    weight_operands = ("weight",)
    fixed_operands = ("weight", "bias")

    def fake(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        bias: torch.Tensor | None,
        x_repeat: int = 1,
    ) -> torch.Tensor:
        return x.new_empty((ids.shape[0], weight.shape[1]))

    def reference(
        self,
        batch: Batch,
        states: Sequence[StateStore],
        x: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        bias: torch.Tensor | None,
        x_repeat: int,
    ) -> torch.Tensor:
        if x.shape[0] * x_repeat != ids.shape[0]:
            raise ValueError(f"[expert_linear] expected {ids.shape[0]} ids / {x_repeat} rows of x, found {x.shape[0]}")
        out = x.new_zeros(ids.shape[0], weight.shape[1])
        for expert in range(weight.shape[0]):
            rows = torch.nonzero(ids == expert)[:, 0]
            if rows.numel():
                product = x[rows // x_repeat].float() @ weight[expert].float().T
                if bias is not None:
                    product = product + bias[expert].float()
                out[rows] = product.to(x.dtype)
        return out

    def samples(self) -> Iterator[Sample]:
        cases = [(1, 1, 32, 3, 1), (5, 2, 64, 33, 8), (13, 4, 96, 48, 5), (40, 1, 32, 17, 3)]
        for i, (tokens, per_token, inner, outer, experts) in enumerate(cases):
            generator = torch.Generator().manual_seed(i)
            ids = torch.randint(0, experts, (tokens * per_token,), generator=generator)
            weight = random(20 + i, experts, outer, inner, scale=inner**-0.5)
            operands = {"x": random(i, tokens, inner), "weight": weight, "ids": ids, "bias": None}
            name = f"{tokens}x{per_token}_{inner}x{outer}_e{experts}"
            yield Sample.one(name, operands, x_repeat=per_token)
            wide = {**operands, "x": random(40 + i, tokens * per_token, inner), "bias": random(60 + i, experts, outer)}
            yield Sample.one(name + "_own_rows_bias", wide, x_repeat=1)
        weight = random(3, 4, 5, 32)
        outside = {"x": random(1, 3, 32), "weight": weight, "ids": torch.tensor([0, 4, -1, 3, 3, 100]), "bias": None}
        yield Sample.one("ids_outside", outside, x_repeat=2)
        same = {**outside, "ids": torch.tensor([2, 2, 2, 2, 2, 2]), "bias": random(5, 4, 5)}
        yield Sample.one("one_expert", same, x_repeat=2)
