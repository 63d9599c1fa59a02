"""What every op does to dims of queries and dims of keys: the rules that `key_axes.understand` follows."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from . import nodes as n
from .axes import Refusal
from .key_axes import KEY, QUERY, Run, Step, extent, rule
from .pointwise import POINTWISE


@rule(*POINTWISE, "aten.type_as", "aten.nan_to_num")
def _pointwise(s: Step) -> Any:
    return s.broadcast(list(n.tensor_inputs(s.node)), n.rank(s.node))


@rule("aten.clone", "aten.contiguous", "aten.alias", "aten.detach", "aten.zeros_like", "aten.ones_like",
       "aten.full_like", "aten.empty_like", "aten.dropout")
def _same(s: Step) -> Any:
    return s.runs(s.node.args[0])


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(s: Step) -> Any:
    return s.broadcast([s.node.args[0]], n.rank(s.node))


@rule("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as")
def _reshape(s: Step) -> Any:
    old = [d for d in s.dims(s.node.args[0]) if d.run is not None]
    new = [i for i, size in enumerate(n.shape_of(s.node)) if n.is_symbolic(size) and extent(size).share]
    if len(old) != len(new):
        raise Refusal("it regroups the dims of tokens")
    out: list[Run | None] = [None] * n.rank(s.node)
    for dim, i in zip(old, new, strict=True):
        if extent(n.shape_of(s.node)[i]).room != dim.share:
            dim.run.become(KEY)  # type: ignore[union-attr]
        out[i] = dim.run
    return out


@rule("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.mT")
def _permute(s: Step) -> Any:
    runs = s.runs(s.node.args[0])
    return [runs[d] for d in n.permutation(s.node) or []]


@rule("aten.unsqueeze")
def _unsqueeze(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    runs.insert(n.normal_dim(s.a["dim"], len(runs) + 1), None)
    return runs


@rule("aten.squeeze")
def _squeeze(s: Step) -> Any:
    shape = n.shape_of(s.a["self"])
    dims = range(len(shape)) if s.a.get("dim") is None else [n.normal_dim(d, len(shape)) for d in n.as_list(s.a["dim"])]
    return [r for i, r in enumerate(s.runs(s.a["self"])) if not (i in dims and n.same_size(shape[i], 1))]


@rule("aten.repeat_interleave")
def _repeat(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    if not isinstance(s.a.get("repeats"), int) or s.a.get("dim") is None:
        raise Refusal("it repeats a varying number of times")
    run = runs[n.normal_dim(s.a["dim"], len(runs))]
    if run is not None:
        run.become(KEY)  # every block as many keys as it has
    return runs


@rule("aten.select")
def _select(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    dim = n.normal_dim(s.a["dim"], len(runs))
    if runs[dim] is not None:
        raise Refusal("it singles out a token")
    return runs[:dim] + runs[dim + 1 :]


@rule("aten.slice")
def _slice(s: Step) -> Any:
    dims = s.dims(s.a["self"])
    dim = n.normal_dim(s.a["dim"], len(dims))
    if dims[dim].run is not None:
        kept = extent(n.shape_of(s.node)[dim])  # the whole blocks of a sequence, mostly
        whole = extent(n.shape_of(s.a["self"])[dim])
        start = s.a["start"] or 0
        if start != whole.more - kept.more and start != 0:
            raise Refusal("it singles out tokens by their place")
        if s.a["step"] != 1 or kept.share != whole.share:
            raise Refusal("it singles out tokens by their place")
        if not n.is_whole_slice(s.node):
            dims[dim].run.become(KEY)  # type: ignore[union-attr]
    return [d.run for d in dims]


@rule("aten.copy")
def _copy(s: Step) -> Any:
    return s.broadcast([s.a["self"], s.a["src"]], n.rank(s.node))


@rule("aten.slice_scatter")
def _slice_scatter(s: Step) -> Any:
    runs = s.broadcast([s.a["self"], s.a["src"]], n.rank(s.node))
    run = runs[n.normal_dim(s.a["dim"], len(runs))]
    if run is not None:
        if s.a["start"] not in (None, 0, 1) or s.a["step"] != 1:
            raise Refusal("it writes to tokens by their place")
        run.become(KEY)
    return runs


@rule("aten.constant_pad_nd", "aten.pad")
def _pad(s: Step) -> Any:
    dims, widths = s.dims(s.a["self"]), list(s.a["pad"])
    for i in range(len(widths) // 2):
        dim = dims[-1 - i]
        if dim.run is None:
            continue
        low, high = widths[2 * i : 2 * i + 2]
        filled = extent(n.shape_of(s.node)[len(dims) - 1 - i]).room == dim.share
        if low != 0 or (high != 0 and not filled):
            raise Refusal("it pads or shifts the tokens")
        if high != 0:
            dim.run.become(KEY)  # filled up to whole blocks
    return [d.run for d in dims]


@rule("aten.baddbmm")
def _baddbmm(s: Step) -> Any:
    out = _product(s, s.a["batch1"], s.a["batch2"])
    for i, dim in enumerate(reversed(s.dims(s.a["self"])), start=1):
        if dim.run is not None:
            out[-i] = dim.run if out[-i] is None else out[-i].join(dim.run)
    return out


@rule("aten.matmul", "aten.bmm")
def _matmul(s: Step) -> Any:
    return _product(s, *s.node.args[:2])


def _product(s: Step, x: Node, y: Node) -> Any:
    if min(n.rank(x), n.rank(y)) < 2:
        raise Refusal("it multiplies by a vector")
    a, b = s.dims(x), s.dims(y)
    if a[-1].run is not None:
        a[-1].run.join(b[-2].run if b[-2].run is not None else Run()).become(KEY)
    out: list[Run | None] = [None] * n.rank(s.node)
    out[-2], out[-1] = a[-2].run, b[-1].run
    for lead in (a[:-2], b[:-2]):
        for i, dim in enumerate(reversed(lead), start=3):
            if dim.run is not None:
                out[-i] = dim.run if out[-i] is None else out[-i].join(dim.run)  # type: ignore[union-attr]
    return out


@rule("aten.softmax", "aten.log_softmax")
def _softmax(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    run = runs[n.normal_dim(s.a["dim"], len(runs))]
    if run is not None:
        run.become(KEY)
    return runs


@rule("aten.sum", "aten.amax", "aten.amin", "aten.any", "aten.mean")
def _reduce(s: Step) -> Any:
    x = s.node.args[0]
    runs, dims = s.runs(x), n.reduced_dims(s.node, s.a)
    for d in dims:
        if runs[d] is not None:
            if n.op_name(s.node) == "aten.mean":
                raise Refusal("it averages over tokens, however many there are")
            runs[d].become(KEY)  # type: ignore[union-attr]
            runs[d] = None
    keep = s.a.get("keepdim", False)
    return [r for i, r in enumerate(runs) if keep or i not in dims]


@rule("aten.topk")
def _topk(s: Step) -> Any:
    runs = s.runs(s.a["self"])
    dim = n.normal_dim(s.a["dim"], len(runs))
    if runs[dim] is not None:
        runs[dim].become(KEY)  # type: ignore[union-attr]
        runs[dim] = None
    return (runs, list(runs))


@rule("operator.getitem")
def _getitem(s: Step) -> Any:
    return s.region.dims[s.node.args[0]][s.node.args[1]]


@rule("aten.gather", "aten.scatter", "aten.scatter_add")
def _gather(s: Step) -> Any:
    dim = n.normal_dim(s.a["dim"], n.rank(s.node))
    operands = [s.a[k] for k in ("self", "index", "src") if isinstance(s.a.get(k), Node)]
    along = [s.runs(x)[dim] for x in operands]
    if along[0] is not None:
        along[0].become(KEY)
    out: list[Run | None] = [None] * n.rank(s.node)
    for x in operands:
        for i, run in enumerate(s.runs(x)):
            if run is not None and i != dim:
                out[i] = run if out[i] is None else out[i].join(run)  # type: ignore[union-attr]
    out[dim] = along[1] if n.is_op(s.node, "aten.gather") else along[0]
    return out


@rule("aten.cat")
def _cat(s: Step) -> Any:
    out = s.broadcast(list(s.node.args[0]), n.rank(s.node))
    run = out[n.normal_dim(s.a.get("dim", 0), n.rank(s.node))]
    if run is not None:
        run.become(KEY)
    return out


@rule("aten.linear", "aten.layer_norm", "aten.rms_norm")
def _last(s: Step) -> Any:
    runs = s.runs(s.a["input"])
    if runs[-1] is not None:
        raise Refusal("it sums over tokens")
    return [*runs[:-1], None]


@rule("aten.full", "aten.zeros", "aten.ones", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
       "aten.new_empty", "aten.arange")
def _create(s: Step) -> Any:
    return [None] * n.rank(s.node)


@rule("autodeploy.mask")
def _mask(s: Step) -> Any:
    if not s.a["causal"]:
        raise Refusal("its mask shows a token what follows it", "only causal models can be compiled")
    query, key = Run(), Run()
    query.become(QUERY)
    if s.a["padding"] is not None:
        (seen,) = s.runs(s.a["padding"])
        key = seen if seen is not None else key
    key.become(KEY)
    return [query, key]
