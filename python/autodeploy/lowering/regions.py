"""Fused regions: pointwise programs over operands that broadcast by stride 0."""

from __future__ import annotations

from autodeploy.ir.region import parse_region

from .call import Call
from .canonical_ops import may_alias
from .dims import ONE
from .views import View, broadcast_shapes


def lower_region(call: Call) -> View | list[View]:
    """Emits a region; returns its result, or results."""
    region = parse_region(call.node.kwargs["program"])
    inputs: list[View] = [call.resolve(a) for a in call.node.args]
    for i, (view, dtype) in enumerate(zip(inputs, region.inputs, strict=True)):
        if view.dtype != dtype:
            raise call.error(f"expected input {i} in {dtype}, found {view.dtype}")
    shape = broadcast_shapes(*(v.shape for v in inputs)) if inputs else call.shape()
    ones = [d for d, size in enumerate(shape) if size == ONE]
    operands = [v.expand(list(shape)).squeeze(ones) for v in inputs]
    kept = [size for size in shape if size != ONE]
    results = [call.new_value(kept, call.dtype(i), i) for i in range(len(call.results))]
    alias = []
    free = list(range(len(operands)))
    for r in range(len(results)):
        taken = next((i for i in free if may_alias(call.builder, operands, results, r, i)), None)
        if taken is not None:
            free.remove(taken)
            alias.append((r, taken))
    call.emit("region", operands, results, {"region": call.builder.region(region)}, alias=alias)
    shaped = [call.viewed(v, lambda v, i=i: v.reshape(call.shape(i))) for i, v in enumerate(results)]
    return shaped[0] if len(shaped) == 1 else shaped
