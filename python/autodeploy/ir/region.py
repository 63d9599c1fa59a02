"""Fused regions in a graph: one node that carries its pointwise program (docs/program.md, Region).

A region is a `call_function` of `fused_region` whose positional arguments are its inputs, nodes that broadcast to one
iteration shape, and whose keyword `program` is the text of an `artifact.Region`:

    fused_region(x, y, program="act, act | r2 = silu act r0; r3 = mul act r2 r1 | r3")

inputs' dtypes | nodes, each `register = op dtype arguments` | results. The node's value is a tensor of the iteration
shape when there is one result, else a tuple of such tensors (read with `operator.getitem`). `parse_region` gives the
`Region`; equal regions have equal texts. Called eagerly it computes what it says, `act` being the dtype of its first
`act` input.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.fx import Node

from ..artifact import Region, RegionNode
from .dialect import CANONICAL, Dialect


def fused_region(*inputs: torch.Tensor, program: str) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Results of a region for inputs that broadcast to one shape: a tensor, or a tuple of several."""
    from ..interpreter.region import run_region

    region = parse_region(program)
    act = next((x.dtype for x, kind in zip(inputs, region.inputs, strict=True) if kind == "act"), torch.float32)
    dtypes = {"act": act, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}
    results = run_region(region, torch.broadcast_tensors(*inputs), dtypes)
    return results[0] if len(results) == 1 else tuple(results)


class _FusedDialect(Dialect):
    def allows(self, node: Node) -> bool:
        return node.target is fused_region or super().allows(node)


FUSED = _FusedDialect("FUSED", CANONICAL.aten, CANONICAL.canonical)
"""After the last transform: CANONICAL, and pointwise calls gathered in regions."""


def region_text(region: Region) -> str:
    """The text form of a region; the same for equal regions."""
    nodes = []
    for i, node in enumerate(region.nodes, start=len(region.inputs)):
        operands = repr(node.value) if node.op == "const" else " ".join(f"r{a}" for a in node.args)
        nodes.append(f"r{i} = {node.op} {node.dtype} {operands}")
    return f"{', '.join(region.inputs)} | {'; '.join(nodes)} | {', '.join(f'r{r}' for r in region.outputs)}"


@lru_cache(maxsize=4096)
def parse_region(text: str) -> Region:
    """The region of a text form.

    Raises:
        ValueError: the text is no region.
    """
    try:
        inputs, nodes, outputs = (part.strip() for part in text.split("|"))
        return Region(
            tuple(inputs.split(", ")) if inputs else (),
            tuple(_parse_node(n) for n in nodes.split("; ")) if nodes else (),
            tuple(_register(r) for r in outputs.split(", ")),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"[region] expected inputs | nodes | results, found {text!r}") from error


def _parse_node(text: str) -> RegionNode:
    op, dtype, *operands = text.split(" = ")[1].split(" ")
    if op == "const":
        return RegionNode(op, dtype, (), _number(operands[0], dtype))
    return RegionNode(op, dtype, tuple(_register(a) for a in operands))


def _number(text: str, dtype: str) -> float | int | bool:
    if dtype == "bool":
        return text == "True"
    return int(text) if dtype == "i64" else float(text)


def _register(text: str) -> int:
    return int(text[1:])
