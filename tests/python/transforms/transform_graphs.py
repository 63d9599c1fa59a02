"""Graphs for transform tests: plain modules captured by torch.export, run in float32 before and after."""

from __future__ import annotations

import copy

import torch
from torch.fx import GraphModule

from autodeploy.capture.functionalize import functionalize
from autodeploy.capture.sizes import fold_sizes
from autodeploy.capture.tidy import tidy
from autodeploy.ir import DTYPES, ConstantInfo, ModelIR, ParamInfo
from autodeploy.ir.retype import retyped
from autodeploy.ops import Batch, Memory, running
from autodeploy.transforms.base import Transform
from autodeploy.transforms.nodes import op_name

EXAMPLE_TOKENS = 37


class _OneSequence(torch.nn.Module):
    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.module(token_ids[None], positions[None]).squeeze(0)


def capture(module: torch.nn.Module, longest: int | None = None) -> ModelIR:
    """A ModelIR of forward(input_ids [1, T], position_ids [1, T]) -> [1, T, V], as capture leaves one."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)
    tokens = torch.export.Dim("T", min=16, max=longest)
    example = (torch.zeros(EXAMPLE_TOKENS, dtype=torch.int64), torch.arange(EXAMPLE_TOKENS))
    with torch.no_grad():
        program = torch.export.export(
            _OneSequence(module),
            example,
            dynamic_shapes={"token_ids": {0: tokens}, "positions": {0: tokens}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return _to_ir(program)


def _to_ir(program: torch.export.ExportedProgram) -> ModelIR:
    signature = program.graph_signature
    for node in list(program.graph_module.graph.nodes):
        if node.target is torch.ops.aten.detach_.default:  # of tensors that the module's code made
            node.replace_all_uses_with(node.args[0])
            program.graph_module.graph.erase_node(node)
            continue
        trace = node.meta.get("stack_trace") or ""
        lines = [line for line in trace.splitlines() if line.strip().startswith("File")]
        node.meta["source"] = _line(lines[-1]) if lines else "export"
    graph = functionalize(program.graph_module.graph)
    params: dict[str, ParamInfo] = {}
    constants: dict[str, ConstantInfo] = {}
    for node in list(graph.nodes):
        if node.op != "placeholder":
            continue
        key = node.target
        if key in signature.inputs_to_parameters:
            name = signature.inputs_to_parameters[key].removeprefix("module.")
            value = node.meta["val"]
            params[key] = ParamInfo.whole(name, tuple(value.shape), DTYPES[value.dtype])
        elif key in signature.inputs_to_buffers:
            name = signature.inputs_to_buffers[key]
            value = program.state_dict.get(name, program.constants.get(name))
            constants[key] = ConstantInfo(name, DTYPES[value.dtype], value)
        elif key in signature.inputs_to_lifted_tensor_constants:
            value = program.constants[signature.inputs_to_lifted_tensor_constants[key]]
            constants[key] = ConstantInfo(key, DTYPES[value.dtype], value)
    order = ["token_ids", "positions", *params, *constants]
    holders = {n.target: n for n in graph.nodes if n.op == "placeholder"}
    for name in reversed(order):
        graph._root.append(holders[name])
    tidy(graph)
    fold_sizes(graph, holders["token_ids"])
    module = GraphModule(torch.nn.Module(), graph)
    names = {p.fqns[0]: p.shape for p in params.values()}
    return ModelIR(module, params, constants, parameter_names=names)


def _line(text: str) -> str:
    """`file.py:12 function` of a line of a traceback."""
    _, path, rest = text.split('"', 2)
    number, function = rest.removeprefix(", line ").split(", in ")
    return f"{path.rsplit('/', 1)[-1]}:{number} {function}"


def random_weights(ir: ModelIR, seed: int = 0) -> dict[str, torch.Tensor]:
    """float32 values of the captured model's parameters, by their names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.5)
        for name, shape in sorted(ir.parameter_names.items())
    }


_UNARY = {"neg": torch.neg, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "reciprocal": torch.reciprocal,
          "abs": torch.abs, "square": torch.square, "log1p": torch.log1p, "expm1": torch.expm1}  # fmt: skip
_BINARY = {"add": torch.add, "sub": torch.sub, "rsub": lambda a, b: b - a, "mul": torch.mul, "div": torch.div,
           "rdiv": lambda a, b: b / a, "pow": torch.pow}  # fmt: skip


def evaluate(ir: ModelIR, expr: dict, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The value of a weight expression."""
    at = lambda x: evaluate(ir, x, weights)  # noqa: E731
    match expr["op"]:
        case "tensor":
            return weights[expr["name"]]
        case "constant":
            return ir.constants[expr["name"]].value
        case "slice":
            where = [slice(None)] * at(expr["x"]).dim()
            where[expr["dim"]] = slice(expr["start"], expr["stop"], expr["step"])
            return at(expr["x"])[tuple(where)]
        case "cat":
            return torch.cat([at(x) for x in expr["xs"]], expr["dim"])
        case "stack":
            return torch.stack([at(x) for x in expr["xs"]], expr["dim"])
        case "permute":
            return at(expr["x"]).permute(expr["dims"])
        case "reshape":
            return at(expr["x"]).reshape(expr["shape"])
        case "unary":
            return _UNARY[expr["f"]](at(expr["x"]))
        case "binary":
            y = expr["y"]
            return _BINARY[expr["f"]](at(expr["x"]), at(y) if isinstance(y, dict) else torch.tensor(y))
    raise AssertionError(expr)


def run(ir: ModelIR, weights: dict[str, torch.Tensor], token_ids: torch.Tensor, positions: torch.Tensor | None = None,
        batch: Batch | None = None, memory: Memory | None = None) -> torch.Tensor:
    """The graph's output in float32: literal bfloat16 in it is read as float32."""
    module = retyped(ir, torch.float32)
    values = {
        key: torch.cat([evaluate(ir, s.expr, weights) for s in info.segments]) if len(info.segments) > 1
        else evaluate(ir, info.expr, weights)
        for key, info in ir.params.items()
    }
    for key, info in ir.params.items():
        assert tuple(values[key].shape) == tuple(info.shape), (key, values[key].shape, info.shape)
    positions = torch.arange(len(token_ids)) if positions is None else positions
    with torch.no_grad(), running(batch or Batch.of([len(token_ids)]), memory):
        feed = {"token_ids": token_ids, "positions": positions, **values}
        feed.update((key, constant.value) for key, constant in ir.constants.items())
        return module(*[feed[n.target] for n in module.graph.nodes if n.op == "placeholder"])[0]


def ops(ir: ModelIR) -> list[str]:
    """Names of the calls in a graph, in order."""
    return [op_name(n) for n in ir.graph.nodes if n.op == "call_function"]


def count(ir: ModelIR, name: str) -> int:
    return ops(ir).count(name)


class _Blocks(torch.nn.Module):
    """Several functions of one embedding, each captured by itself: x [1, T, W] (and positions [1, T]) -> [1, T, V]."""

    def __init__(self, function, width: int, parameters: dict[str, tuple[int, ...]]):
        super().__init__()
        self.function = function
        self.table = torch.nn.Embedding(16, width)
        self.p = torch.nn.ParameterDict({k: torch.nn.Parameter(torch.zeros(s)) for k, s in parameters.items()})

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.function(self.table(input_ids), position_ids, self.p)


def capture_function(function, width: int = 8, **parameters: tuple[int, ...]) -> ModelIR:
    """The graph of function(x [1, T, width], positions [1, T], parameters) -> [1, T, ...]."""
    return capture(_Blocks(function, width, parameters))


def check(ir: ModelIR, *transforms: Transform, tokens: int = 11, vocab: int = 16, again: bool = True,
          modified: bool | None = None) -> ModelIR:
    """Runs transforms; the output must stay what it was, and a second run must change nothing."""
    weights = random_weights(ir)
    ids = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(5))
    before = run(ir, weights, ids)
    for transform in transforms:
        changed = transform.run(ir)
        ir.graph.lint()
        assert modified is None or changed == modified, f"{transform.name} said {changed}"
        after = run(ir, weights, ids)
        error = (after - before).abs()
        scale = before.abs().max().clamp(min=1e-6)
        if not torch.allclose(after / scale, before / scale, atol=2e-5):
            where = tuple(int(i) for i in torch.nonzero(error == error.max())[0])
            raise AssertionError(f"{transform.name}: at {where} expected {before[where]}, found {after[where]}")
    if again:
        for transform in transforms[-1:]:
            text = str(ir.graph)
            assert not transform.run(ir), f"{transform.name} changed the graph a second time"
            assert str(ir.graph) == text
    return ir
