"""The Program as typed data, and its JSON form (docs/program.md).

The classes mirror `program.json` field by field. `from_json` checks only that every field is there and has the right
type; `validate` (validate.py) checks a Program as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .dims import Dim
from .errors import ArtifactError
from .fields import Fields
from .op_table import OPS

FORMAT = "autodeploy.program"
VERSION = (1, 0)
DTYPES = ("act", "f32", "i64", "bool")
MAX_PARTS_DEPTH = 4

Attr = bool | int | float | str | list[int]


@dataclass(frozen=True)
class Value:
    """A tensor that a step computes: contiguous, row-major storage of `shape`."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Param:
    """A tensor that the weight program fills, by name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Operand:
    """A value or a param: whole and contiguous, or a strided view of its storage (strides and offset in elements).

    Exactly one of `value` and `param` is an index, the other None; `shape` and `strides` are both set or both None.
    """

    value: int | None = None
    param: int | None = None
    shape: tuple[Dim, ...] | None = None
    strides: tuple[Dim, ...] | None = None
    offset: Dim = 0


@dataclass
class Instruction:
    """One op over operands. `alias` holds (out position, in position) pairs; `parts` a composite's decomposition."""

    op: str
    inputs: list[Operand | None]
    outputs: list[int]
    attrs: dict[str, Attr] = field(default_factory=dict)
    states: list[int] = field(default_factory=list)
    alias: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Instruction] = field(default_factory=list)
    source: str = ""


@dataclass(frozen=True)
class StateComponent:
    """One tensor of a state; `shape` is per token for kind "paged" and per sequence otherwise."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class State:
    """Memory that outlives a step, declared by a cached mixer; `window`, `chunk` (0: none) belong to kind "paged"."""

    name: str
    kind: str
    components: tuple[StateComponent, ...]
    window: int = 0
    chunk: int = 0


@dataclass(frozen=True)
class RegionNode:
    """One pointwise operation over registers; `value` is set for op "const" alone."""

    op: str
    dtype: str
    args: tuple[int, ...] = ()
    value: float | int | bool | None = None


@dataclass(frozen=True)
class Region:
    """A pointwise program: registers 0..len(inputs)-1 are the inputs, then one per node."""

    inputs: tuple[str, ...]
    nodes: tuple[RegionNode, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class BodyInput:
    """One operand of a body: role "query" [N, ...], "key" [block*S, ...] (cached per token) or "fixed"."""

    role: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass
class Body:
    """What an `over_keys` instruction computes from a tile of queries and all keys of their sequence so far.

    The first `len(inputs)` values are the inputs. Dims are in N (query tokens of the tile) and S (key blocks). The keys
    come as `block * S` rows, zeros after the last token, and never fewer than `min_keys`.
    """

    inputs: list[BodyInput]
    block: int
    min_keys: int
    values: list[Value]
    instructions: list[Instruction]
    outputs: list[int]


@dataclass
class Program:
    """Instructions in execution order over values in SSA form."""

    params: list[Param] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    version: tuple[int, int] = VERSION
    bodies: list[Body] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of program.json."""
        return {
            "format": FORMAT,
            "version": {"major": self.version[0], "minor": self.version[1]},
            "metadata": self.metadata,
            "params": [{"name": p.name, "shape": list(p.shape), "dtype": p.dtype} for p in self.params],
            "values": [_value_to_json(v) for v in self.values],
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "states": [_state_to_json(s) for s in self.states],
            "regions": [_region_to_json(r) for r in self.regions],
            **({"bodies": [_body_to_json(b) for b in self.bodies]} if self.bodies else {}),
            "instructions": [_instruction_to_json(i) for i in self.instructions],
        }

    @classmethod
    def from_json(cls, data: object) -> Program:
        """Builds a Program from the object of program.json; raises ArtifactError naming the first wrong field."""
        top = Fields(data, "program.json")
        version = top.version(FORMAT, VERSION)
        program = cls(
            metadata=top.mapping("metadata"),
            params=[Param(p.text("name"), p.ints("shape"), p.text("dtype")) for p in top.items("params")],
            values=[_value_from_json(v) for v in top.items("values")],
            inputs=top.index_map("inputs"),
            outputs=top.index_map("outputs"),
            states=[_state_from_json(s) for s in top.items("states")],
            regions=[_region_from_json(r) for r in top.items("regions")],
            instructions=[_instruction_from_json(i, MAX_PARTS_DEPTH) for i in top.items("instructions")],
            version=version,
            bodies=[_body_from_json(b) for b in top.items("bodies")] if top.has("bodies") else [],
        )
        top.finish()
        return program


def _state_to_json(s: State) -> dict[str, Any]:
    out: dict[str, Any] = {"name": s.name, "kind": s.kind}
    if s.kind == "paged":
        out |= {"window": s.window, "chunk": s.chunk}
    out["components"] = [{"name": c.name, "shape": list(c.shape), "dtype": c.dtype} for c in s.components]
    return out


def _state_from_json(f: Fields) -> State:
    kind = f.text("kind")
    parts = tuple(StateComponent(c.text("name"), c.ints("shape"), c.text("dtype")) for c in f.items("components"))
    window, chunk = (f.integer("window"), f.integer("chunk")) if kind == "paged" else (0, 0)
    return State(f.text("name"), kind, parts, window, chunk)


def _region_to_json(r: Region) -> dict[str, Any]:
    def node(n: RegionNode) -> dict[str, Any]:
        if n.op == "const":
            return {"op": n.op, "value": number_to_json(n.value), "dtype": n.dtype}
        return {"op": n.op, "args": list(n.args), "dtype": n.dtype}

    return {"inputs": list(r.inputs), "nodes": [node(n) for n in r.nodes], "outputs": list(r.outputs)}


def _region_from_json(f: Fields) -> Region:
    def node(n: Fields) -> RegionNode:
        op = n.text("op")
        if op == "const":
            return RegionNode(op, n.text("dtype"), value=n.number("value"))
        return RegionNode(op, n.text("dtype"), n.ints("args"))

    return Region(f.texts("inputs"), tuple(node(n) for n in f.items("nodes")), f.ints("outputs"))


def _value_to_json(v: Value) -> dict[str, Any]:
    return {"name": v.name, "dtype": v.dtype, "shape": list(v.shape)}


def _value_from_json(f: Fields) -> Value:
    return Value(f.text("name"), f.text("dtype"), f.dims("shape"))


def _body_to_json(b: Body) -> dict[str, Any]:
    return {
        "inputs": [{"role": i.role, "dtype": i.dtype, "shape": list(i.shape)} for i in b.inputs],
        "block": b.block,
        "min_keys": b.min_keys,
        "values": [_value_to_json(v) for v in b.values],
        "instructions": [_instruction_to_json(i) for i in b.instructions],
        "outputs": list(b.outputs),
    }


def _body_from_json(f: Fields) -> Body:
    return Body(
        inputs=[BodyInput(i.text("role"), i.text("dtype"), i.dims("shape")) for i in f.items("inputs")],
        block=f.integer("block", 1),
        min_keys=f.integer("min_keys"),
        values=[_value_from_json(v) for v in f.items("values")],
        instructions=[_instruction_from_json(i, 0) for i in f.items("instructions")],
        outputs=list(f.ints("outputs")),
    )


def _operand_to_json(o: Operand | None) -> dict[str, Any] | None:
    if o is None:
        return None
    out: dict[str, Any] = {"v": o.value} if o.value is not None else {"p": o.param}
    if o.shape is not None and o.strides is not None:
        out |= {"shape": list(o.shape), "strides": list(o.strides), "offset": o.offset}
    return out


def _operand_from_json(f: Fields) -> Operand:
    value, param = (f.integer("v"), None) if f.has("v") else (None, f.integer("p"))
    if f.has("shape"):
        return Operand(value, param, f.dims("shape"), f.dims("strides"), f.dim("offset"))
    return Operand(value, param)


def _instruction_to_json(i: Instruction) -> dict[str, Any]:
    out: dict[str, Any] = {
        "op": i.op,
        "in": [_operand_to_json(o) for o in i.inputs],
        "out": list(i.outputs),
        "attrs": {k: number_to_json(v) for k, v in i.attrs.items()},
        "states": list(i.states),
        "alias": [list(pair) for pair in i.alias],
        "source": i.source,
    }
    if i.parts:
        out["parts"] = [_instruction_to_json(p) for p in i.parts]
    return out


def _instruction_from_json(f: Fields, depth: int) -> Instruction:
    parts: list[Instruction] = []
    if f.has("parts"):
        if depth == 0:
            raise ArtifactError(f"[{f.path}] parts nest deeper than {MAX_PARTS_DEPTH} levels")
        parts = [_instruction_from_json(p, depth - 1) for p in f.items("parts")]
    inputs = [None if o is None else _operand_from_json(o) for o in f.optional_items("in")]
    return Instruction(
        op=f.text("op"),
        inputs=_with_absent(f.text("op"), inputs),
        outputs=list(f.ints("out")),
        attrs=f.attrs("attrs"),
        states=list(f.ints("states")) if f.has("states") else [],
        alias=f.pairs("alias") if f.has("alias") else [],
        parts=parts,
        source=f.text("source") if f.has("source") else "",
    )


def _with_absent(op: str, operands: list[Operand | None]) -> list[Operand | None]:
    """Operands with the trailing optional ones that an older version of the format did not have."""
    spec = OPS.get(op)
    if spec is None or spec.variadic:
        return operands
    later = spec.inputs[len(operands) :]
    return operands + [None] * len(later) if all(rule.optional for rule in later) else operands


def number_to_json(x: Any) -> Any:
    """Spells a non-finite float as {"number": ...}; everything else stands as it is."""
    if isinstance(x, float) and not math.isfinite(x):
        return {"number": "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"}
    return list(x) if isinstance(x, tuple) else x
