"""Normal forms of filled tensors, reductions and products."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch.fx import Node

from . import nodes as n
from .forms import form, full, spelled
from .nodes import aten
from .rewrite import Rewriter, replace

# --- 7 constants

@form("aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty",
       "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.new_empty_strided",
       "aten.empty_strided", "aten.scalar_tensor")
def _full(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    value = a.get("fill_value", a.get("s", 1 if "ones" in n.op_name(node) else 0))
    shape = n.shape_of(node)
    if n.number(value) is None or sum(map(n.is_symbolic, shape)) > 1 or not n.is_regular(shape):
        return None
    return full(r, node, n.shape_of(node), value, n.dtype_of(node))


@form("aten.scatter")
def _scatter(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    if "value" not in a or n.number(a["value"]) is None or a.get("reduce"):
        return None
    if not n.is_regular(n.shape_of(a["index"])) or sum(map(n.is_symbolic, n.shape_of(a["index"]))) > 1:
        return None
    source = full(r, node, n.shape_of(a["index"]), a["value"], n.dtype_of(node))
    return r.call(aten.scatter.src, a["self"], a["dim"], a["index"], source, like=node, before=node)


# --- 8 reductions

@form("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def _softmax(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dim = a["self"], n.normal_dim(a["dim"], n.rank(node))
    target = aten.log_softmax.int if "log" in n.op_name(node) else aten.softmax.int
    if n.dtype_of(x) != n.dtype_of(node):
        x = r.call(aten.to.dtype, x, n.dtype_of(node), like=node, before=node)
    return spelled(r, node, target, x, dim)


@form("aten.max", "aten.min")
def _extreme(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    largest = n.op_name(node) == "aten.max"
    if "other" in a:
        return r.call(aten.maximum.default if largest else aten.minimum.default, a["self"], a["other"], like=node,
                      before=node)
    if "dim" not in a:
        return r.call(aten.amax.default if largest else aten.amin.default, a["self"], list(range(n.rank(a["self"]))),
                      like=node, before=node)
    dim, keep = n.normal_dim(a["dim"], n.rank(a["self"])), a["keepdim"]
    for user in list(node.users):
        if user.args[1] == 0:
            target = aten.amax.default if largest else aten.amin.default
            new = r.call(target, a["self"], [dim], keep, like=user, before=user)
        else:
            target = aten.argmax.default if largest else aten.argmin.default
            new = r.call(target, a["self"], dim, keep, like=user, before=user)
        replace(user, new)
    return None


@form("aten.sum", "aten.mean", "aten.amax", "aten.amin")
def _reduce(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x = a["self"]
    if a.get("dtype") is not None and n.dtype_of(x) != n.dtype_of(node):
        x = r.call(aten.to.dtype, x, n.dtype_of(node), like=node, before=node)
    targets = {"aten.sum": aten.sum.dim_IntList, "aten.mean": aten.mean.dim, "aten.amax": aten.amax.default,
               "aten.amin": aten.amin.default}
    return spelled(r, node, targets[n.op_name(node)], x, n.reduced_dims(node, a), a.get("keepdim", False))


@form("aten.var", "aten.std")
def _variance(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dims = a["self"], n.reduced_dims(node, a)
    correction = a.get("correction", int(a.get("unbiased", True)))
    correction = 1 if correction is None else correction
    if any(n.is_symbolic(n.shape_of(x)[d]) for d in dims):
        return None
    count = math.prod(int(n.shape_of(x)[d]) for d in dims)
    mean = r.call(aten.mean.dim, x, dims, True, like=node, before=node)
    centred = r.call(aten.sub.Tensor, x, mean, like=node, before=node)
    square = r.call(aten.mul.Tensor, centred, centred, like=node, before=node)
    out = r.call(aten.mean.dim, square, dims, a.get("keepdim", False), like=node, before=node)
    if correction:
        out = r.call(aten.mul.Tensor, out, count / (count - correction), like=node, before=node)
    return r.call(aten.sqrt.default, out, like=node, before=node) if n.op_name(node) == "aten.std" else out


@form("aten.linalg_vector_norm", "aten.norm")
def _norm(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, order = a.get("self", node.args[0]), a.get("ord", a.get("p", 2))
    dims, keep = n.reduced_dims(node, a), a.get("keepdim", False)
    if n.dtype_of(x) != n.dtype_of(node):
        x = r.call(aten.to.dtype, x, n.dtype_of(node), like=node, before=node)
    if order in (2, 2.0, None):
        square = r.call(aten.mul.Tensor, x, x, like=node, before=node)
        total = r.call(aten.sum.dim_IntList, square, dims, keep, like=node, before=node)
        return r.call(aten.sqrt.default, total, like=node, before=node)
    size = r.call(aten.abs.default, x, like=node, before=node)
    if order == 1:
        return r.call(aten.sum.dim_IntList, size, dims, keep, like=node, before=node)
    return r.call(aten.amax.default, size, dims, keep, like=node, before=node) if order == math.inf else None


@form("aten.logsumexp")
def _logsumexp(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, dims = a["self"], n.reduced_dims(node, a)
    top = r.call(aten.amax.default, x, dims, True, like=node, before=node)
    shifted = r.call(aten.exp.default, r.call(aten.sub.Tensor, x, top, like=node, before=node), like=node, before=node)
    total = r.call(aten.sum.dim_IntList, shifted, dims, True, like=node, before=node)
    out = r.call(aten.add.Tensor, r.call(aten.log.default, total, like=node, before=node), top, like=node, before=node)
    return out if a["keepdim"] else r.call(aten.squeeze.dims, out, dims, like=node, before=node)


@form("aten.argsort")
def _argsort(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    dim = n.normal_dim(a["dim"], n.rank(node))
    pair = r.call(aten.sort.default, a["self"], dim, a["descending"], like=node, before=node)
    return r.call(operator.getitem, pair, 1, like=node, before=node)


# --- 9 products

@form("aten.matmul", "aten.bmm", "aten.mm")
def _matmul(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    x, y = node.args[:2]
    if n.rank(x) < 2 or n.rank(y) < 2 or not n.same_size(n.shape_of(x)[-1], 1):
        return None
    return r.call(aten.mul.Tensor, x, y, like=node, before=node)  # [.., M, 1] x [.., 1, N]


@form("aten.baddbmm")
def _baddbmm(r: Rewriter, node: Node, a: dict[str, Any]) -> Node | None:
    bias = a["self"]
    if n.has_tokens(bias) or a["beta"] != 1 or a["alpha"] != 1:
        return None
    product = r.call(aten.matmul.default, a["batch1"], a["batch2"], like=node, before=node)
    return r.call(aten.add.Tensor, product, bias, like=node, before=node)
