"""Small graphs for lowering tests: a function of tokens and parameters becomes a ModelIR, and is run both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.export import Dim, export

from autodeploy.artifact import Program, validate
from autodeploy.interpreter import Interpreter
from autodeploy.ir import ModelIR, ParamInfo
from autodeploy.ir.region import fused_region, parse_region
from autodeploy.lowering import lower
from autodeploy.ops import Batch, StateDecl, op_of

TRACED_TOKENS = 13


# Regions are no torch operators; this one stands for them while a test's function is traced.
@torch.library.custom_op("autodeploy_test::fused", mutates_args=())
def _fused(inputs: list[torch.Tensor], program: str) -> torch.Tensor:
    return fused_region(*inputs, program=program).clone()


@_fused.register_fake
def _(inputs: list[torch.Tensor], program: str) -> torch.Tensor:
    region = parse_region(program)
    dtype = [*region.inputs, *(n.dtype for n in region.nodes)][region.outputs[0]]
    dtypes = {"act": torch.bfloat16, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
    like = torch.broadcast_tensors(*inputs)[0]
    return like.new_empty(like.shape, dtype=dtypes[dtype])


def fused(program: str, *inputs: torch.Tensor) -> torch.Tensor:
    """A region of one result in a function that `model_of` traces."""
    return torch.ops.autodeploy_test.fused(list(inputs), program)


SCALED = "f32, act | r2 = mul f32 r0 r1 | r2"
COS = "f32 | r1 = cos act r0 | r1"
SIN = "f32 | r1 = sin act r0 | r1"
GATE = "act, act | r2 = silu act r0; r3 = mul act r2 r1 | r3"


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, params: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        result = self.function(token_ids, positions, *params)
        return result if isinstance(result, tuple) else (result,)


def model_of(function: Callable[..., torch.Tensor], params: dict[str, torch.Tensor], act: bool = False) -> ModelIR:
    """The graph of `function(token_ids [T], positions [T], *params)`, traced in the dtypes of its params.

    With `act`, float32 params are traced in bfloat16, which stands for the Program's `act`.
    """
    if act:
        params = {k: p.bfloat16() if p.dtype == torch.float32 else p for k, p in params.items()}
    ids = torch.zeros(TRACED_TOKENS, dtype=torch.int64)
    dynamic = {"token_ids": {0: Dim("T", min=2)}, "positions": {0: Dim("T", min=2)}, "params": [None] * len(params)}
    inputs = (ids, ids.clone(), list(params.values()))  # distinct tensors: equal ones would become one input
    program = export(_Module(function), inputs, dynamic_shapes=dynamic, strict=False)
    module = program.graph_module
    module.graph.eliminate_dead_code()
    names = ["token_ids", "positions", *params]
    count = 0
    for node in list(module.graph.nodes):
        node.meta["source"] = f"model.py:{len(node.name)} Model.forward"
        if node.op == "placeholder":
            node.target = names[count]
            count += 1
        elif "assert" in str(node.target):
            module.graph.erase_node(node)
        elif node.target is torch.ops.autodeploy_test.fused.default:
            node.target, node.args, node.kwargs = fused_region, tuple(node.args[0]), {"program": node.args[1]}
    dtypes = {torch.bfloat16: "act", torch.float32: "f32", torch.int64: "i64", torch.bool: "bool"}
    states = _give_states(module)
    infos = {name: ParamInfo.whole(name, tuple(p.shape), dtypes[p.dtype]) for name, p in params.items()}
    count = len(module.graph.output_node().args[0])
    outputs = ("logits",) if count == 1 else tuple(f"out{i}" for i in range(count))
    return ModelIR(module, infos, {}, outputs, states=states)


def _give_states(module: torch.fx.GraphModule) -> dict[str, StateDecl]:
    """A state for each mixer, as a transform would give it."""
    states: dict[str, StateDecl] = {}
    for node in module.graph.nodes:
        op = op_of(node.target)
        if op is not None:
            args = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            decls = op.state_decl(*op.bind(*args).values())
            node.meta["states"] = tuple(f"{node.name}.{i}" for i in range(len(decls)))
            states |= dict(zip(node.meta["states"], decls, strict=True))
    return states


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


def small_params(layers: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Parameters of `small_model`: 16 channels, 4 query heads and 2 key heads of 4 channels, a vocabulary of 32."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.5

    params = {"table": random(32, 16), "frequencies": random(2)}
    for i in range(layers):
        params |= {f"{i}.norm": random(16), f"{i}.qkv": random(32, 16), f"{i}.out": random(16, 16)}
        params |= {f"{i}.norm2": random(16), f"{i}.up": random(24, 16), f"{i}.down": random(16, 12)}
    return params | {"norm": random(16)}


def small_model(token_ids: torch.Tensor, positions: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
    """A transformer made of canonical ops, regions and views, as capture and the transforms leave it."""
    ops = torch.ops.autodeploy
    table, frequencies, *layers, norm = params
    x = ops.embedding(token_ids, table)[None]
    angle = fused(SCALED, positions[:, None].to(torch.float32), frequencies)
    cos, sin = fused(COS, angle), fused(SIN, angle)
    residual = x
    for i in range(0, len(layers), 6):
        w1, qkv, out, w2, up, down = layers[i : i + 6]
        y = ops.rms_norm(x, w1, 1e-5) if i == 0 else None
        if y is None:
            y, residual = ops.add_rms_norm(x, residual, w1, 1e-5)
        q, k, v = ops.linear(y, qkv, None).split([16, 8, 8], -1)
        q, k, v = (z.view(1, -1, z.shape[-1] // 4, 4).transpose(1, 2) for z in (q, k, v))
        q, k = (ops.rope(z.transpose(1, 2)[0], cos, sin) for z in (q, k))
        attended = ops.attention(q, k, v.transpose(1, 2)[0], None, None, None, None, 0.5)
        x = ops.linear(attended.reshape(1, -1, 16), out, None)
        y, residual = ops.add_rms_norm(x, residual, w2, 1e-5)
        gate, lifted = ops.linear(y, up, None).chunk(2, -1)
        x = ops.linear(fused(GATE, gate, lifted), down, None)
    y, _ = ops.add_rms_norm(x, residual, norm, 1e-5)
    return ops.linear(ops.select_rows(y[0]), table, None)
