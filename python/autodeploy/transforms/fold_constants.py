"""Parts of the graph that no token reaches: computed once, at compile time or while weights are loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..ir import DTYPES, ConstantInfo, ModelIR, ParamInfo
from ..ir.model_ir import Segment
from . import nodes as n
from .base import Transform
from .placeholders import add_placeholder, drop_unused, fresh_name
from .rewrite import erase_dead, replace

_LARGEST_CONSTANT = 1 << 24  # elements of a constant that is worth computing at compile time

_UNARY = {
    "aten.neg": "neg", "aten.exp": "exp", "aten.log": "log", "aten.log1p": "log1p", "aten.expm1": "expm1",
    "aten.sqrt": "sqrt", "aten.reciprocal": "reciprocal", "aten.abs": "abs", "aten.square": "square",
}  # fmt: skip
_BINARY = {"aten.add": "add", "aten.sub": "sub", "aten.rsub": "rsub", "aten.mul": "mul", "aten.div": "div"}


class FoldConstants(Transform):
    """Folds what does not depend on the step's tokens.

    1. A call whose inputs are all constants is computed now, in float32 where the model says bfloat16: `act` is bound
       when the artifact is loaded.
    2. A call on parameters that the weight program can express (layout, elementwise arithmetic, conversions) makes a
       new parameter with that expression; constants may take part. The original goes when nothing reads it any more.
    3. Only what a step's value, a canonical op or an output reads becomes a placeholder.
    4. Random numbers are not folded.
    """

    name = "fold_constants"

    def run(self, ir: ModelIR) -> bool:
        known: dict[Node, _Known] = {}
        for node in ir.graph.nodes:
            found = _known(ir, node, known)
            if found is not None:
                known[node] = found
        changed = False
        for node in list(ir.graph.nodes):
            if node.op != "call_function" or node not in known or n.dtype_of(node) not in DTYPES:
                continue
            if any(user not in known for user in node.users):
                replace(node, _placeholder(ir, node, known[node]))
                changed = True
        changed = bool(erase_dead(ir.graph)) or changed
        return drop_unused(ir) or changed


@dataclass(frozen=True)
class _Known:
    """A value without tokens: a constant's `value`, or a parameter's `segments` over the parameters `fqns`."""

    dtype: str
    shape: tuple[int, ...]
    value: torch.Tensor | None = None
    key: str | None = None  # of a constant that exists
    segments: tuple[Segment, ...] = ()
    fqns: tuple[str, ...] = ()
    name: str = ""

    @property
    def expr(self) -> dict[str, Any]:
        if len(self.segments) == 1:
            return self.segments[0].expr
        return {"op": "cat", "xs": [s.expr for s in self.segments], "dim": 0}


def _known(ir: ModelIR, node: Node, known: dict[Node, _Known]) -> _Known | None:
    if node.op == "placeholder":
        key = str(node.target)
        if key in ir.params:
            p = ir.params[key]
            return _Known(p.dtype, tuple(p.shape), segments=tuple(p.segments), fqns=p.fqns, name=p.name)
        if key in ir.constants:
            c = ir.constants[key]
            return _Known(c.dtype, tuple(c.value.shape), value=c.value, key=key, name=c.name)
        return None
    if not n.is_tensor(node) or n.has_tokens(node) or node.op != "call_function":
        return None
    if n.dtype_of(node).is_complex or n.size_inputs(node) or "rand" in n.op_name(node):
        return None
    if not n.op_name(node).startswith("aten.") and n.op_name(node) != n.GETITEM:
        return None
    inputs = node.all_input_nodes
    if all(x in known and known[x].value is not None for x in inputs):
        return _computed(node, known)
    if all(x in known for x in inputs):
        return _expression(ir, node, known)
    return None


def _computed(node: Node, known: dict[Node, _Known]) -> _Known | None:
    """Rule 1."""
    value = node.meta["val"]
    if math.prod(value.shape) > _LARGEST_CONSTANT or n.op_name(node) == n.GETITEM:
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda x: known[x].value)
    args, kwargs = _wide((args, kwargs))
    with torch.no_grad():
        result = node.target(*args, **kwargs).contiguous().clone()
    if result.dtype in (torch.bfloat16, torch.float16, torch.float64):
        result = result.float()
    dtype = DTYPES.get(value.dtype, "f32" if value.dtype.is_floating_point else "i64")
    return _Known(dtype, tuple(result.shape), value=result, name=_stem(node, known))


def _wide(x: Any) -> Any:
    """Arguments with bfloat16 as a dtype replaced by float32."""
    if isinstance(x, (list, tuple)):
        return type(x)(_wide(y) for y in x) if not isinstance(x, torch.Size) else x
    if isinstance(x, dict):
        return {k: _wide(v) for k, v in x.items()}
    return torch.float32 if x is torch.bfloat16 else x


def _stem(node: Node, known: dict[Node, _Known]) -> str:
    names = [known[x].name for x in node.all_input_nodes]
    return next((x for x in names if x), node.name)


def _expression(ir: ModelIR, node: Node, known: dict[Node, _Known]) -> _Known | None:
    """Rule 2."""
    shape = tuple(int(s) for s in n.shape_of(node))
    if n.dtype_of(node) not in DTYPES:
        return None
    dtype = DTYPES[n.dtype_of(node)]
    expr = _expr_of(ir, node, known)
    if expr is None:
        return None
    fqns = tuple(dict.fromkeys(f for x in node.all_input_nodes for f in known[x].fqns))
    rows = shape[0] if shape else 1
    first = next(known[x] for x in node.all_input_nodes if known[x].fqns)
    if expr is first.expr and len(node.all_input_nodes) == 1 and shape == first.shape:
        return _Known(dtype, shape, segments=first.segments, fqns=fqns, name=first.name)  # a conversion
    return _Known(dtype, shape, segments=(Segment(rows, expr),), fqns=fqns, name=first.name)


def _expr_of(ir: ModelIR, node: Node, known: dict[Node, _Known]) -> dict[str, Any] | None:
    name = n.op_name(node)
    a = n.bound(node) if hasattr(node.target, "_schema") else {}

    def leaf(x: Node) -> dict[str, Any]:
        info = known[x]
        return {"op": "constant", "name": _constant_key(ir, x, info)} if info.value is not None else info.expr

    if name in ("aten.cat", "aten.concat"):
        return {"op": "cat", "xs": [leaf(x) for x in a["tensors"]], "dim": n.normal_dim(a["dim"], n.rank(node))}
    x = node.args[0] if node.args else None
    if not isinstance(x, Node):
        if name in ("aten.add", "aten.mul", "aten.sub", "aten.div") and isinstance(node.args[1], Node):
            swapped = {"aten.add": "add", "aten.mul": "mul", "aten.sub": "rsub", "aten.div": "rdiv"}[name]
            return {"op": "binary", "f": swapped, "x": leaf(node.args[1]), "y": float(node.args[0])}
        return None
    if name in ("aten.to", "aten._to_copy"):
        return leaf(x) if n.is_float_cast(node) else None
    if name in ("aten.reshape", "aten.view", "aten.unsqueeze", "aten.squeeze"):
        return {"op": "reshape", "x": leaf(x), "shape": [int(s) for s in n.shape_of(node)]}
    if name == "aten.permute":
        return {"op": "permute", "x": leaf(x), "dims": [n.normal_dim(d, n.rank(x)) for d in a["dims"]]}
    if name == "aten.slice":
        dim = n.normal_dim(a["dim"], n.rank(x))
        start, stop, step = slice(a["start"], a["end"], a["step"]).indices(int(n.shape_of(x)[dim]))
        return {"op": "slice", "x": leaf(x), "dim": dim, "start": start, "stop": max(start, stop), "step": step}
    if name == "aten.select":
        dim = n.normal_dim(a["dim"], n.rank(x))
        at = a["index"] % int(n.shape_of(x)[dim])
        part = {"op": "slice", "x": leaf(x), "dim": dim, "start": at, "stop": at + 1, "step": 1}
        return {"op": "reshape", "x": part, "shape": [int(s) for s in n.shape_of(node)]}
    if not n.dtype_of(node).is_floating_point or not n.dtype_of(x).is_floating_point:
        return None
    if name in _UNARY:
        return {"op": "unary", "f": _UNARY[name], "x": leaf(x)}
    if name == "aten.pow" and n.number(a["exponent"]) is not None:
        return {"op": "binary", "f": "pow", "x": leaf(x), "y": float(a["exponent"])}
    if name == "aten.rsqrt":
        return {"op": "unary", "f": "reciprocal", "x": {"op": "unary", "f": "sqrt", "x": leaf(x)}}
    if name in _BINARY and a.get("alpha", 1) == 1 and a.get("rounding_mode") is None:
        other = a["other"]
        if isinstance(other, Node):
            return {"op": "binary", "f": _BINARY[name], "x": leaf(x), "y": leaf(other)}
        return {"op": "binary", "f": _BINARY[name], "x": leaf(x), "y": float(other)}
    return None


def _constant_key(ir: ModelIR, node: Node, info: _Known) -> str:
    """The constant's key; a constant that was computed on the way is added."""
    if info.key is not None:
        return info.key
    key, name = fresh_name(ir, info.name or node.name)
    assert info.value is not None
    ir.constants[key] = ConstantInfo(name, info.dtype, info.value)
    return key


def _placeholder(ir: ModelIR, node: Node, info: _Known) -> Node:
    """Rule 3: a placeholder with the value of `node`."""
    key, name = fresh_name(ir, info.name or node.name)
    if info.value is not None:
        ir.constants[key] = ConstantInfo(name, info.dtype, info.value)
    else:
        ir.params[key] = ParamInfo(name, info.shape, info.dtype, list(info.segments), info.fqns)
    return add_placeholder(ir, key, node)


