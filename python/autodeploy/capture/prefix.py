"""Learned rows that a model puts before its tokens: reserved token ids that every request begins with.

A model with such a prefix (meta tokens, soft prompts) computes P + T rows from T tokens: it joins P rows of a parameter
and the embedded tokens, and drops P rows of the result. For a step that holds tokens of many sequences, cut anywhere,
that has no meaning; but P more ids of the vocabulary, V .. V + P - 1, whose embeddings are the rows, have. So

1. the export is made again of sequences that include the prefix: the model gets the tokens behind it, and every size in
   between is T again (`WatchPrefix` tells how long it is);
2. the joined table [V + P, H] is looked up by all token ids in the place of the join;
3. positions that the model joins of 0 .. P - 1 and its own are the step's positions;
4. dropping the prefix's rows drops nothing: nobody asks for their logits. What is computed behind it must treat tokens
   one by one, else the model is refused.

The ids are in the Program's metadata, `prefix_tokens`; whoever runs it puts them before every prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from autodeploy.ir import ModelIR, ParamInfo
from autodeploy.ir.model_ir import Segment

from .errors import CaptureError
from .recurrences.numbers import node_of

aten = torch.ops.aten

_LONGEST = 1 << 14
# Calls that pass rows on as they are.
_SHAPED = {"view", "reshape", "unsqueeze", "squeeze", "expand", "expand_as", "repeat", "contiguous", "clone", "alias",
           "detach", "to", "_to_copy", "type_as", "dropout", "lift_fresh_copy", "flatten"}  # fmt: skip
# Calls behind the dropped rows that compute each token's rows alone, wherever its dim stands.
_POINTWISE = {"abs", "add", "clamp", "div", "exp", "gelu", "log", "maximum", "minimum", "mul", "neg", "pow",
              "reciprocal", "relu", "rsqrt", "rsub", "sigmoid", "silu", "softplus", "sqrt", "square", "sub", "tanh",
              "where"}  # fmt: skip
_LAST_DIM = {"linear", "layer_norm", "rms_norm", "mean", "sum", "softmax", "log_softmax", "amax"}


class PrefixFound(CaptureError):
    """The model that is being exported joins `length` rows of a parameter with its embedded tokens: export it anew."""

    def __init__(self, length: int):
        super().__init__(f"[prefix] expected no learned rows before the tokens, found {length}")
        self.length = length


class WatchPrefix(TorchFunctionMode):
    """Within an export without a prefix: raises PrefixFound where the model joins one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.cat, torch.concat, torch.concatenate):
            tensors = args[0] if args else kwargs.get("tensors", ())
            length = _length(tensors, args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0)))
            if length:
                raise PrefixFound(length)
        return func(*args, **kwargs)


def _length(tensors: Any, dim: int) -> int:
    """How many rows of a parameter stand first in cat([rows, embedded tokens]); 0 for any other call."""
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 2:
        return 0
    rows, tokens = tensors
    length = rows.shape[dim]
    if _is_symbol(length) or not 0 < int(length) <= _LONGEST or not _is_symbol(tokens.shape[dim]):
        return 0
    before, behind = node_of(rows), node_of(tokens)
    if before is None or behind is None or _name(_unshaped(behind)) != "embedding":
        return 0
    return int(length) if _unshaped(before).op == "placeholder" else 0


def join_prefix(ir: ModelIR, length: int, vocab_size: int) -> None:
    """Rules 2 to 4, on the graph of an export with the prefix; and the metadata.

    Raises:
        CaptureError: something else is done with the tokens behind the prefix, or with its rows.
    """
    joined = [_joined_table(ir, node, length, vocab_size) for node in list(ir.graph.nodes) if _is_join(node, length)]
    joined += [_joined_positions(ir, node, length) for node in list(ir.graph.nodes) if _name(node) in ("cat", "concat")]
    if not any(joined):
        raise CaptureError(f"[prefix] expected {length} learned rows before the embedded tokens, found them elsewhere")
    _erase_dead(ir.graph)
    _keep_rows(ir, length)
    ir.metadata["prefix_tokens"] = list(range(vocab_size, vocab_size + length))
    ir.report.append(f"{length} learned rows before the tokens are token ids {vocab_size} and up of every request")


def _is_join(node: Node, length: int) -> bool:
    if _name(node) not in ("cat", "concat") or len(node.args[0]) != 2:
        return False
    rows, tokens = node.args[0]
    dim = _dim(node)
    return _same(rows.meta["val"].shape[dim], length) and _name(_unshaped(tokens)) == "embedding"


def _joined_table(ir: ModelIR, join: Node, length: int, vocab_size: int) -> bool:
    """Rule 2."""
    rows, tokens = join.args[0]
    prefix, look_up = _unshaped(rows), _unshaped(tokens)
    table, ids = look_up.args[:2]
    line = join.meta.get("source", "an unknown line")
    known = isinstance(table, Node) and str(table.target) in ir.params and str(prefix.target) in ir.params
    if not known or not _is_cut_of(ids, ir.input("token_ids"), length):
        raise CaptureError(f"[prefix] expected the embedded tokens behind the learned rows, found others at {line}")
    words, learned = ir.params[str(table.target)], ir.params[str(prefix.target)]
    width = words.shape[1]
    if _size(learned.shape) != length * width or words.shape[0] != vocab_size or words.dtype != learned.dtype:
        raise CaptureError(
            f"[prefix] expected a table [{vocab_size}, {width}] and learned rows [{length}, {width}], found "
            f"{list(words.shape)} and {list(learned.shape)} at {line}"
        )
    expr = learned.expr
    if tuple(learned.shape) != (length, width):
        expr = {"op": "reshape", "x": expr, "shape": [length, width]}
    key = f"{table.target}_with_prefix"
    if key not in ir.params:
        shape = (vocab_size + length, width)
        segments = [*words.segments, Segment(length, expr)]
        ir.params[key] = ParamInfo(f"{words.name}+prefix", shape, words.dtype, segments, (*words.fqns, *learned.fqns))
        with ir.graph.inserting_after(_last_placeholder(ir.graph)):
            made = ir.graph.placeholder(key)
        with ir.fake_mode:
            made.meta = {"val": table.meta["val"].new_empty(shape)}
    placeholder = ir.placeholder(key)
    with ir.graph.inserting_before(join):
        new = ir.graph.call_function(aten.embedding.default, (placeholder, ir.input("token_ids")))
        new.meta = {**join.meta, "val": _infer(ir, new)}
        shaped = ir.graph.call_function(aten.unsqueeze.default, (new, 0))
        shaped.meta = {**join.meta, "val": _infer(ir, shaped)}
    if str(shaped.meta["val"].shape) != str(join.meta["val"].shape):
        raise CaptureError(f"[prefix] expected rows [1, T, {width}], found {join.meta['val'].shape} at {line}")
    if shaped.meta["val"].dtype != join.meta["val"].dtype:
        raise CaptureError(f"[prefix] expected the embedding's dtype, found {join.meta['val'].dtype} at {line}")
    join.replace_all_uses_with(shaped, propagate_meta=False)
    return True


def _joined_positions(ir: ModelIR, join: Node, length: int) -> bool:
    """Rule 3: cat([arange(P), positions behind the prefix]) counts all tokens."""
    if not join.users or len(join.args[0]) != 2:
        return False
    first, rest = join.args[0]
    dim = _dim(join)
    start = _unshaped(first)
    counts = _name(start) == "arange" and _same(first.meta["val"].shape[dim], length) and _counts_from_zero(start)
    if not counts or join.meta["val"].dtype.is_floating_point:
        return False
    shift, node = 0, _unshaped(rest)
    while _name(node) in ("add", "sub") and isinstance(node.args[1], int) and not node.kwargs:
        shift += node.args[1] if _name(node) == "add" else -node.args[1]
        node = _unshaped(node.args[0])
    positions = ir.input("positions")
    if shift or not _is_cut_of(node, positions, length):
        return False
    with ir.graph.inserting_before(join):
        new = positions
        for _ in range(join.meta["val"].dim() - 1):
            new = ir.graph.call_function(aten.unsqueeze.default, (new, 0))
            new.meta = {**join.meta, "val": _infer(ir, new)}
    join.replace_all_uses_with(new, propagate_meta=False)
    return True


def _keep_rows(ir: ModelIR, length: int) -> None:
    """Rule 4."""
    symbol = ir.T.node.expr
    cut = symbol - length
    behind: set[Node] = set()  # values without the learned rows, which have them now
    readers: set[Node] = set()  # of a slice that is gone
    whole = None
    for node in list(ir.graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function":
            continue
        line = node.meta.get("source", "an unknown line")
        if not isinstance(value, torch.Tensor):
            if isinstance(value, torch.SymInt) and value.node.expr == cut:
                if whole is None:
                    with ir.graph.inserting_after(_last_placeholder(ir.graph)):
                        whole = ir.graph.call_function(aten.sym_size.int, (ir.input("token_ids"), 0))
                    whole.meta = {"val": ir.T, "source": "the number of tokens"}
                node.replace_all_uses_with(whole, propagate_meta=False)
            continue
        source = node.args[0] if node.args else None
        if _name(node) == "slice" and isinstance(source, Node) and _is_cut_of_rows(node, length, symbol):
            readers.update(node.users)
            node.replace_all_uses_with(source, propagate_meta=False)
            continue
        if node not in readers and not any(x in behind for x in node.all_input_nodes):
            continue
        if not _is_token_wise(node, symbol) or any(_has_size(x, cut) for x in node.all_input_nodes):
            raise CaptureError(
                f"[prefix] expected each token's rows to be computed alone once the learned ones are dropped, found "
                f"{_name(node)} at {line}"
            )
        node.meta = {**node.meta, "val": _infer(ir, node)}
        behind.add(node)
    _erase_dead(ir.graph)
    for node in ir.graph.nodes:
        if node.op == "call_function" and _has_size(node, cut):
            line, shape = node.meta.get("source", "an unknown line"), list(node.meta["val"].shape)
            raise CaptureError(
                f"[prefix] expected no use of the tokens without the learned rows before them, found {_name(node)} of "
                f"shape {shape} at {line}"
            )


def _is_cut_of_rows(node: Node, length: int, symbol: Any) -> bool:
    """x[:, P:] of a dim of T rows."""
    dim = node.args[1] if len(node.args) > 1 else 0
    start = node.args[2] if len(node.args) > 2 else None
    old, new = node.args[0].meta["val"].shape, node.meta["val"].shape
    if start != length or not _is_symbol(old[dim]) or not _is_symbol(new[dim]):
        return False
    return old[dim].node.expr == symbol and new[dim].node.expr == symbol - length


def _is_token_wise(node: Node, symbol: Any) -> bool:
    """Whether a call behind the dropped rows treats tokens one by one, whatever its shapes are: a narrow list."""
    name, value = _name(node), node.meta["val"]
    if sum(_is_symbol(s) for s in value.shape) > 1:
        return False
    first = node.args[0]
    if name in _SHAPED or name in _POINTWISE:
        return True
    if name in ("select", "slice"):
        dim = node.args[1] if len(node.args) > 1 else 0
        return not _is_symbol(first.meta["val"].shape[dim])
    if name in ("matmul", "mm"):
        return not any(_is_symbol(s) for s in node.args[1].meta["val"].shape)
    if name in ("t", "transpose", "permute"):
        return not any(_is_symbol(s) for s in first.meta["val"].shape)
    if name in _LAST_DIM:
        return not _is_symbol(first.meta["val"].shape[-1]) and _over_last(node, name)
    return False


def _over_last(node: Node, name: str) -> bool:
    if name in ("linear", "layer_norm", "rms_norm"):
        return True
    dims = node.args[1] if len(node.args) > 1 else None
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    last = node.args[0].meta["val"].dim() - 1
    return all(d in (-1, last) for d in dims)


# Reading nodes.


def _name(node: Any) -> str:
    target = getattr(node, "target", None)
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return target._schema.name.removeprefix("aten::").split(".")[0]
    return ""


def _unshaped(node: Node) -> Node:
    """The value before calls that only shape or convert it, or take all of it."""
    while _name(node) in _SHAPED or (_name(node) == "slice" and _same_shape(node, node.args[0])):
        node = node.args[0]
    return node


def _is_cut_of(node: Any, origin: Node, length: int) -> bool:
    """Whether a value is origin[P:], shaped."""
    if not isinstance(node, Node):
        return False
    node = _unshaped(node)
    return _name(node) == "slice" and _unshaped(node.args[0]) is origin and node.args[2] == length


def _counts_from_zero(node: Node) -> bool:
    name = node.target._overloadname  # type: ignore[union-attr]
    start = node.args[0] if name != "default" else 0
    step = node.args[2] if name == "start_step" and len(node.args) > 2 else 1
    return start == 0 and step == 1


def _dim(node: Node) -> int:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim % node.meta["val"].dim()


def _has_size(node: Node, expr: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and any(_is_symbol(s) and s.node.expr == expr for s in value.shape)


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def _same(size: Any, number: int) -> bool:
    return not _is_symbol(size) and int(size) == number


def _same_shape(a: Node, b: Node) -> bool:
    return str(a.meta["val"].shape) == str(b.meta["val"].shape)


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _last_placeholder(graph: Graph) -> Node:
    return [n for n in graph.nodes if n.op == "placeholder"][-1]


def _infer(ir: ModelIR, node: Node) -> Any:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda x: x.meta["val"])
    with ir.fake_mode, torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _erase_dead(graph: Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
