"""Small graphs for lowering tests: a function of tokens and parameters becomes a ModelIR, and is run both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.export import Dim, export

from autodeploy.artifact import Program, validate
from autodeploy.interpreter import Interpreter
from autodeploy.ir import ModelIR, ParamInfo
from autodeploy.lowering import lower
from autodeploy.ops import Batch

TRACED_TOKENS = 13


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, params: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        result = self.function(token_ids, positions, *params)
        return result if isinstance(result, tuple) else (result,)


def model_of(function: Callable[..., torch.Tensor], params: dict[str, torch.Tensor]) -> ModelIR:
    """The graph of `function(token_ids [T], positions [T], *params)`, traced in the dtypes of its params."""
    ids = torch.zeros(TRACED_TOKENS, dtype=torch.int64)
    dynamic = {"token_ids": {0: Dim("T", min=2)}, "positions": {0: Dim("T", min=2)}, "params": [None] * len(params)}
    inputs = (ids, ids.clone(), list(params.values()))  # distinct tensors: equal ones would become one input
    program = export(_Module(function), inputs, dynamic_shapes=dynamic, strict=False)
    module = program.graph_module
    names = ["token_ids", "positions", *params]
    count = 0
    for node in list(module.graph.nodes):
        node.meta["source"] = f"model.py:{len(node.name)} Model.forward"
        if node.op == "placeholder":
            node.target = names[count]
            count += 1
        elif "assert" in str(node.target):
            module.graph.erase_node(node)
    dtypes = {torch.bfloat16: "act", torch.float32: "f32", torch.int64: "i64", torch.bool: "bool"}
    infos = {name: ParamInfo.whole(name, tuple(p.shape), dtypes[p.dtype]) for name, p in params.items()}
    outputs = tuple(f"out{i}" for i in range(len(module.graph.output_node().args[0])))
    return ModelIR(module, infos, {}, outputs)


def run_program(
    program: Program, params: dict[str, torch.Tensor], token_ids: torch.Tensor, use_parts: bool = False
) -> list[torch.Tensor]:
    """Outputs of one step over one sequence."""
    batch = Batch.of([len(token_ids)])
    interpreter = Interpreter(program, params, use_parts=use_parts)
    result = interpreter.step(batch, {"token_ids": token_ids, "positions": batch.positions()})
    return list(result.outputs.values())


def check(
    function: Callable[..., torch.Tensor], params: dict[str, torch.Tensor], tokens: Sequence[int] = (7, 2, 1)
) -> Program:
    """Lowers `function`, validates the Program, and compares it with the function at several lengths."""
    program = lower(model_of(function, params))
    validate(program)
    for count in tokens:
        ids = torch.randint(0, 8, (count,), generator=torch.Generator().manual_seed(count))
        expected = function(ids, torch.arange(count), *params.values())
        expected = list(expected) if isinstance(expected, tuple) else [expected]
        for want, found in zip(expected, run_program(program, params, ids), strict=True):
            assert found.shape == want.shape
            torch.testing.assert_close(found, want.to(found.dtype))
    return program
