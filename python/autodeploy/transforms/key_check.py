"""Compares a body with the calls that it was made of, on random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from autodeploy.testing.compare import relative_error

from ..ir import ModelIR
from ..ir.over_keys import BodyIR
from . import nodes as n
from .axes import Refusal
from .base import TransformError
from .key_axes import extent, size_at
from .raise_over_keys_tools import is_counted

_TOLERANCE = 1e-4
_HIDDEN = -1e30  # scores below are those of keys that a mask hides
_LONGEST = 160  # tokens; longer lists than that are compared on shorter sequences alone


def check_body(
    ir: ModelIR, walk: Any, members: list[Node], outputs: list[Node], body: BodyIR, leaves: list[tuple[Node, str]]
) -> None:
    """Runs both on sequences of several lengths: the calls on all tokens at once, the body in pieces of odd sizes.

    A piece sees no token that follows it, so that a body agrees only where no token looks at a later one, and where
    nothing depends on how many there are. Pieces are run with blocks of zeros behind their keys as well, which a
    runtime may add that does not know the length of a sequence beforehand.

    Lists of blocks may name those that have begun, or those that are whole: one of both has to agree.

    Raises:
        TransformError: they differ.
    """
    begun = body.block
    try:
        _check(ir, walk, members, outputs, body, leaves, begun, 0)
    except TransformError:
        if body.block == 1:
            raise
        begun = 1
        _check(ir, walk, members, outputs, body, leaves, begun, 0)
    _check(ir, walk, members, outputs, body, leaves, begun, 2)


def _check(
    ir: ModelIR,
    walk: Any,
    members: list[Node],
    outputs: list[Node],
    body: BodyIR,
    leaves: list[tuple[Node, str]],
    begun: int,
    more_blocks: int,
) -> None:
    """`begun`: tokens of a block after which a list may name it. `more_blocks`: of zeros behind the keys."""
    lengths = {1, 2, 7, body.block + 1, 2 * body.block + 3, body.min_keys + 2}
    selects = any(n.is_op(m, "aten.topk") for m in members)
    for seed, tokens in enumerate(sorted(t for t in lengths if t <= _LONGEST)):
        feed = _Feed(ir, walk, members, tokens, seed, body.block, begun, selects)
        whole = feed.run(outputs)
        operands = [feed.first(x, role) for x, role in leaves]
        done = 0
        while done < tokens:
            stop = done + min(tokens - done, (3, 1, 5)[done % 3])
            cut = {"query": slice(done, stop), "key": slice(0, stop), "fixed": slice(None)}
            mine = [x[cut[role]] if role != "fixed" else x for (_, role), x in zip(leaves, operands, strict=True)]
            found = body.run_tile(stop - done, stop, mine, more_blocks)
            for output, expected, got in zip(outputs, whole, found, strict=True):
                rows = expected.movedim(walk.exits[output], 0)[done:stop]
                if rows.shape != got.shape:  # a list is longer where there are keys enough for it
                    got = got[tuple(slice(0, s) for s in rows.shape)] if not _is_list(output) else got
                listed = feed.listed(output)
                listed = None if listed is None else listed.movedim(walk.exits[output], 0)[done:stop]
                _compare(output, rows, got, listed, f"{done} of {tokens}", more_blocks)
            done = stop


def _compare(
    output: Node,
    expected: torch.Tensor,
    found: torch.Tensor,
    listed: torch.Tensor | None,
    where: str,
    more_blocks: int,
) -> None:
    """`listed`: which entries of a list of keys stand for keys that the query may see; the others are any."""
    if listed is not None:
        wanted, got = expected.flatten(0, -2), found.flatten(0, -2)
        lists = zip(wanted, got, listed.flatten(0, -2), strict=True)
        right = [set(e[m].tolist()) <= set(f.tolist()) for e, f, m in lists]
        error = 0.0 if all(right) else float("inf")
    else:
        error = relative_error(found, expected) if found.shape == expected.shape else float("inf")
    if not error <= _TOLERANCE:
        what, why = "others follow it", "read later tokens, or depend on how many there are"
        if more_blocks:
            what, why = f"{more_blocks} blocks of zeros follow its keys", "not hide them by their positions alone"
        raise TransformError(
            f"[over_keys] the code up to {output.name} at {n.source(output)} was expected to make the same of a token "
            f"whether or not {what}, but differs by {error:.2g} of the largest value at token {where}: it may {why}"
        )


def _is_list(output: Node) -> bool:
    """Whether a result is the places of a selection."""
    return n.op_name(output) == n.GETITEM and n.is_op(output.args[0], "aten.topk") and output.args[1] == 1


class _Feed:
    """Random numbers for everything that a region reads, for one number of tokens, and its calls run on them."""

    def __init__(
        self,
        ir: ModelIR,
        walk: Any,
        members: list[Node],
        tokens: int,
        seed: int,
        block: int,
        begun: int,
        selects: bool,
    ):
        self.ir, self.walk, self.members, self.tokens, self.selects = ir, walk, members, tokens, selects
        self.block, self.begun = block, begun
        self.generator = torch.Generator().manual_seed(seed)
        self.known: dict[Node, Any] = {}
        self.inner = set(members) | self._views()

    def size(self, size: Any) -> int:
        if not self.selects and n.is_symbolic(size):
            try:
                grown = extent(size)
            except Refusal:
                return size_at(size, self.tokens)
            if not grown.share:
                return grown.count  # lists from other regions have their full length, whatever T is
        return size_at(size, self.tokens)

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
        elif x.op == "call_function" and (is_counted(self.ir, x) or x in self.inner or x in self.walk.lists):
            found = self.call(x)
        else:
            found = self.random([self.size(s) for s in value.shape], value.dtype)
            if not value.dtype.is_floating_point and value.dtype != torch.bool and n.has_tokens(x):
                at = self.walk.token_dim(x)  # places are those of keys, or whole blocks of keys; -1 where there is none
                shape = [self.tokens if d == at else 1 for d in range(found.dim())]
                whole = ((torch.arange(self.tokens) + self.begun) // self.block).reshape(shape)
                found = torch.where(whole > 0, found % whole.clamp(min=1), -1)
        self.known[x] = found
        return found

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
        if self.selects:  # scores that are often 0 would be selected by chance
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

        if n.op_name(node) in ("aten.reshape", "aten.view"):  # -1 says nothing of a tensor without elements
            return bind(node.args[0]).reshape([self.size(s) for s in n.shape_of(node)])
        return node.target(*bind(node.args), **{k: bind(x) for k, x in node.kwargs.items()})

    def listed(self, output: Node) -> torch.Tensor | None:
        """Of the places of a selection, those whose score says that the key may be seen; None for other results."""
        return self.known[output.args[0]][0] > _HIDDEN if _is_list(output) else None

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
        return value
