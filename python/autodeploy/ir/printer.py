"""A graph as text that can be read and compared line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from .dialect import name_of
from .model_ir import DTYPES, ConstantInfo, ModelIR, ParamInfo


def format_ir(ir: ModelIR, sources: bool = True) -> str:
    """The graph: inputs, parameters with where they come from, constants, states, calls, outputs; one a line.

        add_3: act [1, T, 64] = aten.add(linear_6, add_2)  ; file.py:123 Class.forward

    Names are the nodes' own; T is the number of tokens and R that of wanted rows. The text is a function of the graph
    alone. `sources` adds the model's line to each call.
    """
    return "\n".join(_lines(ir, sources)) + "\n"


def _lines(ir: ModelIR, sources: bool) -> Iterator[str]:
    tokens = ir.T.node.expr
    for name, decl in sorted(ir.states.items()):
        yield f"state {name}: {json.dumps(decl.to_json(name), sort_keys=True)}"
    for node in ir.graph.nodes:
        value = format_value(node.meta.get("val"), tokens)
        if node.op == "placeholder":
            yield f"{_placeholder(ir, str(node.target))} {node.name}: {value}{_origin(ir, str(node.target))}"
        elif node.op == "call_function":
            arguments = [_argument(a) for a in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()]
            states = f" @ {', '.join(node.meta['states'])}" if node.meta.get("states") else ""
            line = f"{node.name}: {value} = {name_of(node)}({', '.join(arguments)}){states}"
            yield f"{line}  ; {node.meta.get('source', '')}" if sources else line
    names = ", ".join(f"{name}={_argument(node)}" for name, node in zip(ir.outputs, ir.output_nodes(), strict=True))
    yield f"return {names}"


def _placeholder(ir: ModelIR, key: str) -> str:
    return "param" if key in ir.params else "constant" if key in ir.constants else "input"


def _origin(ir: ModelIR, key: str) -> str:
    info: ParamInfo | ConstantInfo | None = ir.params.get(key) or ir.constants.get(key)
    if info is None:
        return ""
    if isinstance(info, ConstantInfo):
        return f" <- {info.name}, {info.dtype}"
    parts = " | ".join(f"{s.rows}: {format_expr(s.expr)}" for s in info.segments)
    return f" <- {parts}"


def format_expr(expr: Any) -> str:
    """A weight expression on one line: `binary(f=add, x=a.weight, y=1.0)`; a tensor is its name."""
    if not isinstance(expr, dict):
        return "[" + ", ".join(map(format_expr, expr)) + "]" if isinstance(expr, list) else repr(expr)
    if expr.get("op") in ("tensor", "constant"):
        return str(expr["name"])
    arguments = ", ".join(f"{k}={v if isinstance(v, str) else format_expr(v)}" for k, v in expr.items() if k != "op")
    return f"{expr.get('op', 'data')}({arguments if len(arguments) < 200 else arguments[:200] + '...'})"


def format_value(value: Any, tokens: Any) -> str:
    """`act [1, T, 64]` of a tensor, a list of those, or a size."""
    if isinstance(value, torch.Tensor):
        shape = ", ".join(format_size(s, tokens) for s in value.shape)
        return f"{DTYPES.get(value.dtype, str(value.dtype))} [{shape}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(format_value(v, tokens) for v in value) + ")"
    return format_size(value, tokens)


def format_size(size: Any, tokens: Any) -> str:
    """A size in T (and R, any other symbol): `8*T`."""
    if not isinstance(size, torch.SymInt):
        return str(size)
    names = {symbol: "T" if symbol == tokens else "R" for symbol in size.node.expr.free_symbols}
    text = str(size.node.expr)
    for symbol, name in names.items():
        text = text.replace(str(symbol), name)
    return text


def _argument(x: Any) -> str:
    if isinstance(x, Node):
        return x.name
    if isinstance(x, (list, tuple)):
        return "[" + ", ".join(map(_argument, x)) + "]"
    if isinstance(x, torch.dtype):
        return DTYPES.get(x, str(x))
    return repr(x) if not isinstance(x, (torch.device, torch.layout, torch.memory_format)) else str(x)
