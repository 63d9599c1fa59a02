"""Writes the Triton source of a region for one iteration pattern and one activation type.

1. A program of the grid works on `block` neighbouring elements of the iteration; those that share a vector stand in the
   second dim of its tensors, so that what is the same for all of them is read and computed once.
2. Registers are float32, int64 or bool, and arithmetic happens in the widest class of its arguments, as on the CPU
   (docs/program.md, Region). A node whose dtype is `act` is rounded to it, unless its value is exact there already.
3. Coordinates of a block are 64-bit scalars, those within it 32-bit tensors: nothing overflows, little is wide.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from autodeploy.artifact.program import Region, RegionNode

from .iteration import Access, Iteration

NUM_WARPS = 4
_THREADS = 32 * NUM_WARPS
_MAX_INT32 = 2**31 - 1

TRITON_DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
_POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}


@dataclass(frozen=True)
class KernelSource:
    """Text of a kernel and the types of its parameters: Triton's names, and what each is a multiple of (pointers: in
    bytes)."""

    name: str
    text: str
    params: tuple[tuple[str, str, int], ...]
    num_warps: int


def block_size(iteration: Iteration) -> int:
    """How many elements a program of the grid works on; the same for every activation type."""
    return _groups(iteration) * iteration.vector


def _groups(iteration: Iteration) -> int:
    return _THREADS if iteration.vector > 2 else 4 * _THREADS // iteration.vector


def region_source(region: Region, iteration: Iteration, act: str) -> KernelSource:
    """The kernel of a region; it takes its inputs, its outputs, the number of elements and the run-time numbers."""
    return _Writer(region, iteration, act).write()


def _item_size(dtype: str, act: str) -> int:
    return {"act": 4 if act == "float32" else 2, "f32": 4, "i64": 8, "bool": 1}[dtype]


def _pointer(dtype: str, act: str) -> str:
    return {"act": _POINTERS[act], "f32": "*fp32", "i64": "*i64", "bool": "*u8"}[dtype]


@dataclass(frozen=True)
class _Register:
    """A value of the generated code: its class, the node's dtype, whether act represents it, and its constant."""

    text: str
    kind: str  # f32, i64, bool
    dtype: str
    exact: bool = False
    constant: float | int | bool | None = None


# op -> (float32, int64, bool) forms over arguments {0} {1}; None where the class does not have it.
_FORMS: dict[str, tuple[str | None, str | None, str | None]] = {
    "add": ("{0} + {1}", "{0} + {1}", "{0} | {1}"),
    "sub": ("{0} - {1}", "{0} - {1}", None),
    "mul": ("{0} * {1}", "{0} * {1}", "{0} & {1}"),
    "div": ("tl.div_rn({0}, {1})", None, None),
    "pow": ("device.pow({0}, {1})", "device.int_pow({0}, {1})", None),
    "min": ("device.minimum({0}, {1})", "device.int_minimum({0}, {1})", "{0} & {1}"),
    "max": ("device.maximum({0}, {1})", "device.int_maximum({0}, {1})", "{0} | {1}"),
    "neg": ("device.negate({0})", "device.int_negate({0})", None),
    "abs": ("tl.abs({0})", "device.int_abs({0})", None),
    "sqrt": ("tl.sqrt_rn({0})", None, None),
    "relu": ("device.relu({0})", "device.relu({0})", None),
    "sign": ("device.sign({0})", "device.sign({0})", None),
    "square": ("device.square({0})", "device.square({0})", None),
    "fmod": ("device.fmod({0}, {1})", "device.int_fmod({0}, {1})", None),
    "floor_div": ("device.floor_div({0}, {1})", "device.int_floor_div({0}, {1})", None),
    "eq": ("{0} == {1}", "{0} == {1}", None),
    "ne": ("{0} != {1}", "{0} != {1}", "{0} ^ {1}"),
    "lt": ("{0} < {1}", "{0} < {1}", None),
    "le": ("{0} <= {1}", "{0} <= {1}", None),
    "gt": ("{0} > {1}", "{0} > {1}", None),
    "ge": ("{0} >= {1}", "{0} >= {1}", None),
    "and": (None, None, "{0} & {1}"),
    "or": (None, None, "{0} | {1}"),
    "not": (None, None, "{0} == 0"),
    "bit_and": (None, "{0} & {1}", "{0} & {1}"),
    "bit_or": (None, "{0} | {1}", "{0} | {1}"),
    "bit_xor": (None, "{0} ^ {1}", "{0} ^ {1}"),
} | {
    op: (f"device.{op}({{0}})", None, None)
    for op in (
        *("exp", "log", "log1p", "expm1", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "silu", "gelu"),
        *("gelu_tanh", "softplus", "erf", "floor", "ceil", "round", "trunc"),
    )
}
_CLASSES = ("bool", "i64", "f32")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_LOGICAL = ("and", "or", "not")
_ROUNDINGS = ("floor", "ceil", "round", "trunc")
# Their results are among their arguments up to sign, so act has them where it has those.
_EXACT = ("min", "max", "neg", "abs", "relu")


class _Writer:
    def __init__(self, region: Region, iteration: Iteration, act: str) -> None:
        self._region, self._iteration, self._act = region, iteration, act
        self._lines: list[str] = []
        self._registers: list[_Register] = []
        self._count = 0

    def write(self) -> KernelSource:
        region, it = self._region, self._iteration
        params: list[tuple[str, str, int]] = []
        for i, access in enumerate(it.accesses):
            width = _item_size(access.dtype, self._act)
            params.append((f"in{i}", _pointer(access.dtype, self._act), min(16, access.granule * width)))
        dtypes = [*region.inputs, *(n.dtype for n in region.nodes)]
        for o, r in enumerate(region.outputs):
            params.append((f"out{o}", _pointer(dtypes[r], self._act), 16))
        params.append(("count", "i64", 1))
        params += [(n.name, "i32" if n.is_size else "i64", n.granule) for n in it.numbers]
        self._write_places()
        for i, access in enumerate(it.accesses):
            self._registers.append(self._load(i, access))
        for node in region.nodes:
            self._registers.append(self._node(node))
        for o, r in enumerate(region.outputs):
            self._store(o, self._registers[r], dtypes[r])
        name = "region_" + "_".join(dict.fromkeys(n.op for n in region.nodes if n.op not in ("const", "cast")))
        name = name[:60].rstrip("_")
        body = "\n".join("    " + line for line in self._lines)
        text = f"@triton.jit\ndef {name}({', '.join(p for p, _, _ in params)}):\n{body}\n"
        return KernelSource(name, text, tuple(params), NUM_WARPS)

    # Places: which elements a program works on.

    def _write_places(self) -> None:
        it = self._iteration
        groups, vector = _groups(it), it.vector
        emit = self._lines.append
        emit(f"first = tl.program_id(0).to(tl.int64) * {groups}")
        if vector > 1:
            emit(f"group = tl.arange(0, {groups})[:, None]")
            emit(f"lane = tl.arange(0, {vector})[None, :]")
            emit(f"inside = first + group < count // {vector}")
        else:
            emit(f"group = tl.arange(0, {groups})")
            emit("inside = first + group < count")
        if all(a.is_flat or a.is_uniform for a in it.accesses):
            return
        # From the innermost dim outwards: row and inner coordinates of each group. The scalars `at` and `row` stand for
        # the block's first group, the tensors `place` for the distance to it.
        at, place = "first", "group"
        for d in range(len(it.inner), 0, -1):
            size = it.inner[d - 1]
            divisor = vector if d == len(it.inner) else 1
            if isinstance(size, int):
                text = str(size // divisor)
                wide = size // divisor + groups > _MAX_INT32
            else:
                text = size if divisor == 1 else f"({size} // {divisor})"
                wide = False
            begin = f"({at} % {text})" if wide else f"({at} % {text}).to(tl.int32)"
            emit(f"place{d} = {begin} + {place}")
            emit(f"index{d} = place{d} % {text}")
            emit(f"place{d - 1}x = place{d} // {text}")
            emit(f"at{d - 1} = {at} // {text}")
            at, place = f"at{d - 1}", f"place{d - 1}x"
        self._at0, self._place0 = at, place

    def _flat_place(self) -> str:
        vector = self._iteration.vector
        return f"first * {vector} + (group * {vector} + lane)" if vector > 1 else "first + group"

    def _load(self, i: int, access: Access) -> _Register:
        inside = "inside"
        if access.is_uniform:
            load = f"tl.load(in{i})"
        elif access.is_flat:
            load = f"tl.load(in{i} + {self._flat_place()}, mask={inside})"
        else:
            load = f"tl.load(in{i} + {self._place(access)}, mask={inside})"
        kind = _class(access.dtype)
        if kind == "bool":
            load += " != 0"
        elif access.dtype == "act" and self._act != "float32":
            load += ".to(tl.float32)"
        self._lines.append(f"x{i} = {load}")
        return _Register(f"x{i}", kind, access.dtype, exact=access.dtype in ("act", "bool"))

    def _place(self, access: Access) -> str:
        """The element's place in the view: a 64-bit scalar for the block, and what is added to it for the element."""
        it = self._iteration
        outer, *inner = access.strides
        terms = []
        scalar = ""
        bound = 0
        if outer != 0:
            stride = outer if isinstance(outer, str) else str(outer)
            if not it.inner:
                return self._strided_flat(outer)
            scalar = f"{self._at0} * {stride} + "
            terms.append((outer, self._place0, _groups(it) + 1))
        for d, stride in enumerate(inner, start=1):
            if stride == 0:
                continue
            size = it.inner[d - 1]
            index = f"index{d}"
            if d == len(inner) and it.vector > 1:
                index = f"({index} * {it.vector} + lane)"
            terms.append((stride, index, size))
        wide = False
        for stride, _, size in terms:
            if isinstance(stride, str):
                continue
            reach = size if isinstance(size, int) else _MAX_INT32
            bound += stride * reach
        wide = bound > _MAX_INT32
        parts = []
        for stride, index, _ in terms:
            if stride == 1 and not wide:
                parts.append(index)
            elif isinstance(stride, str) or wide:
                parts.append(f"{index}.to(tl.int64) * {stride}")
            else:
                parts.append(f"{index} * {stride}")
        return f"{scalar}({' + '.join(parts)})"

    def _strided_flat(self, stride: int | str) -> str:
        """A place in the one dim there is."""
        vector = self._iteration.vector
        element = f"(group * {vector} + lane)" if vector > 1 else "group"
        first = f"first * {vector}" if vector > 1 else "first"
        if isinstance(stride, str) or stride * (_groups(self._iteration) * vector) > _MAX_INT32:
            element += ".to(tl.int64)"
        return f"{first} * {stride} + {element} * {stride}"

    def _store(self, o: int, register: _Register, dtype: str) -> None:
        value = register.text
        if dtype == "bool":
            value = f"({value}).to(tl.uint8)"
        elif dtype == "act" and self._act != "float32":
            value = f"({value}).to(tl.{TRITON_DTYPES[self._act]})"
        # A value of the whole block is spread by the store.
        self._lines.append(f"tl.store(out{o} + {self._flat_place()}, {value}, mask=inside)")

    # Nodes.

    def _node(self, node: RegionNode) -> _Register:
        want = _class(node.dtype)
        if node.op == "const":
            return self._const(node)
        args = [self._registers[a] for a in node.args]
        if node.op == "cast":
            return self._finish(self._convert(args[0], want), node)
        if node.op == "where":
            kind = max((args[1].kind, args[2].kind), key=_CLASSES.index)
            c = self._convert(args[0], "bool")
            a, b = (self._convert(x, kind) for x in args[1:])
            text = f"({c.text} & {a.text}) | ((~{c.text}) & {b.text})" if kind == "bool" else ""
            text = text or f"tl.where({c.text}, {a.text}, {b.text})"
            made = self._made(text, kind, exact=a.exact and b.exact)
            return self._finish(self._convert(made, want), node)
        if node.op in _ROUNDINGS and args[0].kind != "f32":
            return self._finish(self._convert(args[0], want), node)
        kind = "bool" if node.op in _LOGICAL else max((a.kind for a in args), key=_CLASSES.index)
        forms = dict(zip(("f32", "i64", "bool"), _FORMS[node.op], strict=True))
        while forms[kind] is None:
            if kind == "f32":
                raise ValueError(f"[codegen] expected integers or booleans for {node.op}, found floats")
            kind = _CLASSES[_CLASSES.index(kind) + 1]
        converted = [self._convert(a, kind) for a in args]
        text = self._power(converted) if (node.op, kind) == ("pow", "f32") else None
        if text is None:
            text = (forms[kind] or "").format(*(a.text for a in converted))
        result_kind = "bool" if node.op in _COMPARISONS else kind
        exact = node.op in _EXACT and all(a.exact for a in converted)
        return self._finish(self._convert(self._made(text, result_kind, exact), want), node)

    def _power(self, args: list[_Register]) -> str | None:
        """Powers that models write keep the roundings of what they mean; None: there is nothing special about it."""
        a, b = args
        special = {
            2.0: "{0} * {0}",
            3.0: "{0} * {0} * {0}",
            1.0: "{0}",
            -1.0: "device.reciprocal({0})",
            0.5: "device.pow_half({0})",
            -0.5: "device.pow_minus_half({0})",
        }
        form = special.get(float(b.constant)) if b.constant is not None else None
        return None if form is None else form.format(a.text)

    def _const(self, node: RegionNode) -> _Register:
        kind = _class(node.dtype)
        assert node.value is not None
        if kind == "bool":
            return self._literal(bool(node.value), kind, node.dtype)
        if kind == "i64":
            return self._literal(int(node.value), kind, node.dtype)
        value = _to_float32(float(node.value))
        return self._literal(_round_to(value, self._act) if node.dtype == "act" else value, kind, node.dtype)

    def _literal(self, value: float | int | bool, kind: str, dtype: str) -> _Register:
        types = {"f32": "tl.float32", "i64": "tl.int64", "bool": "tl.int1"}
        shown = _float_text(float(value)) if kind == "f32" else repr(int(value))
        made = self._made(f"tl.full([], {shown}, {types[kind]})", kind, exact=True)
        return _Register(made.text, kind, dtype, exact=True, constant=value)

    def _made(self, text: str, kind: str, exact: bool = False) -> _Register:
        name = f"r{self._count}"
        self._count += 1
        self._lines.append(f"{name} = {text}")
        return _Register(name, kind, {"f32": "f32", "i64": "i64", "bool": "bool"}[kind], exact)

    def _convert(self, x: _Register, kind: str) -> _Register:
        if x.kind == kind:
            return x
        if x.constant is not None and (kind != "i64" or abs(float(x.constant)) <= 2**53):
            to = {"f32": lambda v: _to_float32(float(v)), "i64": int, "bool": bool}[kind]
            value = to(x.constant)
            exact = kind != "f32" or _round_to(float(value), self._act) == value
            made = self._literal(value, kind, kind)
            return _Register(made.text, kind, kind, exact, value)
        if kind == "bool":
            return self._made(f"{x.text} != 0", kind, exact=True)
        if kind == "i64":
            return self._made(f"device.to_i64({x.text})" if x.kind == "f32" else f"{x.text}.to(tl.int64)", kind)
        return self._made(f"{x.text}.to(tl.float32)", kind, exact=x.kind == "bool")

    def _finish(self, x: _Register, node: RegionNode) -> _Register:
        """The node's own register: rounded where its dtype is act."""
        if node.dtype == "act" and self._act != "float32" and not x.exact:
            x = self._made(f"{x.text}.to(tl.{TRITON_DTYPES[self._act]}).to(tl.float32)", "f32", exact=True)
        return _Register(x.text, x.kind, node.dtype, x.exact or node.dtype == "act", x.constant)


def _class(dtype: str) -> str:
    return "f32" if dtype in ("act", "f32") else dtype


def _to_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _round_to(value: float, act: str) -> float:
    """A float32 rounded to the nearest of an activation type, ties to even."""
    if act == "float32" or not math.isfinite(value):
        return value
    if act == "float16":
        try:
            return float(struct.unpack("<e", struct.pack("<e", value))[0])
        except OverflowError:
            return math.copysign(math.inf, value)
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _float_text(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'
