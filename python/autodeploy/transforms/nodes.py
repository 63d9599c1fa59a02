"""Reading FX nodes: names of ops, arguments by name, shapes in tokens, and what a value depends on."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.over_keys import over_keys
from ..ops import op_of

aten = torch.ops.aten
canonical = torch.ops.autodeploy


@cache
def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '').strip('_')}.{getattr(target, '__name__', target)}"


def op_name(node: Any) -> str:
    """`aten.mul`, `autodeploy.linear`, `operator.getitem`, ...: the op of a call without its overload; else ""."""
    return _target_name(node.target) if isinstance(node, Node) and node.op == "call_function" else ""


def is_op(node: Any, *names: str) -> bool:
    """Whether a node calls one of these ops."""
    return op_name(node) in names


@cache
def _signature(target: Any) -> tuple[tuple[str, Any, bool], ...]:
    return tuple((a.name, a.default_value, a.has_default_value()) for a in target._schema.arguments)


def bound(node: Node) -> dict[str, Any]:
    """Arguments of a call of a torch operator by their schema names, defaults filled in."""
    arguments: dict[str, Any] = {}
    for i, (name, default, has_default) in enumerate(_signature(node.target)):
        if i < len(node.args):
            arguments[name] = node.args[i]
        elif name in node.kwargs:
            arguments[name] = node.kwargs[name]
        elif has_default:
            arguments[name] = default
        else:
            arguments[name] = None
    return arguments


def is_tensor(node: Any) -> bool:
    """Whether a node's result is one tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def dtype_of(node: Node) -> torch.dtype:
    return node.meta["val"].dtype


def shape_of(node: Node) -> torch.Size:
    return node.meta["val"].shape


def rank(node: Node) -> int:
    return len(node.meta["val"].shape)


def last_size(node: Node) -> int | None:
    """Size of the last dim, None for a scalar or a size that is not a number."""
    shape = shape_of(node)
    return shape[-1] if len(shape) and isinstance(shape[-1], int) else None


def normal_dim(dim: int, ndim: int) -> int:
    """A dim counted from the front."""
    return dim % ndim if ndim else 0


def as_list(x: Any) -> list[Any]:
    """An int-or-list argument as a list."""
    return list(x) if isinstance(x, (list, tuple)) else [x]


def tokens_in(size: Any) -> int:
    """k of a size that is k times a row symbol (T, or R once rows were selected); 0 for a number.

    Raises:
        ValueError: the size is symbolic and no multiple of one symbol.
    """
    if isinstance(size, int):
        return 0
    return _coefficient(size.node.expr)


@lru_cache(maxsize=4096)
def _coefficient(expr: Any) -> int:
    if expr.is_number:
        return 0
    symbols = list(expr.free_symbols)
    k = expr.coeff(symbols[0]) if len(symbols) == 1 else 0
    if not k or not k.is_Integer or k < 1 or expr != k * symbols[0]:
        raise ValueError(f"size {expr} is no multiple of the number of tokens")
    return int(k)


def is_regular(shape: Any) -> bool:
    """Whether every size is a number or a multiple of the number of tokens."""
    try:
        return all(tokens_in(s) >= 0 for s in shape)
    except ValueError:
        return False


def mixes_tokens(node: Node) -> bool:
    """Whether a call is a token mixer: the only calls that know where a sequence begins."""
    op = op_of(node.target)
    return node.target is over_keys or (op is not None and op.mixes_tokens)


def is_symbolic(size: Any) -> bool:
    """Whether a size depends on the number of tokens."""
    return not isinstance(size, int) and bool(size.node.expr.free_symbols)


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every number of tokens (asks no guard of the shape environment)."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return _size_key(a) == _size_key(b)


def _size_key(size: Any) -> Any:
    if isinstance(size, int):
        return size
    expr = size.node.expr
    return int(expr) if expr.is_number else expr


def shape_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A hashable form of a shape."""
    return tuple(_size_key(s) for s in tensor.shape)


def same_shape(a: Node, b: Node) -> bool:
    return shape_key(a.meta["val"]) == shape_key(b.meta["val"])


def has_tokens(node: Node) -> bool:
    """Whether some result of a node has a dim that depends on the number of tokens."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(is_symbolic(s) for v in values if isinstance(v, torch.Tensor) for s in v.shape)


def tensor_inputs(node: Node) -> Iterator[Node]:
    """Input nodes that are tensors or tuples of tensors, once each."""
    for n in node.all_input_nodes:
        if not isinstance(n.meta.get("val"), (torch.SymInt, int, float, bool)):
            yield n


def size_inputs(node: Node) -> list[Node]:
    """Input nodes that are numbers made from sizes."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), (torch.SymInt, torch.SymFloat, int))]


def calls(graph: Graph, *names: str) -> list[Node]:
    """Calls of these ops, in graph order."""
    return [n for n in graph.nodes if op_name(n) in names]


GETITEM = "operator.getitem"
assert _target_name(operator.getitem) == GETITEM


VIEWS = (
    "aten.reshape", "aten.permute", "aten.expand", "aten.unsqueeze", "aten.squeeze", "aten.slice", "aten.select",
)  # fmt: skip


def is_view(node: Any) -> bool:
    """A view in its normal form."""
    return op_name(node) in VIEWS


CASTS = ("aten.to", "aten._to_copy")


def is_cast(node: Any) -> bool:
    """A conversion of dtype (capture and `normalize` leave no other kind of `aten.to`)."""
    return op_name(node) in CASTS


def is_float_cast(node: Any) -> bool:
    """A conversion between floating types."""
    return is_cast(node) and dtype_of(node).is_floating_point and dtype_of(node.args[0]).is_floating_point


def without_casts(node: Any) -> Any:
    """The value before conversions between floating types."""
    while is_float_cast(node):
        node = node.args[0]
    return node


def number(x: Any) -> float | int | bool | None:
    """A Python number argument, else None."""
    return x if isinstance(x, (int, float, bool)) else None


def only_user(node: Node) -> Node | None:
    """The user of a value that has exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def source(node: Node) -> str:
    """The model's line behind a node, "" when unknown."""
    return node.meta.get("source") or ""


def permutation(node: Node) -> list[int] | None:
    """The order of dims of a permute, transpose or t call: result dim i is dim order[i] of the operand."""
    x = node.args[0]
    ndim, name = rank(x), op_name(node)
    order = list(range(ndim))
    if name == "aten.permute":
        return [normal_dim(d, ndim) for d in node.args[1]]
    if name == "aten.transpose":
        i, j = normal_dim(node.args[1], ndim), normal_dim(node.args[2], ndim)
    elif name in ("aten.t", "aten.numpy_T", "aten.mT") and ndim <= 2:
        i, j = 0, ndim - 1
    elif name == "aten.mT":
        i, j = ndim - 2, ndim - 1
    elif name == "aten.numpy_T":
        return order[::-1]
    else:
        return None
    if ndim:
        order[i], order[j] = order[j], order[i]
    return order


def is_whole_slice(node: Node) -> bool:
    """Whether a slice keeps all of its dim (whatever the number of tokens)."""
    a = bound(node)
    size = shape_of(a["self"])[a["dim"]]
    if a["step"] != 1 or a["start"] not in (None, 0):
        return False
    end = a["end"]
    if end is None or (isinstance(end, int) and end >= 2**62):
        return True
    return same_size(end.meta["val"] if isinstance(end, Node) else end, size)


def reduced_dims(node: Node, a: dict[str, Any]) -> list[int]:
    """Dims that a reduction runs over."""
    ndim = rank(node.args[0])
    dim = a.get("dim", a.get("dims"))
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(ndim))
    return [normal_dim(d, ndim) for d in as_list(dim)]
