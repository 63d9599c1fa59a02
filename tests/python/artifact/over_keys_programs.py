"""Hand-written bodies of `over_keys`, with what each means in plain PyTorch, and Programs around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from autodeploy.artifact import (
    Body,
    BodyInput,
    Instruction,
    Operand,
    Param,
    Program,
    Region,
    RegionNode,
    State,
    StateComponent,
    Value,
    validate,
)
from autodeploy.artifact.dims import Dim, eval_dim, format_dim, parse_dim
from autodeploy.artifact.op_rules import outer_shape

Tensor = torch.Tensor
Tensors = dict[str, Tensor]


@dataclass
class BodyBuilder:
    """A body under construction; regions go to the program's list."""

    block: int = 1
    min_keys: int = 0
    inputs: list[BodyInput] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    def value(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> int:
        self.values.append(Value(name, dtype, shape))
        return len(self.values) - 1

    def input(self, role: str, name: str, dtype: str, *shape: Dim) -> int:
        self.inputs.append(BodyInput(role, dtype, shape))
        return self.value(name, dtype, shape)

    def op(self, op: str, operands: list[Any], dtype: str, shape: tuple[Dim, ...], **attrs: Any) -> int:
        """One instruction with one result; operands are value indices or `Operand`s."""
        out = self.value(f"{op}{len(self.values)}", dtype, shape)
        self._add(op, operands, [out], attrs)
        return out

    def top_k(self, x: int, dtype: str, k: int, dim: int) -> tuple[int, int]:
        shape = (*self.values[x].shape[:dim], k)
        outs = [self.value(f"top{len(self.values)}_{i}", t, shape) for i, t in enumerate((dtype, "i64"))]
        self._add("topk", [x], outs, {"k": k, "dim": dim, "largest": True})
        return outs[0], outs[1]

    def region(self, operands: list[Any], nodes: list[tuple[Any, ...]], shape: tuple[Dim, ...]) -> int:
        """A region of the nodes (op, dtype, args or constant) whose last one is the result."""
        made = [
            RegionNode(op, dtype, value=arg) if op == "const" else RegionNode(op, dtype, tuple(arg))
            for op, dtype, arg in nodes
        ]
        dtypes = tuple(self.values[_index(o)].dtype for o in operands)
        self.regions.append(Region(dtypes, tuple(made), (len(operands) + len(nodes) - 1,)))
        return self.op("region", operands, nodes[-1][1], shape, region=len(self.regions) - 1)

    def body(self, *outputs: int) -> Body:
        return Body(self.inputs, self.block, self.min_keys, self.values, self.instructions, list(outputs))

    def _add(self, op: str, operands: list[Any], outs: list[int], attrs: dict[str, Any]) -> None:
        operands = [Operand(value=o) if isinstance(o, int) else o for o in operands]
        self.instructions.append(Instruction(op, operands, outs, attrs, source="a test"))


def _index(operand: Any) -> int:
    return operand if isinstance(operand, int) else operand.value


def view(v: int, shape: tuple[Dim, ...], strides: tuple[Dim, ...], offset: Dim = 0) -> Operand:
    return Operand(value=v, shape=shape, strides=strides, offset=offset)


@dataclass(frozen=True)
class BodyCase:
    """A body, operands for T tokens of one sequence, and its meaning over a whole sequence."""

    name: str
    regions: list[Region]
    body: Body
    fixed: Tensors  # by input name
    tokens: Callable[[int, int], Tensors]  # (seed, length) -> token operands by input name
    meaning: Callable[[Tensors], list[Tensor]]  # of the operands of a whole sequence

    def program(self) -> tuple[Program, Tensors]:
        """A Program of this one instruction, and its params."""
        program = Program(regions=self.regions, bodies=[self.body])
        program.values += [Value("token_ids", "i64", ("T",)), Value("positions", "i64", ("T",))]
        program.inputs |= {"token_ids": 0, "positions": 1}
        operands, components = [], []
        for i, given in enumerate(self.body.inputs):
            name = self.body.values[i].name
            if given.role == "fixed":
                program.params.append(Param(name, tuple(int(d) for d in given.shape), given.dtype))
                operands.append(Operand(param=len(program.params) - 1))
                continue
            program.values.append(Value(name, given.dtype, outer_shape(given.role, given.shape)))
            program.inputs[name] = len(program.values) - 1
            operands.append(Operand(value=len(program.values) - 1))
            if given.role == "key":
                components.append(StateComponent(name, tuple(int(d) for d in given.shape[1:]) or (1,), given.dtype))
        outs = []
        for i, v in enumerate(self.body.outputs):
            value = self.body.values[v]
            program.values.append(Value(f"out{i}", value.dtype, outer_shape("query", value.shape)))
            outs.append(len(program.values) - 1)
            program.outputs[f"out{i}"] = outs[-1]
        if components:
            program.states.append(State("keys", "paged", tuple(components)))
        states = list(range(len(program.states)))
        program.instructions.append(Instruction("over_keys", operands, outs, {"body": 0}, states, source="a test"))
        validate(program)
        return program, self.fixed


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grid(seed: int, *shape: int) -> Tensor:
    """Small multiples of 1/4: sums are exact, so that ties are ties everywhere."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4


def unseen(length: int) -> Tensor:
    return torch.arange(length)[None, :] > torch.arange(length)[:, None]


def attention_case(heads: int = 2, dim: int = 4) -> BodyCase:
    """Causal attention written out, over a norm with a weight and an output product with a fixed matrix."""
    h, d, width = heads, dim, heads * dim
    b = BodyBuilder()
    q = b.input("query", "q", "act", "N", h, d)
    position = b.input("query", "position", "i64", "N")
    k = b.input("key", "k", "act", "S", h, d)
    v = b.input("key", "v", "act", "S", h, d)
    scale = b.input("fixed", "scale", "act", d)
    out = b.input("fixed", "weight", "act", 3, width)
    normed = b.op("rms_norm", [k, scale], "act", ("S", h, d), eps=1e-6, offset=0.0)
    scores = b.op(
        "matmul",
        [view(q, (h, "N", d), (d, width, 1)), view(normed, (h, d, "S"), (d, 1, width))],
        "act",
        (h, "N", "S"),
    )
    keys = b.op("arange", [], "i64", ("S",), start=0, step=1)
    shape = (h, "N", "S")
    masked = b.region(
        [scores, view(keys, shape, (0, 0, 1)), view(position, shape, (0, 1, 0))],
        [
            ("le", "bool", (1, 2)),
            ("const", "f32", 1 / math.sqrt(d)),
            ("mul", "f32", (0, 4)),
            ("const", "f32", float("-inf")),
            ("where", "f32", (3, 5, 6)),
        ],
        shape,
    )
    weights = b.op("softmax", [masked], "f32", shape, dim=2)
    rounded = b.region([weights], [("cast", "act", (0,))], shape)
    mixed = b.op("matmul", [rounded, view(v, (h, "S", d), (d, width, 1))], "act", (h, "N", d))
    rows = b.op("copy", [view(mixed, ("N", h, d), (d, format_dim(d, "N"), 1))], "act", ("N", h, d))
    result = b.op("linear", [view(rows, ("N", width), (width, 1)), out, None], "act", ("N", 3))
    fixed = {"scale": 1 + 0.1 * rand(91, d), "weight": rand(92, 3, width)}

    def tokens(seed: int, length: int) -> Tensors:
        return {
            "q": rand(seed, length, h, d),
            "position": torch.arange(length),
            "k": rand(seed + 1, length, h, d),
            "v": rand(seed + 2, length, h, d),
        }

    def meaning(x: Tensors) -> list[Tensor]:
        key = x["k"] * torch.rsqrt(x["k"].square().mean(-1, keepdim=True) + 1e-6) * fixed["scale"]
        s = torch.einsum("nhd,shd->hns", x["q"], key) / math.sqrt(d)
        p = s.masked_fill(unseen(s.shape[-1]), float("-inf")).softmax(-1)
        y = torch.einsum("hns,shd->nhd", p, x["v"])
        return [y.flatten(1) @ fixed["weight"].T, y]

    return BodyCase("attention", b.regions, b.body(result, rows), fixed, tokens, meaning)


def index_case(heads: int = 3, dim: int = 4, k: int = 5) -> BodyCase:
    """An index scorer: relu(q . k) summed over heads with weights, the k best of the keys that are seen."""
    b = BodyBuilder(min_keys=k)
    q = b.input("query", "q", "act", "N", heads, dim)
    gates = b.input("query", "gates", "act", "N", heads)
    position = b.input("query", "position", "i64", "N")
    keys = b.input("key", "k", "act", "S", dim)
    scores = b.op(
        "matmul",
        [view(q, (format_dim(heads, "N"), dim), (dim, 1)), view(keys, (dim, "S"), (1, dim))],
        "act",
        (format_dim(heads, "N"), "S"),
    )
    shape = ("N", heads, "S")
    gated = b.region(
        [view(scores, shape, (format_dim(heads, "S"), "S", 1)), view(gates, shape, (heads, 1, 0))],
        [("relu", "f32", (0,)), ("mul", "f32", (1, 2))],
        shape,
    )
    total = b.op("reduce", [gated], "f32", ("N", "S"), kind="sum", dims=[1], keepdim=False)
    places = b.op("arange", [], "i64", ("S",), start=0, step=1)
    masked = b.region(
        [total, view(places, ("N", "S"), (0, 1)), view(position, ("N", "S"), (1, 0))],
        [("le", "bool", (1, 2)), ("const", "f32", float("-inf")), ("where", "f32", (3, 0, 4))],
        ("N", "S"),
    )
    _, best = b.top_k(masked, "f32", k, 1)

    def tokens(seed: int, length: int) -> Tensors:
        return {
            "q": grid(seed, length, heads, dim),
            "gates": grid(seed + 1, length, heads),
            "position": torch.arange(length),
            "k": grid(seed + 2, length, dim),
        }

    def meaning(x: Tensors) -> list[Tensor]:
        length = x["k"].shape[0]
        s = (torch.einsum("nhd,sd->nhs", x["q"], x["k"]).relu() * x["gates"][:, :, None]).sum(1)
        s = s.masked_fill(unseen(length), float("-inf"))
        padded = torch.cat([s, torch.full((length, max(0, k - length)), float("-inf"))], 1)
        return [torch.sort(padded, dim=1, descending=True, stable=True).indices[:, :k]]

    return BodyCase("index", b.regions, b.body(best), {}, tokens, meaning)


def blocks_case(block: int = 4, k: int = 2, dim: int = 4) -> BodyCase:
    """Block selection: the best score in each block of keys, the query's own block first, then a token mask."""
    heads = 2
    b = BodyBuilder(block=block, min_keys=k * block)
    q = b.input("query", "q", "act", "N", heads, dim)
    position = b.input("query", "position", "i64", "N")
    keys = b.input("key", "k", "act", format_dim(block, "S"), dim)
    valid = b.input("key", "valid", "bool", format_dim(block, "S"))
    each = (heads, "N", format_dim(block, "S"))
    split = (heads, "N", "S", block)
    scores = b.op(
        "matmul",
        [
            view(q, (heads, "N", dim), (dim, heads * dim, 1)),
            view(keys, (heads, dim, format_dim(block, "S")), (0, 1, dim)),
        ],
        "act",
        each,
    )
    places = b.op("arange", [], "i64", (format_dim(block, "S"),), start=0, step=1)
    masked = b.region(
        [scores, view(places, each, (0, 0, 1)), view(position, each, (0, 1, 0)), view(valid, each, (0, 0, 1))],
        [("le", "bool", (1, 2)), ("and", "bool", (3, 4)), ("const", "f32", float("-inf")), ("where", "f32", (5, 0, 6))],
        each,
    )
    by_block = view(masked, split, (format_dim(block, "N*S"), format_dim(block, "S"), block, 1))
    best = b.op("reduce", [by_block], "f32", (heads, "N", "S"), kind="max", dims=[3], keepdim=False)
    own = b.region([position], [("const", "i64", block), ("floor_div", "i64", (0, 1))], ("N",))
    infinite = b.op("full", [], "f32", (heads, "N", 1), value=float("inf"))
    forced = b.op("scatter", [best, view(own, (heads, "N", 1), (0, 1, 1)), infinite], "f32", (heads, "N", "S"),
                  dim=2, reduce="")  # fmt: skip
    _, chosen = b.top_k(forced, "f32", k, 2)
    rows = b.op("copy", [view(chosen, ("N", heads, k), (k, format_dim(k, "N"), 1))], "i64", ("N", heads, k))

    def tokens(seed: int, length: int) -> Tensors:
        return {
            "q": grid(seed, length, heads, dim),
            "position": torch.arange(length),
            "k": grid(seed + 1, length, dim),
            "valid": torch.arange(length) % 3 != 1,
        }

    def meaning(x: Tensors) -> list[Tensor]:
        length = x["k"].shape[0]
        count = max(k, -(-length // block))
        s = torch.einsum("nhd,sd->nhs", x["q"], x["k"])
        s = s.masked_fill((unseen(length) | ~x["valid"][None])[:, None], float("-inf"))
        s = torch.cat([s, torch.full((length, heads, count * block - length), float("-inf"))], 2)
        s = s.unflatten(2, (count, block)).amax(3)
        s.scatter_(2, (torch.arange(length) // block)[:, None, None].expand(-1, heads, 1), float("inf"))
        return [torch.sort(s, dim=2, descending=True, stable=True).indices[..., :k]]

    return BodyCase("blocks", b.regions, b.body(rows), {}, tokens, meaning)


def pooled_case(block: int = 3, dim: int = 4) -> BodyCase:
    """Attention over raw and pooled keys: each finished block is summed with a softmax of gates, normed and turned."""
    b = BodyBuilder(block=block)
    q = b.input("query", "q", "act", "N", dim)
    position = b.input("query", "position", "i64", "N")
    keys = b.input("key", "k", "act", format_dim(block, "S"), dim)
    gates = b.input("key", "gates", "act", format_dim(block, "S"), dim)
    turns = b.input("fixed", "cos", "f32", 64, dim // 2)
    sines = b.input("fixed", "sin", "f32", 64, dim // 2)
    split, strides = ("S", block, dim), (block * dim, dim, 1)
    shares = b.op("softmax", [view(gates, split, strides)], "f32", split, dim=1)
    weighted = b.region([shares, view(keys, split, strides)], [("mul", "f32", (0, 1)), ("cast", "act", (2,))], split)
    pooled = b.op("reduce", [weighted], "act", ("S", dim), kind="sum", dims=[1], keepdim=False)
    normed = b.op("layer_norm", [pooled, None, None], "act", ("S", dim), eps=1e-5)
    block_ids = b.op("arange", [], "i64", ("S",), start=0, step=1)
    cos = b.op("embedding", [block_ids, turns], "f32", ("S", dim // 2))
    sin = b.op("embedding", [block_ids, sines], "f32", ("S", dim // 2))
    turned = b.op("rope", [view(normed, ("S", 1, dim), (dim, dim, 1)), cos, sin], "act", ("S", 1, dim),
                  interleaved=False)  # fmt: skip
    total = format_dim(block + 1, "S")
    joined = b.op("cat", [keys, view(turned, ("S", dim), (dim, 1))], "act", (total, dim), dim=0)
    raw_ends = b.op("arange", [], "i64", (format_dim(block, "S"),), start=0, step=1)
    block_ends = b.op("arange", [], "i64", ("S",), start=block - 1, step=block)
    ends = b.op("cat", [raw_ends, block_ends], "i64", (total,), dim=0)
    scores = b.op("matmul", [q, view(joined, (dim, total), (1, dim))], "act", ("N", total))
    shape = ("N", total)
    masked = b.region(
        [scores, view(ends, shape, (0, 1)), view(position, shape, (1, 0))],
        [("le", "bool", (1, 2)), ("const", "f32", float("-inf")), ("where", "f32", (3, 0, 4)), ("cast", "act", (5,))],
        shape,
    )
    weights = b.op("softmax", [masked], "act", shape, dim=1)
    result = b.op("matmul", [weights, joined], "act", ("N", dim))
    angles = torch.arange(64)[:, None] * torch.tensor([1.0, 0.1])
    fixed = {"cos": angles.cos(), "sin": angles.sin()}

    def tokens(seed: int, length: int) -> Tensors:
        return {
            "q": rand(seed, length, dim),
            "position": torch.arange(length),
            "k": rand(seed + 1, length, dim),
            "gates": rand(seed + 2, length, dim),
        }

    def meaning(x: Tensors) -> list[Tensor]:
        length = x["k"].shape[0]
        whole = length // block
        g, kk = (x[n][: whole * block].unflatten(0, (whole, block)) for n in ("gates", "k"))
        p = torch.nn.functional.layer_norm((g.softmax(1) * kk).sum(1), (dim,), eps=1e-5)
        first, second = p.chunk(2, 1)
        c, s = fixed["cos"][:whole], fixed["sin"][:whole]
        p = torch.cat([first * c - second * s, second * c + first * s], 1)
        joined = torch.cat([x["k"], p])
        ends = torch.cat([torch.arange(length), torch.arange(whole) * block + block - 1])
        scores = (x["q"] @ joined.T).masked_fill(ends[None] > torch.arange(length)[:, None], float("-inf"))
        return [scores.softmax(1) @ joined]

    return BodyCase("pooled", b.regions, b.body(result), fixed, tokens, meaning)


def keyless_case() -> BodyCase:
    """No key inputs: each query's distance to every position so far, as a bias would need, summed up."""
    b = BodyBuilder(block=2)
    position = b.input("query", "position", "i64", "2*N")
    places = b.op("arange", [], "i64", ("2*S",), start=0, step=1)
    shape = ("2*N", "2*S")
    distance = b.region(
        [view(position, shape, (1, 0)), view(places, shape, (0, 1))],
        [("sub", "i64", (0, 1)), ("const", "i64", 0), ("max", "i64", (2, 3))],
        shape,
    )
    total = b.op("reduce", [distance], "i64", ("2*N",), kind="sum", dims=[1], keepdim=False)

    def tokens(seed: int, length: int) -> Tensors:
        return {"position": torch.arange(length).repeat_interleave(2)}

    def meaning(x: Tensors) -> list[Tensor]:
        n = x["position"]
        return [n * (n + 1) // 2]

    return BodyCase("keyless", b.regions, b.body(total), {}, tokens, meaning)


CASES = [attention_case(), index_case(), blocks_case(), pooled_case(), keyless_case()]


def rows_per_token(body: Body, i: int) -> int:
    """How many rows of a query input belong to one token."""
    return parse_dim(body.inputs[i].shape[0])[0]


def least_keys(body: Body, length: int) -> int:
    """Key blocks for so many tokens."""
    return max(-(-length // body.block), -(-body.min_keys // body.block))


__all__ = ["CASES", "BodyBuilder", "BodyCase", "eval_dim", "least_keys", "rows_per_token", "view"]
