"""Rules of single ops that a shape pattern cannot say. Each raises ArtifactError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .dims import PROGRAM_SCOPE, Dim, Scope, format_dim, parse_dim
from .errors import ArtifactError
from .op_table import OPS
from .program import Body, Instruction, Program
from .shape_match import Tensor


@dataclass(frozen=True)
class Site:
    """An instruction with its operands and results resolved; `where` names it in messages."""

    program: Program
    ins: Instruction
    operands: list[Tensor | None]
    results: list[Tensor]
    where: str
    scope: Scope = PROGRAM_SCOPE

    def need(self, ok: bool, expected: str, found: object) -> None:
        if not ok:
            raise ArtifactError(f"[{self.where}] expected {expected}, found {found}")

    def operand(self, i: int) -> Tensor:
        t = self.operands[i]
        if t is None:
            raise ArtifactError(f"[{self.where}] operand {i} is required")
        return t

    def attr_int(self, name: str) -> int:
        x = self.ins.attrs[name]
        assert isinstance(x, int)
        return x

    def dim(self, x: Tensor) -> int:
        """The attribute `dim`, which is written non-negative."""
        dim = self.attr_int("dim")
        self.need(0 <= dim < len(x.shape), f"a dim from 0 to {len(x.shape) - 1}", dim)
        return dim

    def need_dtype(self, t: Tensor, dtype: str) -> None:
        self.need(t.dtype == dtype, f"dtype {dtype}", t.dtype)

    def need_shape(self, t: Tensor, shape: tuple[Dim, ...]) -> None:
        self.need(t.shape == shape, f"the shape {list(shape)}", list(t.shape))

    def need_state(self, shape: tuple[Dim, ...], *dtypes: str) -> None:
        """The one state has one component of this shape and one of these dtypes."""
        components = self.program.states[self.ins.states[0]].components
        found = [(c.dtype, list(c.shape)) for c in components]
        ok = len(components) == 1 and components[0].shape == shape and components[0].dtype in dtypes
        self.need(ok, f"a state of one component {'|'.join(dtypes)} {list(shape)}", found)

    def need_slots(self, *shapes: tuple[Dim, ...]) -> None:
        """The one state has float32 components of these shapes."""
        components = self.program.states[self.ins.states[0]].components
        found = [(c.dtype, list(c.shape)) for c in components]
        expected = [("f32", list(shape)) for shape in shapes]
        self.need(found == expected, f"a state of components {expected}", found)


def _region(s: Site) -> None:
    r = s.attr_int("region")
    s.need(0 <= r < len(s.program.regions), f"a region index below {len(s.program.regions)}", r)
    region = s.program.regions[r]
    s.need(len(s.operands) == len(region.inputs), f"{len(region.inputs)} operands", len(s.operands))
    s.need(len(s.results) == len(region.outputs), f"{len(region.outputs)} results", len(s.results))
    shape = s.results[0].shape
    dtypes = list(region.inputs) + [n.dtype for n in region.nodes]
    for i, dtype in enumerate(region.inputs):
        s.need_shape(s.operand(i), shape)
        s.need_dtype(s.operand(i), dtype)
    for t, register in zip(s.results, region.outputs, strict=True):
        s.need_shape(t, shape)
        s.need_dtype(t, dtypes[register])


def _rope(s: Site) -> None:
    width, turned = s.operand(0).shape[-1], s.operand(1).shape[-1]
    ok = isinstance(width, int) and isinstance(turned, int) and 2 * turned <= width
    s.need(ok, f"2 * R2 <= D = {width}", f"R2 = {turned}")


def _expert_linear(s: Site) -> None:
    repeat = s.attr_int("x_repeat")
    s.need(repeat >= 1, "x_repeat >= 1", repeat)
    factor, symbol = parse_dim(s.operand(0).shape[0])
    ids = s.operand(2).shape[0]
    s.need((factor * repeat, symbol) == parse_dim(ids), f"as many ids as x has rows times {repeat}", ids)


def _ssd(s: Site) -> None:
    heads, groups = s.operand(0).shape[1], s.operand(3).shape[1]
    ok = isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups == 0
    s.need(ok, f"a number of groups that divides {heads} heads", groups)
    s.need_state((heads, s.operand(0).shape[2], s.operand(3).shape[2]), "f32")


def _linear_attention(s: Site) -> None:
    s.need_slots((*s.operand(1).shape[1:], s.operand(2).shape[2]))


def _linear_scan(s: Site) -> None:
    s.need_slots(s.operand(0).shape[1:])


def _wkv(s: Site) -> None:
    s.need_slots(*3 * (s.operand(0).shape[1:],))


def _mlstm(s: Site) -> None:
    heads, width = s.operand(1).shape[1:]
    s.need_slots((heads, width, s.operand(2).shape[2]), (heads, width), (heads,))


def _selective_scan(s: Site) -> None:
    s.need_state(s.operand(2).shape, "f32")


def _gated_delta_rule(s: Site) -> None:
    heads, key_heads = s.operand(2).shape[1], s.operand(1).shape[1]
    ok = isinstance(heads, int) and isinstance(key_heads, int) and key_heads > 0 and heads % key_heads == 0
    s.need(ok, f"a number of key heads that divides {heads} heads", key_heads)
    s.need_state((heads, s.operand(1).shape[2], s.operand(2).shape[2]), "f32")


def _attention(s: Site) -> None:
    components = {c.name: c.shape for c in s.program.states[s.ins.states[0]].components}
    s.need((s.operands[1] is None) == (s.operands[2] is None), "keys and values, or neither", "one of them")
    if s.operands[1] is not None:
        expected = {"k": s.operand(1).shape[1:], "v": s.operand(2).shape[1:]}
        s.need(components == expected, f"a state of components {expected}", components)
    heads, width = s.operand(0).shape[1:]
    ok = set(components) == {"k", "v"} and all(len(c) == 2 for c in components.values())
    s.need(ok, "a state of components k [heads, width] and v [heads, width]", components)
    kv_heads = components["k"][0]
    ok = isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads == 0
    s.need(ok, f"a number of KV heads that divides {heads} heads", kv_heads)
    s.need(components["k"][1] == width, f"keys as wide as the queries, {width}", components["k"][1])
    out = s.results[0].shape
    s.need(out[1:] == (heads, components["v"][1]), f"a result [T, {heads}, {components['v'][1]}]", list(out))
    table = s.operands[5]
    s.need(table is None or isinstance(table.shape[2], int), "a bias_table of a fixed reach", table and table.shape)
    lists = s.operands[6]
    if lists is not None:
        s.need(isinstance(lists.shape[-1], int), "lists of a fixed length", list(lists.shape))
        s.need(len(lists.shape) == 2 or lists.shape[1] == kv_heads, f"lists for {kv_heads} heads", list(lists.shape))


def _causal_conv1d(s: Site) -> None:
    channels, width = s.operand(1).shape
    s.need(isinstance(width, int) and width >= 2, "a kernel of width >= 2", width)
    assert isinstance(width, int)
    s.need_state((width - 1, channels), "act", "f32")


def _over_keys(s: Site) -> None:
    """Operands, results and the state are what the body declares, with T in place of N and of the keys."""
    index = s.attr_int("body")
    s.need(0 <= index < len(s.program.bodies), f"a body index below {len(s.program.bodies)}", index)
    body = s.program.bodies[index]
    s.need(len(s.operands) == len(body.inputs), f"{len(body.inputs)} operands", len(s.operands))
    s.need(len(s.results) == len(body.outputs), f"{len(body.outputs)} results", len(s.results))
    keys = []
    for i, given in enumerate(body.inputs):
        s.need_dtype(s.operand(i), given.dtype)
        s.need_shape(s.operand(i), outer_shape(given.role, given.shape))
        if given.role == "key":
            # A token that brings one number has the shape [1] in the cache.
            keys.append((given.dtype, given.shape[1:] or (1,)))
    for v, result in zip(body.outputs, s.results, strict=True):
        s.need_dtype(result, body.values[v].dtype)
        s.need_shape(result, outer_shape("query", body.values[v].shape))
    for i in weight_inputs(body):
        operand = s.ins.inputs[i]
        whole = operand is not None and operand.param is not None and operand.shape is None
        s.need(whole, f"a whole param for operand {i}, which the body uses as a weight", "another operand")
    found = [c for state in s.ins.states for c in s.program.states[state].components]
    s.need([(c.dtype, c.shape) for c in found] == keys, f"a state of the components {keys}", found)
    plain = all(not (s.program.states[i].window or s.program.states[i].chunk) for i in s.ins.states)
    s.need(plain, "a state without window and chunk", "another")


def outer_shape(role: str, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of a body's input or output outside it."""
    if role == "fixed":
        return shape
    return (format_dim(1 if role == "key" else parse_dim(shape[0])[0], "T"), *shape[1:])


def weight_inputs(body: Body) -> set[int]:
    """The inputs of a body that are weight operands of its instructions."""
    return {
        operand.value
        for ins in body.instructions
        for operand, rule in zip(ins.inputs, OPS[ins.op].inputs, strict=False)
        if rule.weight and operand is not None and operand.value is not None
    }


def _window(s: Site) -> None:
    back, x = s.ins.attrs["back"], s.operand(0)
    assert isinstance(back, list)
    s.need(bool(back) and min(back) >= 0 and max(back) >= 1, "distances >= 0, one above 0", back)
    for t in (s.operands[1], s.results[0]):
        if t is not None:
            s.need_dtype(t, x.dtype)
    s.need_shape(s.results[0], (x.shape[0], len(back), x.shape[1]))
    kept = ("act", "f32") if x.dtype in ("act", "f32") else (x.dtype,)
    s.need_state((max(back), x.shape[1]), *kept)


def _same_dtype(s: Site) -> None:
    s.need_dtype(s.results[0], s.operand(0).dtype)


def _cat(s: Site) -> None:
    first = s.operand(0)
    dim = s.dim(first)
    total, symbol = 0, None
    for i in range(len(s.operands)):
        t = s.operand(i)
        s.need_dtype(t, first.dtype)
        same = _differ_only_in(t.shape, first.shape, dim)
        s.need(same, f"operands that differ in dim {dim} alone, like {list(first.shape)}", list(t.shape))
        factor, found = parse_dim(t.shape[dim])
        s.need(symbol in (None, found), "operands with one symbol in the joined dim", t.shape[dim])
        total, symbol = total + factor, found
    s.need_dtype(s.results[0], first.dtype)
    s.need_shape(s.results[0], (*first.shape[:dim], format_dim(total, symbol or ""), *first.shape[dim + 1 :]))


def _reduce(s: Site) -> None:
    x, dims = s.operand(0), s.ins.attrs["dims"]
    assert isinstance(dims, list)
    rank = len(x.shape)
    legal = bool(dims) and all(0 <= d < rank for d in dims) and len(set(dims)) == len(dims)
    s.need(legal, f"different dims from 0 to {rank - 1}", dims)
    kind = s.ins.attrs["kind"]
    s.need(kind not in ("argmax", "argmin") or len(dims) == 1, f"one dim for {kind}", dims)
    keep = bool(s.ins.attrs["keepdim"])
    s.need_shape(s.results[0], tuple((1 if i in dims else d) for i, d in enumerate(x.shape) if keep or i not in dims))
    dtype = {"argmax": "i64", "argmin": "i64", "any": "bool", "all": "bool"}.get(str(kind), x.dtype)
    s.need_dtype(s.results[0], "i64" if kind in ("sum", "prod") and dtype == "bool" else dtype)


def _topk(s: Site) -> None:
    x = s.operand(0)
    dim, k = s.dim(x), s.attr_int("k")
    size = x.shape[dim]
    # The number of keys of a body is at least what it asks for; T and R are no sizes to choose from.
    legal = (isinstance(size, int) or s.scope.in_body) and 1 <= k <= s.scope.least(size)
    s.need(legal, f"k from 1 to {size}", k)
    for t, dtype in zip(s.results, (x.dtype, "i64"), strict=True):
        s.need_shape(t, (*x.shape[:dim], k, *x.shape[dim + 1 :]))
        s.need_dtype(t, dtype)


def _sort(s: Site) -> None:
    x = s.operand(0)
    s.dim(x)
    s.need_dtype(s.results[0], x.dtype)
    s.need_dtype(s.results[1], "i64")


def _along(s: Site) -> None:
    s.dim(s.operand(0))


def _gather(s: Site) -> None:
    x, index = s.operand(0), s.operand(1)
    dim = s.dim(x)
    same = _differ_only_in(index.shape, x.shape, dim)
    s.need(same, f"an index that differs from {list(x.shape)} in dim {dim} alone", list(index.shape))
    s.need_dtype(s.results[0], x.dtype)


def _scatter(s: Site) -> None:
    x, index, src = s.operand(0), s.operand(1), s.operand(2)
    dim = s.dim(x)
    same = _differ_only_in(index.shape, x.shape, dim)
    s.need(same, f"an index that differs from {list(x.shape)} in dim {dim} alone", list(index.shape))
    s.need_shape(src, index.shape)
    s.need_dtype(src, x.dtype)
    s.need_dtype(s.results[0], x.dtype)


def _index_select(s: Site) -> None:
    x, index = s.operand(0), s.operand(1)
    dim = s.dim(x)
    s.need_shape(s.results[0], (*x.shape[:dim], index.shape[0], *x.shape[dim + 1 :]))
    s.need_dtype(s.results[0], x.dtype)


RULES: dict[str, Callable[[Site], None]] = {
    "region": _region,
    "rope": _rope,
    "expert_linear": _expert_linear,
    "ssd": _ssd,
    "linear_attention": _linear_attention,
    "linear_scan": _linear_scan,
    "wkv": _wkv,
    "mlstm": _mlstm,
    "selective_scan": _selective_scan,
    "gated_delta_rule": _gated_delta_rule,
    "attention": _attention,
    "causal_conv1d": _causal_conv1d,
    "over_keys": _over_keys,
    "window": _window,
    "copy": _same_dtype,
    "select_rows": _same_dtype,
    "cat": _cat,
    "reduce": _reduce,
    "topk": _topk,
    "sort": _sort,
    "softmax": _along,
    "log_softmax": _along,
    "cumsum": _along,
    "gather": _gather,
    "scatter": _scatter,
    "index_select": _index_select,
}


def _differ_only_in(a: tuple[Dim, ...], b: tuple[Dim, ...], dim: int) -> bool:
    return len(a) == len(b) and a[:dim] + a[dim + 1 :] == b[:dim] + b[dim + 1 :]
