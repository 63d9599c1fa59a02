"""`over_keys` in a graph: one node that carries a small graph over the queries and keys of one sequence.

It is the mixer for what no other op says: code that pairs each token with the earlier tokens of its own sequence in a
way of its own (docs/program.md, over_keys). A node is

    over_keys(x0, x1, ..., body="1f3a...")        ->  a tuple, read with operator.getitem

whose operands are [T, ...] (queries and keys) or have no tokens (fixed), and whose results are [T, ...]. The body is a
`BodyIR`, registered in `BODIES` under a digest of its text; equal bodies are one. Called eagerly, a node runs its body
for every sequence of the batch in force (`ops.running`) over the keys kept so far, as every runtime does.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node

from autodeploy.ops.base import Batch, Memory, StateComponent, StateDecl, StateStore, active

from .model_ir import DTYPES, ModelIR
from .retype import retyped

ROLES = ("query", "key", "fixed")
QUERIES, BLOCKS = "num_queries", "num_blocks"


@dataclasses.dataclass
class BodyIR(ModelIR):
    """A graph over one sequence: `num_queries` N of its newest tokens, and `num_blocks` S blocks of `block` keys.

    Its placeholders are the two sizes, then one for each operand, in the order of `roles`: a query operand is [N, ...],
    a key operand [block * S, ...], a fixed one what it is outside. Sizes in calls are made from the two size
    placeholders by `operator.mul`. Results are [N, ...]. There are at least `min_keys` keys, zeros where the sequence
    has fewer.
    """

    roles: tuple[str, ...] = ()
    block: int = 1
    min_keys: int = 0
    mode: FakeTensorMode | None = None
    modules: dict[torch.dtype, torch.fx.GraphModule] = dataclasses.field(default_factory=dict)

    @property
    def fake_mode(self) -> FakeTensorMode:
        assert self.mode is not None
        return self.mode

    @property
    def T(self) -> torch.SymInt:
        """N: what takes the place of tokens inside."""
        return self.input(QUERIES).meta["val"]

    def operands(self) -> list[Node]:
        return [n for n in self.graph.nodes if n.op == "placeholder"][2:]

    def num_blocks(self, length: int) -> int:
        """S for a query that is token `length` - 1 of its sequence."""
        return max(-(-length // self.block), -(-self.min_keys // self.block), 1)

    def text(self) -> str:
        """A text that is the same for equal bodies."""
        index = {n: i for i, n in enumerate(self.graph.nodes)}
        lines = [f"{self.roles} block {self.block} at least {self.min_keys}"]
        for node in self.graph.nodes:
            args = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{index[n]}")
            value = node.meta.get("val")
            kind = (str(value.dtype), tuple(map(str, value.shape))) if isinstance(value, torch.Tensor) else ""
            lines.append(f"%{index[node]} {'' if node.op == 'placeholder' else node.target} {args} {kind}")
        return "\n".join(lines)

    def key_decl(self) -> list[StateDecl]:
        """The paged state that keeps the key operands."""
        keys = [n.meta["val"] for n, role in zip(self.operands(), self.roles, strict=True) if role == "key"]
        parts = tuple(
            StateComponent(f"k{i}", tuple(int(s) for s in k.shape[1:]) or (1,), DTYPES[k.dtype])
            for i, k in enumerate(keys)
        )
        return [StateDecl("paged", parts)] if parts else []

    def run_tile(
        self, queries: int, length: int, operands: list[torch.Tensor], more_blocks: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """The body for the last `queries` of `length` tokens; key operands hold `length` rows and are padded here.

        more_blocks: of zeros behind those that are needed.
        """
        blocks = self.num_blocks(length) + more_blocks
        padded: list[torch.Tensor] = []
        for role, x in zip(self.roles, operands, strict=True):
            if role == "key":
                x = torch.cat([x, x.new_zeros(blocks * self.block - x.shape[0], *x.shape[1:])])
            padded.append(x)
        return self._module(padded)(queries, blocks, *padded)

    def _module(self, operands: list[torch.Tensor]) -> torch.fx.GraphModule:
        """The body with `act` bound to the dtype that its operands have."""
        traced = [n.meta["val"].dtype for n in self.operands()]
        act = next((x.dtype for x, t in zip(operands, traced, strict=True) if t is torch.bfloat16), torch.bfloat16)
        if act not in self.modules:
            self.modules[act] = self.graph_module if act is torch.bfloat16 else retyped(self, act)
        return self.modules[act]

    def run_batch(self, batch: Batch, states: list[StateStore], operands: list[torch.Tensor]) -> list[torch.Tensor]:
        """Results [T, ...] of a step; `states` is the state of `key_decl`, if there is one."""
        results: list[list[torch.Tensor]] = []
        names = [f"k{i}" for i in range(self.roles.count("key"))]
        for seq in batch.sequences():
            rows = slice(seq.start, seq.stop)
            mine = [x if role == "fixed" else x[rows] for role, x in zip(self.roles, operands, strict=True)]
            if names:
                earlier = states[0].read(seq)
                keys = [i for i, role in enumerate(self.roles) if role == "key"]
                if earlier is not None:
                    for i, name in zip(keys, names, strict=True):
                        mine[i] = torch.cat([earlier[name], mine[i]])
                states[0].write(seq, **{name: mine[i] for i, name in zip(keys, names, strict=True)})
            results.append(list(self.run_tile(seq.length, seq.past + seq.length, mine)))
        return [torch.cat(parts) for parts in zip(*results, strict=True)]


BODIES: dict[str, BodyIR] = {}
"""Bodies by the digest of their text."""


def register_body(body: BodyIR) -> str:
    """The key under which a body is known."""
    key = hashlib.sha256(body.text().encode()).hexdigest()[:16]
    BODIES.setdefault(key, body)
    return key


def over_keys(*operands: torch.Tensor, body: str) -> tuple[torch.Tensor, ...]:
    """Results of a body for the batch in force, or for one fresh sequence (see the module's docstring)."""
    found = BODIES[body]
    if any(isinstance(x, FakeTensor) for x in operands):
        tokens = next(x.shape[0] for x, role in zip(operands, found.roles, strict=True) if role != "fixed")
        made = [n.meta["val"] for n in found.output_nodes()]
        return tuple(operands[0].new_empty((tokens, *v.shape[1:]), dtype=v.dtype) for v in made)
    context = active()
    if context is None:
        tokens = next(x.shape[0] for x, role in zip(operands, found.roles, strict=True) if role != "fixed")
        batch, states = Batch.of([tokens]), [StateStore(d) for d in found.key_decl()]
    else:
        batch, memory = context
        states = memory.states_of("over_keys", found.key_decl())
    return tuple(found.run_batch(batch, states, list(operands)))


def body_of(node: Any) -> BodyIR | None:
    """The body of an `over_keys` node, or None."""
    return BODIES[node.kwargs["body"]] if isinstance(node, Node) and node.target is over_keys else None


__all__ = ["BLOCKS", "BODIES", "QUERIES", "ROLES", "BodyIR", "Memory", "body_of", "over_keys", "register_body"]
