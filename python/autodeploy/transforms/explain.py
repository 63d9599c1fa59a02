"""Says which way every block of the model went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import Node

from ..ir import ModelIR
from ..ir.over_keys import body_of
from ..ir.region import fused_region, parse_region
from ..ops import op_of
from . import nodes as n
from .base import Transform
from .costs import cost

_FREE = {*n.VIEWS, n.GETITEM, "aten.sym_size", "operator.mul"}
_REASONS = {
    "aten.matmul": "a product of two values that both depend on tokens",
    "aten.topk": "routing is left as the model computes it", "aten.gather": "routing is left as the model computes it",
    "aten.softmax": "no canonical op has a softmax outside attention",
    "aten.cat": "joins values that are made separately",
}  # fmt: skip


class Explain(Transform):
    """Writes `metadata["explain"]`, a list with one record for each call that will be an instruction; changes no node.

    A record has `op`, `kind` ("canonical", "region", "generic" or "author"), `via` ("registry": a hook of the model's
    library named it; "pattern": found in the graph; "numbers": a loop of the model's code gave the same numbers;
    "author": the model's own operator; "generic"), `source` (the model's line) and, where it applies, `fused` (lines of
    what became one call), `states`, `module` (the path of the model's module) and `why`; and what it costs (`costs`).
    """

    name = "explain"

    def run(self, ir: ModelIR) -> bool:
        ir.metadata["explain"] = list(_records(ir))
        return False


def _records(ir: ModelIR) -> Iterator[dict[str, Any]]:
    for node in ir.graph.nodes:
        if node.op != "call_function" or n.op_name(node) in _FREE:
            continue
        record: dict[str, Any] = {"op": n.op_name(node).removeprefix("autodeploy."), **_way(node)}
        record["source"] = n.source(node)
        if node.meta.get("fused"):
            record["fused"] = node.meta["fused"]
        if node.meta.get("states"):
            record["states"] = node.meta["states"]
        if node.meta.get("module"):
            record["module"] = node.meta["module"]
        yield record | cost(ir, node)


def _way(node: Node) -> dict[str, Any]:
    op = op_of(node.target)
    if op is not None:
        return {"kind": "canonical", "via": node.meta.get("via", "registry")}
    if node.target is fused_region:
        size = len(parse_region(node.kwargs["program"]).nodes)
        return {"op": "region", "kind": "region", "via": "generic", "why": f"{size} pointwise operations"}
    body = body_of(node)
    if body is not None:
        lines = ", ".join(line for line in node.meta.get("covers", ())[:3] if line)
        return {"op": "over_keys", "kind": "canonical", "via": "keys",
                "why": f"code over a sequence's own keys in {len(body.graph.nodes)} calls: {lines}"}
    name = n.op_name(node)
    if not name.startswith("aten."):
        return {"op": node.target._schema.name, "kind": "author", "via": "author",
                "why": "token-wise because its author says so"}
    return {"kind": "generic", "via": "generic", "why": _REASONS.get(name, "no canonical op stands for it")}


def summary(records: list[dict[str, Any]]) -> dict[str, int]:
    """How many calls went each way: `canonical (registry)`, `region`, ..."""
    counts: dict[str, int] = {}
    for r in records:
        key = f"{r['kind']} {r['op']}" + (f" ({r['via']})" if r["kind"] == "canonical" else "")
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
