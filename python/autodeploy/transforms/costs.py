"""What a call costs: arithmetic, weights, cache traffic and activations per token, from the graph's own shapes.

Everything is counted for one token of one sequence; what grows with the number of tokens before it (the length) is kept
apart as its slope. Counts, not bytes, where the type is chosen later: `act` elements are counted as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.fx import Node

from ..ir import ModelIR
from ..ir.over_keys import BodyIR, body_of
from ..ir.region import fused_region, parse_region
from ..ops import op_of
from . import nodes as n

_ACT, _WIDE = (torch.bfloat16, torch.float16), 4

# op -> function(shapes by operand name, elements of the first result per token) -> operations per token. A product and
# a sum are two operations; a transcendental function is one.
_RECURRENT: dict[str, Callable[[dict[str, Any]], int]] = {
    "ssd": lambda s: 5 * s["x"][1] * s["x"][2] * s["b"][2],
    "selective_scan": lambda s: 6 * s["a"][0] * s["a"][1],
    "linear_attention": lambda s: 5 * s["k"][1] * s["k"][2] * s["v"][2],
    "gated_delta_rule": lambda s: 7 * s["v"][1] * s["k"][2] * s["v"][2],
    "mlstm": lambda s: 6 * s["k"][1] * s["k"][2] * s["v"][2],
    "linear_scan": lambda s: 2 * s["x"][1],
    "wkv": lambda s: 12 * s["v"][1],
    "causal_conv1d": lambda s: 2 * s["weight"][0] * s["weight"][1],
}
_PER_ELEMENT = {"rms_norm": 4, "layer_norm": 6, "add_rms_norm": 5, "add_layer_norm": 7, "rope": 3, "embedding": 0,
                "select_rows": 0, "window": 0}  # fmt: skip


def cost(ir: ModelIR, node: Node) -> dict[str, Any]:
    """The costs of one call, a part of its `explain` record:

    flops: operations per token, or None where nobody can tell (an author's operator, an op without a rule here);
    flops_per_length: more of them for each token before it; window: tokens that count at most (0: all).
    params: names of the parameters that it reads, once per step. lookup: whether a row of them is read per token.
    params_share: the part of them that one token needs (experts).
    activations: bytes of values read and written per token, with 4 bytes for an `act` element.
    cache_write, cache_read: bytes per token, with 4 bytes for an `act` element; cache_read_per_length as above.
    """
    found: dict[str, Any] = {"flops": _flops(node), "activations": _activations(node)}
    names = [ir.params[str(x.target)].name for x in node.all_input_nodes if str(x.target) in ir.params]
    if names:
        found["params"] = list(dict.fromkeys(names))
    for name in node.meta.get("states", ()):
        _add_state(found, ir.states[name])
    body = body_of(node)
    if body is not None:
        found["flops"], found["flops_per_length"] = _body_flops(body)
    op = op_of(node.target)
    if op is None:
        return found
    a = op.bind(node.args, node.kwargs)
    if op.name == "embedding":
        found["lookup"] = True
    if op.name == "expert_linear":
        experts = int(n.shape_of(a["weight"])[0])
        found["params_share"] = min(1.0, _per_token(a["ids"]) / experts)
    if op.name == "attention":
        q, v = n.shape_of(a["q"]), n.shape_of(a["v"])
        found["flops_per_length"] = 2 * int(q[1]) * (int(q[2]) + int(v[2]))
        found["window"] = int(a["window"] or a["chunk"] or 0)
    return found


def _body_flops(body: BodyIR) -> tuple[int, int]:
    """Operations of a body for one query: those that do not depend on its keys, and those for each key."""
    queries, blocks = (x.meta["val"].node.expr for x in list(body.graph.nodes)[:2])
    fixed, per_block = 0, 0
    for node in body.graph.nodes:
        value = node.meta["val"]
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or n.is_view(node):
            continue
        each = 2 * n.shape_of(node.args[0])[-1] if n.is_op(node, "aten.matmul", "aten.bmm") else 1
        count = sympy.Integer(1)
        for size in (each, *value.shape):
            count = count * (size if isinstance(size, int) else size.node.expr)
        count = sympy.expand(count.xreplace({queries: sympy.Integer(1)}))
        per_block += int(count.coeff(blocks, 1))
        fixed += int(count.coeff(blocks, 0))
    return fixed, -(-per_block // body.block)


def _add_state(found: dict[str, Any], decl: Any) -> None:
    size = sum(math.prod(c.shape) * (8 if c.dtype == "i64" else 1 if c.dtype == "bool" else _WIDE)
               for c in decl.components)  # fmt: skip
    if decl.kind == "paged":
        found["cache_write"] = found.get("cache_write", 0) + size
        found["cache_read_per_length"] = found.get("cache_read_per_length", 0) + size
        found["window"] = decl.window or decl.chunk or 0
    else:
        found["cache_write"] = found.get("cache_write", 0) + size
        found["cache_read"] = found.get("cache_read", 0) + size


def _per_token(x: Node | torch.Tensor) -> int:
    """Elements of a value for each token (or wanted row); of a value without tokens, none."""
    shape = x.meta["val"].shape if isinstance(x, Node) else x.shape
    rows = [n.tokens_in(s) for s in shape if n.is_symbolic(s)]
    if not rows:
        return 0
    return rows[0] * math.prod(int(s) for s in shape if not n.is_symbolic(s))


def _activations(node: Node) -> int:
    value = node.meta["val"]
    results = value if isinstance(value, (tuple, list)) else (value,)
    total = 0
    for x in [*(x.meta["val"] for x in node.all_input_nodes if n.is_tensor(x)), *results]:
        if isinstance(x, torch.Tensor) and _countable(x):
            total += _per_token(x) * (_WIDE if x.dtype in _ACT else x.element_size())
    return total


def _countable(x: torch.Tensor) -> bool:
    return sum(n.is_symbolic(s) for s in x.shape) <= 1


def _flops(node: Node) -> int | None:
    value = node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(first, torch.Tensor) or not _countable(first):
        return None
    out = _per_token(first)
    op = op_of(node.target)
    if op is None:
        return _generic(node, out)
    a = op.bind(node.args, node.kwargs)
    tensors = {name: x for name, x in a.items() if n.is_tensor(x)}
    shapes = {name: [s if n.is_symbolic(s) else int(s) for s in n.shape_of(x)] for name, x in tensors.items()}
    if op.name in ("linear", "expert_linear"):
        return 2 * out * shapes["weight"][-1]
    if op.name == "attention":
        return 0
    if op.name in _RECURRENT:
        return int(_RECURRENT[op.name](shapes))
    return _PER_ELEMENT[op.name] * out if op.name in _PER_ELEMENT else None


def _generic(node: Node, out: int) -> int | None:
    if node.target is fused_region:
        return len(parse_region(node.kwargs["program"]).nodes) * out
    name = n.op_name(node)
    if name in ("aten.matmul", "aten.bmm", "aten.mm"):
        return 2 * out * int(n.shape_of(node.args[0])[-1])
    if name in ("aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.prod", "aten.argmax", "aten.cumsum"):
        return _per_token(node.args[0])
    if name in ("aten.softmax", "aten.log_softmax"):
        return 5 * out
    if name.startswith("aten."):
        return out if name in ("aten.topk", "aten.sort") else 0
    return None
