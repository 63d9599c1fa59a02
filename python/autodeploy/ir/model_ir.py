"""What passes between capture, transforms and lowering: a graph, where its parameters come from, and its constants.

``ModelIR.graph_module`` is a `torch.fx.GraphModule` whose inputs are placeholders, in this order:

1. the step's inputs, named as in the Program: ``token_ids`` i64 [T], ``positions`` i64 [T];
2. one placeholder per parameter, a key of ``ModelIR.params``;
3. one placeholder per constant (a real buffer, or a tensor that the model's code made), a key of ``ModelIR.constants``.

Its output is a tuple, in the order of ``ModelIR.outputs`` (names), at first ``("logits",)``: [T, V]. There are no
``get_attr`` nodes and no submodules.

Every node has in ``node.meta``

* ``"val"``: fake tensor, tuple of them, or SymInt/int. The token count is one symbol, T; after rows were selected
  there is a second one, R. bfloat16 stands for the Program's ``act``, float32 for ``f32`` (capture runs in bfloat16, so
  float32 is what the model asked for). `ir.shapes` turns sizes into the Program's dims;
* ``"source"``: ``"file.py:123 Class.forward"``, the model's line that made it (`ir.graph.source_line` reads it);
* ``"states"`` (once a transform has given states to mixers): names into ``ModelIR.states``.

Sizes that depend on T are all made from one node ``aten.sym_size.int(token_ids, 0)`` by ``operator.mul`` and, until
windows over tokens were raised, ``operator.add``.

A parameter's origin is a list of `Segment`s, joined along dim 0 (docs/weight_program.md). Expressions are dicts of that
format whose leaves, ``{"op": "tensor", "name": fqn}``, name *parameters of the captured model* (those and their shapes
are ``ModelIR.parameter_names``); the weights room replaces leaves by checkpoint expressions. Transforms edit
expressions freely: fusing linears concatenates segments, folding ``1 + w`` wraps an expression in ``binary``. A leaf
may also be ``{"op": "constant", "name": key}``, a key of ``ModelIR.constants``, which then stays there without a
placeholder.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch.fx import GraphModule, Node

from autodeploy.ops.base import StateDecl

INPUTS = ("token_ids", "positions")

DTYPES: dict[torch.dtype, str] = {
    torch.bfloat16: "act",
    torch.float32: "f32",
    torch.int64: "i64",
    torch.bool: "bool",
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """`rows` of a parameter (dim 0) and the expression that makes them; immutable, so that segments may be shared."""

    rows: int
    expr: dict[str, Any]


@dataclasses.dataclass
class ParamInfo:
    """A runtime parameter. `name` is the Program's; `dtype` one of act, f32, i64, bool; `segments` joined along dim 0.

    `fqns` are the parameters of the captured model that it is made of, for messages. A scalar has rows = 1.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    segments: list[Segment]
    fqns: tuple[str, ...]

    @classmethod
    def whole(cls, fqn: str, shape: tuple[int, ...], dtype: str) -> ParamInfo:
        """The parameter `fqn` of the captured model, as it is."""
        rows = shape[0] if shape else 1
        return cls(fqn, tuple(shape), dtype, [Segment(rows, {"op": "tensor", "name": fqn})], (fqn,))

    @property
    def expr(self) -> dict[str, Any]:
        """The one expression of a parameter with one segment."""
        if len(self.segments) != 1:
            raise ValueError(f"[param] expected {self.name} to have one segment, found {len(self.segments)}")
        return self.segments[0].expr


@dataclasses.dataclass
class ConstantInfo:
    """A tensor known at compile time. `value` has full precision (float32 even where `dtype` is act)."""

    name: str
    dtype: str
    value: torch.Tensor


@dataclasses.dataclass
class ModelIR:
    """A model on its way through the compiler; see the module's docstring for the invariants."""

    graph_module: GraphModule
    params: dict[str, ParamInfo]
    constants: dict[str, ConstantInfo]
    outputs: tuple[str, ...] = ("logits",)
    parameter_names: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    tied: dict[str, str] = dataclasses.field(default_factory=dict)  # fqn -> the fqn whose storage it shares
    states: dict[str, StateDecl] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)  # vocab_size, max_positions, ...
    report: list[str] = dataclasses.field(default_factory=list)  # what was decided and why, for `explain`

    @property
    def graph(self) -> torch.fx.Graph:
        return self.graph_module.graph

    def input(self, name: str) -> Node:
        """The placeholder of a step input."""
        return next(n for n in self.graph.nodes if n.op == "placeholder" and n.target == name)

    def placeholder(self, name: str) -> Node:
        """The placeholder of a parameter or constant."""
        return self.input(name)

    def output_nodes(self) -> tuple[Node, ...]:
        return tuple(self.graph.output_node().args[0])

    @property
    def fake_mode(self) -> torch._subclasses.FakeTensorMode:
        return self.input(INPUTS[0]).meta["val"].fake_mode

    @property
    def T(self) -> torch.SymInt:
        """The token symbol, as a size of fake tensors."""
        return self.input(INPUTS[0]).meta["val"].shape[0]

    def copy(self) -> ModelIR:
        """An independent copy; node metadata is shared value by value, tensors are not copied."""
        module = GraphModule(self.graph_module, copy.deepcopy(self.graph_module.graph))
        return dataclasses.replace(
            self,
            graph_module=module,
            params={k: dataclasses.replace(p, segments=list(p.segments)) for k, p in self.params.items()},
            constants=dict(self.constants),
            states=dict(self.states),
            metadata=dict(self.metadata),
            report=list(self.report),
        )

    def run(
        self, token_ids: torch.Tensor, positions: torch.Tensor, params: dict[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """Runs the graph eagerly. `params` by placeholder name; act constants are cast to `dtype`.

        Only a graph whose literal dtypes suit `dtype` may run in another dtype than bfloat16: see `ir.graph.retype`.
        """
        feed: dict[str, torch.Tensor] = {"token_ids": token_ids, "positions": positions, **params}
        for key, constant in self.constants.items():
            feed[key] = constant.value.to(dtype) if constant.dtype == "act" else constant.value
        args = [feed[n.target] for n in self.graph.nodes if n.op == "placeholder"]
        return self.graph_module(*args)
