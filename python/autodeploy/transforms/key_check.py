"""Compares a body with the calls that it was made of, on random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from autodeploy.testing.compare import relative_error

from ..ir import ModelIR
from ..ir.over_keys import BodyIR
from . import nodes as n
from .base import TransformError
from .raise_over_keys_tools import is_counted

_TOLERANCE = 1e-4
_LONGEST = 160  # tokens; longer lists than that are compared on shorter sequences alone


def check_body(
    ir: ModelIR, walk: Any, members: list[Node], outputs: list[Node], body: BodyIR, leaves: list[tuple[Node, str]]
) -> None:
    """Runs both on sequences of several lengths: the calls on all tokens at once, the body in pieces of odd sizes.

    A piece sees no token that follows it, so that a body agrees only where no token looks at a later one, and where
    nothing depends on how many there are.

    Raises:
        TransformError: they differ.
    """
    lengths = {1, 2, 7, body.block + 1, 2 * body.block + 3, body.min_keys + 2}
    selects = any(n.is_op(m, "aten.topk") for m in members)
    for seed, tokens in enumerate(sorted(t for t in lengths if t <= _LONGEST)):
        feed = _Feed(ir, walk, members, tokens, seed, positive=selects)
        whole = feed.run(outputs)
        done = 0
        operands = [feed.first(x, role) for x, role in leaves]
        while done < tokens:
            step = min(tokens - done, (3, 1, 5)[done % 3])
            stop = done + step
            cut = {"query": slice(done, stop), "key": slice(0, stop), "fixed": slice(None)}
            mine = [x[cut[role]] if role != "fixed" else x for (_, role), x in zip(leaves, operands, strict=True)]
            found = body.run_tile(step, stop, mine)
            for output, expected, got in zip(outputs, whole, found, strict=True):
                rows = expected.movedim(walk.exits[output], 0)[done:stop]
                _compare(output, rows, got, range(done, stop), tokens)
            done = stop


def _compare(output: Node, expected: torch.Tensor, found: torch.Tensor, positions: range, tokens: int) -> None:
    if expected.dtype == torch.int64:
        same = all(
            _visible(e, p) == _visible(f, p) for e, f, p in zip(expected, found, positions, strict=True)
        )
        error = 0.0 if same else float("inf")
    else:
        error = relative_error(found, expected) if found.shape == expected.shape else float("inf")
    if not error <= _TOLERANCE:
        raise TransformError(
            f"[over_keys] the code up to {output.name} at {n.source(output)} was expected to make the same of a token "
            f"whether or not others follow it, but differs by {error:.2g} of the largest value at token "
            f"{positions[0]} of {tokens}: it may read later tokens, or depend on how many there are"
        )


def _visible(listed: torch.Tensor, position: int) -> list[Any]:
    """Lists of keys, as sets of those that the query may see at all."""
    rows = listed.reshape(-1, listed.shape[-1]) if listed.dim() else listed.reshape(1, 1)
    return [sorted({int(j) for j in row if 0 <= j <= position}) for row in rows]


class _Feed:
    """Random numbers for everything that a region reads, for one number of tokens, and its calls run on them."""

    def __init__(self, ir: ModelIR, walk: Any, members: list[Node], tokens: int, seed: int, positive: bool):
        self.ir, self.walk, self.members, self.tokens, self.positive = ir, walk, members, tokens, positive
        self.generator = torch.Generator().manual_seed(seed)
        self.known: dict[Node, Any] = {}

    def size(self, size: Any) -> int:
        if isinstance(size, int) or not n.is_symbolic(size):
            return int(size)
        (symbol,) = size.node.expr.free_symbols
        return int(size.node.expr.xreplace({symbol: self.tokens}))

    def value(self, x: Node) -> Any:
        """A value that a region reads; what is made of positions alone is computed."""
        if x in self.known:
            return self.known[x]
        value = x.meta["val"]
        if not isinstance(value, torch.Tensor):
            found: Any = self.size(value) if isinstance(value, (int, torch.SymInt)) else value
        elif str(x.target) == "positions":
            found = torch.arange(self.tokens)
        elif x.op == "placeholder" and str(x.target) in self.ir.constants:
            found = self.ir.constants[str(x.target)].value
            found = found.float() if found.dtype.is_floating_point else found
        elif x.op == "call_function" and (is_counted(self.ir, x) or x in self.inner):
            found = self.call(x)
        else:
            found = self.random([self.size(s) for s in value.shape], value.dtype)
            if not value.dtype.is_floating_point and value.dtype != torch.bool and n.has_tokens(x):
                at = self.walk.token_dim(x)  # places are those of tokens that are there
                shape = [self.tokens if d == at else 1 for d in range(found.dim())]
                found = found % torch.arange(1, self.tokens + 1).reshape(shape)
        self.known[x] = found
        return found

    @property
    def inner(self) -> set[Node]:
        return self.__dict__.setdefault("_inner", set(self.members) | self._views())

    def _views(self) -> set[Node]:
        """Views and conversions outside the region: a body may keep what they look at."""
        seen: set[Node] = set()
        stack = [x for m in self.members for x in m.all_input_nodes]
        while stack:
            x = stack.pop()
            if x in seen or n.op_name(x) not in ("aten.expand", "aten.to", "aten._to_copy", "aten.unsqueeze",
                                                 "aten.permute", "aten.reshape"):
                continue
            if isinstance(x.args[0], Node) and x.args[0].op == "call_function":
                seen.add(x)
                stack.append(x.args[0])
        return seen

    def random(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        if dtype == torch.bool:
            return torch.rand(shape, generator=self.generator) > 0.3
        if not dtype.is_floating_point:
            return torch.randint(0, max(self.tokens, 1), shape, generator=self.generator)
        if self.positive:
            return torch.rand(shape, generator=self.generator) + 0.25
        return torch.randn(shape, generator=self.generator)

    def call(self, node: Node) -> Any:
        def bind(x: Any) -> Any:
            if isinstance(x, Node):
                return self.value(x)
            if isinstance(x, (list, tuple)):
                return type(x)(bind(y) for y in x)
            if isinstance(x, torch.SymInt):
                return self.size(x)
            return torch.float32 if x is torch.bfloat16 else x

        return node.target(*bind(node.args), **{k: bind(x) for k, x in node.kwargs.items()})

    def run(self, outputs: list[Node]) -> list[torch.Tensor]:
        with torch.no_grad():
            for node in self.members:
                self.known[node] = self.call(node)
        return [self.known[x] for x in outputs]

    def first(self, x: Node, role: str) -> torch.Tensor:
        """An operand of the body: tokens first."""
        value = self.value(x)
        if role == "fixed":
            return value
        value = value.movedim(self.walk.token_dim(x), 0)
        for dim, count in enumerate(self.walk.row_shape(x), start=1):
            if value.shape[dim] < count:  # a list is shorter where there are fewer keys than it can hold
                last = value.narrow(dim, value.shape[dim] - 1, 1)
                value = torch.cat([value, *[last] * (count - value.shape[dim])], dim)
        return value
