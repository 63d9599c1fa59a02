"""The generic tail of the Program: what each op means, in plain PyTorch, and samples for every implementation's test.

Generic ops (docs/program.md, Generic tail) have no torch operator of their own: they are what is left of ATen after
lowering. Here each is a function ``(operands, attrs, shape) -> results``; `shape` is the first result's. Operands and
results of floating type are float32; lengths along the first dim stand for tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .base import random

Tensors = Sequence[torch.Tensor]
Reference = Callable[[Tensors, dict[str, Any], tuple[int, ...]], list[torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class GenericSample:
    """Arguments for testing an implementation. `shape` is that of the first result; a region is JSON as in a Program.

    Operands may be strided or broadcast views: what they look at is the operand's storage.
    """

    name: str
    op: str
    operands: tuple[torch.Tensor, ...]
    attrs: dict[str, Any]
    shape: tuple[int, ...]
    region: dict[str, Any] | None = None

    def expected(self) -> list[torch.Tensor]:
        if self.region is not None:
            return region(self.region, self.operands)
        return REFERENCES[self.op](self.operands, self.attrs, self.shape)


def _reduce(x: torch.Tensor, kind: str, dims: list[int], keepdim: bool) -> torch.Tensor:
    """Reduces a copy in which `dims` come last, joined: one rule for every kind, whatever PyTorch's own takes."""
    axes = sorted(d % x.dim() for d in dims)
    rest = [d for d in range(x.dim()) if d not in axes]
    rows = x.permute(*rest, *axes).reshape(*(x.shape[d] for d in rest), -1)
    match kind:
        case "sum" | "mean" | "prod" | "any" | "all":
            out = getattr(rows, kind)(-1)
        case "max" | "min":
            out = getattr(rows, kind)(-1).values
        case "argmax" | "argmin":  # the first of equal ones
            best = rows.max(-1, keepdim=True).values if kind == "argmax" else rows.min(-1, keepdim=True).values
            out = (rows == best).to(torch.int8).argmax(-1)
        case _:
            raise ValueError(f"[reduce] expected a known kind, found {kind!r}")
    for d in axes if keepdim else []:
        out = out.unsqueeze(d)
    return out


def _ordered(x: torch.Tensor, dim: int, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices in order; equal values keep their order."""
    index = torch.argsort(x, dim=dim, descending=descending, stable=True)
    return x.gather(dim, index), index


def _topk(x: torch.Tensor, k: int, dim: int, largest: bool) -> list[torch.Tensor]:
    values, index = _ordered(x, dim, largest)
    return [values.narrow(dim, 0, k), index.narrow(dim, 0, k)]


def _softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    weights = torch.exp(x - x.amax(dim, keepdim=True))
    return weights / weights.sum(dim, keepdim=True)


def _scatter(operands: Tensors, dim: int, reduce: str) -> torch.Tensor:
    out, index, source = operands[0].clone(), operands[1], operands[2]
    return out.scatter_add_(dim, index, source) if reduce == "add" else out.scatter_(dim, index, source)


def _arange(shape: tuple[int, ...], start: float, step: float) -> torch.Tensor:
    return start + step * torch.arange(math.prod(shape)).reshape(shape)


REFERENCES: dict[str, Reference] = {
    "copy": lambda x, a, shape: [x[0].clone()],
    "cat": lambda x, a, shape: [torch.cat(list(x), a["dim"])],
    "reduce": lambda x, a, shape: [_reduce(x[0], a["kind"], a["dims"], a["keepdim"])],
    "softmax": lambda x, a, shape: [_softmax(x[0], a["dim"])],
    "log_softmax": lambda x, a, shape: [_softmax(x[0], a["dim"]).log()],
    "topk": lambda x, a, shape: _topk(x[0], a["k"], a["dim"], a["largest"]),
    "sort": lambda x, a, shape: list(_ordered(x[0], a["dim"], a["descending"])),
    "cumsum": lambda x, a, shape: [torch.cumsum(x[0], a["dim"])],
    "matmul": lambda x, a, shape: [torch.einsum("...mk,...kn->...mn", x[0], x[1])],
    "gather": lambda x, a, shape: [torch.gather(x[0], a["dim"], x[1])],
    "scatter": lambda x, a, shape: [_scatter(x, a["dim"], a["reduce"])],
    "index_select": lambda x, a, shape: [x[0].index_select(a["dim"], x[1])],
    "arange": lambda x, a, shape: [_arange(shape, a["start"], a["step"])],
    "full": lambda x, a, shape: [torch.full(shape, a["value"])],
}

_UNARY = "neg abs exp log1p expm1 sin cos tanh sigmoid floor ceil round trunc sign square erf reciprocal rsqrt sqrt log"
_BINARY = {"sub": "sub", "mul": "mul", "div": "div", "pow": "pow", "min": "minimum", "max": "maximum", "fmod": "fmod"}
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
_BITS = {"bit_and": "bitwise_and", "bit_or": "bitwise_or", "bit_xor": "bitwise_xor"}
_LOGIC = {"and": "logical_and", "or": "logical_or"}
_DTYPES = {"act": torch.float32, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}


def pointwise(op: str, args: Sequence[torch.Tensor]) -> torch.Tensor:
    """One node of a region on register values: float32, int64 or bool. `cast` and `const` are done by `region`."""
    x = args[0]
    match op:
        case "add":
            return x + args[1]
        case "not":
            return torch.logical_not(x)
        case "where":
            return torch.where(x, args[1], args[2])
        case "silu":
            return x / (1 + torch.exp(-x))
        case "relu":
            return torch.clamp(x, min=0)
        case "gelu":
            return 0.5 * x * (1 + torch.erf(x * 0.5**0.5))
        case "gelu_tanh":
            return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
        case "softplus":
            return torch.where(x > 20, x, torch.log1p(torch.exp(x.clamp(max=20))))
        case "floor_div":
            return torch.floor(x / args[1]) if x.is_floating_point() else torch.div(x, args[1], rounding_mode="floor")
    for table in (_BINARY, _BITS, _LOGIC):
        if op in table:
            return getattr(torch, table[op])(*args)
    if op in _COMPARE or op in _UNARY.split():
        return getattr(torch, op)(*args)
    raise ValueError(f"[region] expected a known op, found {op!r}")


def region(program: dict[str, Any], inputs: Tensors) -> list[torch.Tensor]:
    """Results of a region (JSON as in a Program) for inputs of one shape."""
    registers = list(inputs)
    for node in program["nodes"]:
        dtype = _DTYPES[node["dtype"]]
        if node["op"] == "const":
            registers.append(torch.full(inputs[0].shape, node["value"], dtype=dtype))
            continue
        args = [registers[i] for i in node["args"]]
        value = args[0] if node["op"] == "cast" else pointwise(node["op"], args)
        registers.append(value.to(dtype))
    return [registers[i] for i in program["outputs"]]


def _integers(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def samples() -> Iterator[GenericSample]:
    """Samples of every generic op: odd sizes, one token, ties, strided and broadcast operands, each dtype."""
    yield from _layout_samples()
    yield from _reduction_samples()
    yield from _ordering_samples()
    yield from _indexing_samples()
    yield from _region_samples()


def _one(name: str, op: str, operands: Sequence[torch.Tensor], **attrs: Any) -> GenericSample:
    made = GenericSample(name, op, tuple(operands), attrs, ())
    return dataclasses.replace(made, shape=tuple(made.expected()[0].shape))


def _layout_samples() -> Iterator[GenericSample]:
    x = random(1, 5, 3, 8)
    yield _one("transposed", "copy", [x.transpose(1, 2)])
    yield _one("broadcast", "copy", [x[:, :1].expand(5, 4, 8)])
    yield _one("strided", "copy", [x[..., 1::2]])
    yield _one("integers", "copy", [_integers(1, 9, 7, 3).T[:1].T])
    yield _one("flags", "copy", [(x > 0)[:, 1:]])
    yield _one("last", "cat", [random(2, 4, 3), random(3, 4, 1), random(4, 4, 6)], dim=1)
    yield _one("middle", "cat", [random(2, 4, 3, 5), random(3, 4, 2, 5)], dim=1)
    yield _one("views", "cat", [random(5, 4, 6)[:, ::2], random(6, 4, 6)[:, 3:]], dim=1)
    yield GenericSample("from_zero", "arange", (), {"start": 0, "step": 1}, (7,))
    yield GenericSample("down", "arange", (), {"start": 9, "step": -2}, (5,))
    yield GenericSample("half", "full", (), {"value": 0.5}, (4, 3))
    yield GenericSample("minus_infinity", "full", (), {"value": -math.inf}, (1, 9))
    yield _one("plain", "matmul", [random(1, 3, 4, 5), random(2, 3, 5, 6)])
    yield _one("transposed", "matmul", [random(1, 3, 4, 5), random(2, 3, 6, 5).transpose(1, 2)])
    yield _one("broadcast", "matmul", [random(1, 3, 1, 5), random(2, 1, 5, 7).expand(3, 5, 7)])


def _reduction_samples() -> Iterator[GenericSample]:
    x = random(1, 5, 3, 17)
    x[1, 2, 3] = x[1, 2, 9] = 7.0  # equal extremes: argmax takes the first
    x[2, 0, 4] = x[2, 0, 16] = -7.0
    for kind in ("sum", "mean", "max", "min", "prod"):
        yield _one(f"{kind}_last", "reduce", [x], kind=kind, dims=[2], keepdim=True)
        yield _one(f"{kind}_middle", "reduce", [x], kind=kind, dims=[1], keepdim=False)
        yield _one(f"{kind}_two", "reduce", [x.transpose(1, 2)], kind=kind, dims=[1, 2], keepdim=False)
    for kind in ("argmax", "argmin"):
        yield _one(f"{kind}_last", "reduce", [x], kind=kind, dims=[2], keepdim=False)
        yield _one(f"{kind}_middle", "reduce", [x], kind=kind, dims=[1], keepdim=True)
    for kind in ("any", "all"):
        yield _one(f"{kind}_last", "reduce", [x > -1], kind=kind, dims=[2], keepdim=False)
    yield _one("sum_integers", "reduce", [_integers(1, 50, 4, 6)], kind="sum", dims=[1], keepdim=False)
    for op in ("softmax", "log_softmax"):
        yield _one("last", op, [x * 4], dim=2)
        yield _one("middle", op, [x], dim=1)
        yield _one("masked", op, [torch.where(x[:, :, :5] > 1.5, torch.tensor(-math.inf), x[:, :, :5])], dim=2)
    yield _one("last", "cumsum", [x], dim=2)
    yield _one("middle_integers", "cumsum", [_integers(2, 9, 4, 5, 2)], dim=1)


def _ordering_samples() -> Iterator[GenericSample]:
    ties = _integers(3, 4, 6, 12).float()
    for largest in (True, False):
        yield _one(f"ties_{largest}", "topk", [ties], k=5, dim=1, largest=largest)
        yield _one(f"all_{largest}", "topk", [random(4, 3, 7)], k=7, dim=1, largest=largest)
    yield _one("one", "topk", [random(5, 1, 64)], k=1, dim=1, largest=True)
    yield _one("middle", "topk", [random(6, 3, 9, 4)], k=2, dim=1, largest=True)
    for descending in (True, False):
        yield _one(f"ties_{descending}", "sort", [ties], dim=1, descending=descending)
    yield _one("integers", "sort", [_integers(7, 100, 3, 33)], dim=1, descending=False)


def _indexing_samples() -> Iterator[GenericSample]:
    x = random(1, 5, 8)
    index = _integers(2, 8, 5, 3)
    yield _one("last", "gather", [x, index], dim=1)
    yield _one("middle", "gather", [random(3, 4, 6, 2), _integers(4, 6, 4, 3, 2)], dim=1)
    distinct = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i))[:3] for i in range(5)])
    yield _one("set", "scatter", [x, distinct, random(5, 5, 3)], dim=1, reduce="")
    yield _one("add", "scatter", [x, index, random(6, 5, 3)], dim=1, reduce="add")
    yield _one("flags", "scatter", [x > 0, distinct, torch.ones(5, 3, dtype=torch.bool)], dim=1, reduce="")
    yield _one("columns", "index_select", [x, torch.tensor([7, 0, 0, 3])], dim=1)


def _node(op: str, dtype: str, *args: int) -> dict[str, Any]:
    return {"op": op, "args": list(args), "dtype": dtype}


def _region(
    name: str, inputs: Sequence[torch.Tensor], nodes: list[dict[str, Any]], outputs: Sequence[int]
) -> GenericSample:
    kinds = {torch.float32: "act", torch.int64: "i64", torch.bool: "bool"}
    program = {"inputs": [kinds[x.dtype] for x in inputs], "nodes": nodes, "outputs": list(outputs)}
    return GenericSample(name, "region", tuple(inputs), {}, tuple(inputs[0].shape), program)


def _region_samples() -> Iterator[GenericSample]:
    x, y = random(1, 7, 33), random(2, 7, 33)
    positive = x.abs() + 0.1
    for op in _UNARY.split():
        domain = positive if op in ("rsqrt", "sqrt", "log", "reciprocal", "log1p") else x * 2
        yield _region(op, [domain], [_node(op, "act", 0)], [1])
    for op in ("silu", "relu", "gelu", "gelu_tanh", "softplus"):
        yield _region(op, [x * 8], [_node(op, "act", 0)], [1])
    for op in (*_BINARY, "add", "floor_div"):
        yield _region(op, [positive if op == "pow" else x, y], [_node(op, "act", 0, 1)], [2])
    for op in _COMPARE:
        yield _region(op, [x.round(), y.round()], [_node(op, "bool", 0, 1)], [2])
    for op in (*_BITS, "add", "sub", "mul", "min", "max", "floor_div", "fmod"):
        operands = [_integers(3, 90, 5, 9) - 40, _integers(4, 9, 5, 9) + 1]
        yield _region(f"integers_{op}", operands, [_node(op, "i64", 0, 1)], [2])
    flags = [x > 0, y > 0]
    nodes = [_node("and", "bool", 0, 1), _node("or", "bool", 0, 1), _node("not", "bool", 2)]
    yield _region("flags", flags, nodes, [2, 3, 4])
    yield _region("where", [flags[0], x, y], [_node("where", "act", 0, 1, 2)], [3])
    casts = [_node("cast", "i64", 0), _node("cast", "act", 1), _node("cast", "bool", 1)]
    yield _region("casts", [x * 3], casts, [1, 2, 3])
    constant = {"op": "const", "value": 1.5, "dtype": "act", "args": []}
    yield _region("const", [x], [constant, _node("mul", "act", 0, 1), _node("add", "act", 2, 1)], [2, 3])
    yield _region("broadcast", [x, y[:, :1].expand(7, 33)], [_node("mul", "act", 0, 1)], [2])
    yield _region("transposed", [x, random(3, 33, 7).T], [_node("sub", "act", 0, 1)], [2])
    yield _region("one", [random(4, 1, 1)], [_node("exp", "act", 0)], [1])
    gate = [_node("silu", "act", 0), _node("mul", "act", 2, 1)]
    yield _region("gated", [random(5, 3, 1030), random(6, 3, 1030)], gate, [3])
