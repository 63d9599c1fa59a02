"""Numbers in the place of traced values: what the model's code would hold for a sequence of some length."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import sympy
import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

from .identities import DRAWS
from .layout import TOKENS

R = TypeVar("R")

_NARROW = (torch.bfloat16, torch.float16)
_FILLS = {"zeros": 0.0, "empty": 0.0, "ones": 1.0}


def outside(work: Callable[[], R]) -> R:
    """Calls `work` where nothing is being traced: the modes of an export belong to the thread that exports."""
    found: list[Any] = []

    def run() -> None:
        try:
            with torch.no_grad():
                found.extend((True, work()))
        except Exception as e:
            found.extend((False, e))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not found[0]:
        raise found[1]
    return found[1]


class _NotConstant(Exception):
    pass


class Scene:
    """The export in progress, and the float32 model beside it whose buffers have their values."""

    def __init__(self, model: torch.nn.Module, twin: Callable[[], torch.nn.Module], tokens: torch.SymInt):
        self.symbol = tokens.node.expr
        self.twin = outside(twin)
        self._names = {id(m): name for name, m in model.named_modules(remove_duplicate=False)}
        self._buffers: dict[Node, torch.Tensor] = {}
        self._nodes: dict[int, tuple[torch.Tensor, Node | None]] = {}
        values = dict(self.twin.named_buffers(remove_duplicate=False))
        for name, buffer in model.named_buffers(remove_duplicate=False):
            node = node_of(buffer)
            if node is not None and name in values:
                self._buffers[node] = values[name]

    def size(self, n: Any, tokens: int) -> int:
        """A size of the traced code at this number of tokens. Raises ValueError where it depends on something else."""
        if not isinstance(n, torch.SymInt):
            return int(n)
        value = n.node.expr.xreplace({self.symbol: sympy.Integer(tokens)})
        if not value.is_number:
            raise ValueError(f"a size {n.node.expr} that does not follow from the number of tokens")
        return int(value)

    def sizes(self, x: torch.Tensor) -> tuple[int, ...]:
        """Sizes with TOKENS for the number of tokens; sizes that depend on it otherwise are 0, which fits nothing."""

        def one(n: Any) -> int:
            if not isinstance(n, torch.SymInt):
                return int(n)
            expr = n.node.expr
            return TOKENS if expr == self.symbol else int(expr) if expr.is_number else 0

        return tuple(one(n) for n in x.shape)

    def module(self, module: torch.nn.Module) -> torch.nn.Module:
        """The twin's module in the place of the model's, its own parameters random."""
        name = self._names.get(id(module))
        if name is None:
            return module
        made = copy.copy(self.twin.get_submodule(name))
        made._parameters = dict(made._parameters)
        return made

    def meet(self, x: torch.Tensor) -> None:
        """Remembers which node made a traced tensor; only the thread that exports can tell."""
        if id(x) not in self._nodes:
            self._nodes[id(x)] = (x, node_of(x))

    def index(self, x: torch.Tensor) -> int:
        """A number of its own for every traced tensor."""
        self._nodes.setdefault(id(x), (x, None))
        return list(self._nodes).index(id(x))

    def constant(self, x: torch.Tensor, tokens: int) -> tuple[torch.Tensor, bool] | None:
        """The value of a tensor that depends on no parameter and no input, and whether it depends on a buffer."""
        node = self._nodes[id(x)][1] if id(x) in self._nodes else None
        if node is None:
            return None
        used: list[Node] = []
        try:
            return self._value(node, tokens, {}, used), bool(used)
        except (_NotConstant, ValueError, RuntimeError, TypeError):
            return None

    def _value(self, node: Node, tokens: int, known: dict[Node, torch.Tensor], used: list[Node]) -> torch.Tensor:
        if node in known:
            return known[node]
        if node in self._buffers:
            used.append(node)
            known[node] = self._buffers[node]
            return known[node]
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            raise _NotConstant
        if not isinstance(node.target, torch._ops.OpOverload):
            raise _NotConstant
        name = node.target._schema.name.removeprefix("aten::")
        plain = name.removeprefix("new_").removesuffix("_like")
        shape = [self.size(n, tokens) for n in value.shape]
        if plain in _FILLS or plain == "full":
            fill = _FILLS.get(plain)
            if fill is None:
                fill = node.args[-1]  # type: ignore[assignment]
            if not isinstance(fill, (int, float, bool)):
                raise _NotConstant
            found = torch.full(shape, fill, dtype=wide(value.dtype))
        else:
            args = self._arguments(node.args, tokens, known, used)
            kwargs = {k: self._arguments(a, tokens, known, used) for k, a in node.kwargs.items()}
            found = node.target(*args, **kwargs)
        known[node] = found
        return found

    def _arguments(self, x: Any, tokens: int, known: dict[Node, torch.Tensor], used: list[Node]) -> Any:
        if isinstance(x, Node):
            value = x.meta.get("val")
            return self.size(value, tokens) if isinstance(value, torch.SymInt) else self._value(x, tokens, known, used)
        if isinstance(x, (list, tuple)):
            return type(x)(self._arguments(i, tokens, known, used) for i in x)
        if isinstance(x, torch.SymInt):
            return self.size(x, tokens)
        return wide(x) if isinstance(x, torch.dtype) else x


def node_of(x: torch.Tensor) -> Node | None:
    """The node of the graph being traced that made `x`, or None."""
    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(x, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NARROW else dtype


@dataclasses.dataclass
class StandIns:
    """Values of one run, at `tokens`, by the traced ones. A traced tensor is one value wherever it is met.

    `draws`: how random numbers are drawn, by id of the traced tensor; `usual` for all others.
    """

    scene: Scene
    tokens: int
    draws: Mapping[int, str]
    usual: str
    seed: int = 0

    def __post_init__(self) -> None:
        self.made: dict[int, Any] = {}

    def of(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            if id(x) not in self.made:
                known = self.scene.constant(x, self.tokens)
                self.made[id(x)] = self._random(x) if known is None else known[0].clone()
            return self.made[id(x)]
        if isinstance(x, torch.nn.Module):
            if id(x) not in self.made:
                self.made[id(x)] = self._module(x)
            return self.made[id(x)]
        if isinstance(x, torch.SymInt):
            return self.scene.size(x, self.tokens)
        if isinstance(x, torch.dtype):
            return wide(x)
        if isinstance(x, torch.Size) or type(x) in (list, tuple):
            return (tuple if isinstance(x, torch.Size) else type(x))(self.of(i) for i in x)
        if type(x) is dict:
            return {k: self.of(v) for k, v in x.items()}
        return x

    def _random(self, x: torch.Tensor) -> torch.Tensor:
        shape = [self.scene.size(n, self.tokens) for n in x.shape]
        # Not one generator for all: values must not depend on the order in which they are asked for.
        seed = (self.scene.index(x) * 101 + self.seed) * 1009 + self.tokens
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if x.dtype == torch.bool:
            return normal > 0
        if not x.dtype.is_floating_point:
            return (normal * 2).abs().to(x.dtype)
        return DRAWS[self.draws.get(id(x), self.usual)](normal).to(wide(x.dtype))

    def _module(self, module: torch.nn.Module) -> torch.nn.Module:
        made = self.scene.module(module)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = self.of(getattr(module, name))
                made._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        return made
