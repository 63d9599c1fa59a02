"""The weight program as typed data, and its JSON form (docs/weight_program.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import WeightError
from .expr import Expr, tensor, tensor_names
from .expr_json import MAX_INT, parse_expr, to_json
from .formats import check_blocks, check_format, stored_bytes

FORMAT = "autodeploy.weights"
VERSION = (1, 1)


@dataclass(frozen=True)
class Source:
    """A file that tensors are read from: `fingerprint` is the SHA-256 (hex) of its first `header_bytes` bytes."""

    path: str
    size: int
    header_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a source; None where it is nowhere (the model was compiled from its configuration)."""

    source: int | None
    offset: int
    nbytes: int
    format: str
    shape: tuple[int, ...]

    def expr(self, name: str) -> Expr:
        return tensor(name, self.format, self.shape)


@dataclass(frozen=True)
class Segment:
    """`rows` along dimension 0 and what makes them; the format in memory is the expression's."""

    rows: int
    expr: Expr


@dataclass
class WeightParam:
    """A param of the Program; its segments are joined along dimension 0 (a scalar has one segment of one row)."""

    name: str
    shape: tuple[int, ...]
    segments: list[Segment]


@dataclass
class WeightProgram:
    """Sources, the tensors used, the params made of them, and what the compiler has to say about it."""

    sources: list[Source] = field(default_factory=list)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    params: list[WeightParam] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object of weights.json. Of the latest minor version only where it needs that."""
        absent = any(t.source is None for t in self.tensors.values())
        return {
            "format": FORMAT,
            "version": {"major": VERSION[0], "minor": VERSION[1] if absent else 0},
            "sources": [vars(s).copy() for s in self.sources],
            "tensors": {n: {**vars(t), "shape": list(t.shape)} for n, t in self.tensors.items()},
            "params": [
                {
                    "name": p.name,
                    "shape": list(p.shape),
                    "segments": [
                        {"rows": s.rows, "format": s.expr.format, "expr": to_json(s.expr)} for s in p.segments
                    ],
                }
                for p in self.params
            ],
            "report": {"unused": list(self.unused), "notes": list(self.notes)},
        }

    @classmethod
    def from_json(cls, raw: object) -> WeightProgram:
        """Parses and checks weights.json. Raises WeightError naming the first thing that is wrong."""
        top = _object(raw, "weights.json", ["format", "version", "sources", "tensors", "params", "report"])
        if top["format"] != FORMAT:
            raise WeightError(f'[weights.json] expected the format "{FORMAT}", found {top["format"]!r}')
        version = _object(top["version"], "weights.json.version", ["major", "minor"])
        if version["major"] != VERSION[0]:
            raise WeightError(
                f"[weights.json] expected version {VERSION[0]}.x, found {version['major']}: compile again"
            )
        sources = [_source(s, f"sources[{i}]") for i, s in enumerate(_list(top["sources"], "sources"))]
        if not isinstance(top["tensors"], dict):
            raise WeightError("[tensors] expected an object")
        tensors = {n: _tensor(t, sources, f"tensors.{n}") for n, t in top["tensors"].items()}

        def resolve(op: str, name: str) -> Expr:
            if op != "tensor" or name not in tensors:
                raise WeightError(f"[{op}] expected a tensor of this file, found {name!r}")
            return tensors[name].expr(name)

        params = [_param(p, resolve, f"params[{i}]") for i, p in enumerate(_list(top["params"], "params"))]
        report = _object(top["report"], "report", ["unused", "notes"])
        program = cls(sources, tensors, params, _texts(report["unused"]), _texts(report["notes"]))
        program.check()
        return program

    def check(self) -> None:
        """Checks params against their segments, and that every tensor named is there."""
        seen: set[str] = set()
        for p in self.params:
            if not p.name or p.name in seen:
                raise WeightError(f"[params] expected names of their own, found {p.name!r} twice or empty")
            seen.add(p.name)
            if not p.segments:
                raise WeightError(f"[{p.name}] expected at least one segment")
            for s in p.segments:
                whole = (s.rows, *p.shape[1:]) if p.shape else ()
                if s.expr.shape != whole:
                    raise WeightError(
                        f"[{p.name}] expected a segment of shape {list(whole)}, found {list(s.expr.shape)}"
                    )
                for name in tensor_names(s.expr) - set(self.tensors):
                    raise WeightError(f"[{p.name}] reads the tensor {name!r}, which is not listed")
            total = sum(s.rows for s in p.segments)
            if total != (p.shape[0] if p.shape else 1):
                raise WeightError(f"[{p.name}] expected segments of {list(p.shape)[:1]} rows in all, found {total}")

    def param(self, name: str) -> WeightParam:
        for p in self.params:
            if p.name == name:
                return p
        raise WeightError(f"[{name}] no such param")

    def stored_bytes(self) -> int:
        """Bytes of all params, each segment in its format."""
        return sum(stored_bytes(s.expr.format, s.expr.shape) for p in self.params for s in p.segments)


def _source(raw: object, where: str) -> Source:
    f = _object(raw, where, ["path", "size", "header_bytes", "fingerprint"])
    path, fingerprint = _text(f["path"], where), _text(f["fingerprint"], where)
    if not path or not re.fullmatch("[0-9a-f]{64}", fingerprint):
        raise WeightError(f"[{where}] expected a path and a SHA-256 in lower-case hex")
    size, header = _int(f["size"], where), _int(f["header_bytes"], where)
    if header > size:
        raise WeightError(f"[{where}] expected header_bytes of at most {size}, found {header}")
    return Source(path, size, header, fingerprint)


def _tensor(raw: object, sources: list[Source], where: str) -> StoredTensor:
    f = _object(raw, where, ["source", "offset", "nbytes", "format", "shape"])
    source = None if f["source"] is None else _int(f["source"], where)
    offset, nbytes = (_int(f[k], where) for k in ("offset", "nbytes"))
    shape = tuple(_int(d, where) for d in _list(f["shape"], where))
    fmt = check_format(_text(f["format"], where), where)
    check_blocks(fmt, shape, where)
    if source is not None and source >= len(sources):
        raise WeightError(f"[{where}] expected a source below {len(sources)}, found {source}")
    if math.prod(shape) > MAX_INT or nbytes != stored_bytes(fmt, shape):
        raise WeightError(
            f"[{where}] expected {stored_bytes(fmt, shape)} bytes for {fmt} {list(shape)}, found {nbytes}"
        )
    if source is None and offset != 0:
        raise WeightError(f"[{where}] expected the offset 0 of a tensor without a source, found {offset}")
    if source is not None and offset + nbytes > sources[source].size:
        raise WeightError(f"[{where}] ends at {offset + nbytes}, beyond the {sources[source].size} bytes of its source")
    return StoredTensor(source, offset, nbytes, fmt, shape)


def _param(raw: object, resolve: Any, where: str) -> WeightParam:
    f = _object(raw, where, ["name", "shape", "segments"])
    segments = []
    for i, s in enumerate(_list(f["segments"], where)):
        here = f"{where}.segments[{i}]"
        g = _object(s, here, ["rows", "format", "expr"])
        expr = parse_expr(g["expr"], resolve, f"{here}.expr")
        if expr.format != g["format"]:
            raise WeightError(f"[{here}] expected the format {expr.format} of its expression, found {g['format']!r}")
        segments.append(Segment(_int(g["rows"], here), expr))
    return WeightParam(_text(f["name"], where), tuple(_int(d, where) for d in _list(f["shape"], where)), segments)


def _object(raw: object, where: str, names: Iterable[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise WeightError(f"[{where}] expected an object, found {type(raw).__name__}")
    for name in names:
        if name not in raw:
            raise WeightError(f'[{where}] the field "{name}" is missing')
    return raw


def _list(raw: object, where: str) -> list[Any]:
    if not isinstance(raw, list):
        raise WeightError(f"[{where}] expected a list, found {type(raw).__name__}")
    return raw


def _text(raw: object, where: str) -> str:
    if not isinstance(raw, str):
        raise WeightError(f"[{where}] expected a string, found {type(raw).__name__}")
    return raw


def _texts(raw: object) -> list[str]:
    return [_text(x, "report") for x in _list(raw, "report")]


def _int(raw: object, where: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 <= raw <= MAX_INT:
        raise WeightError(f"[{where}] expected an integer from 0 to 2^53, found {str(raw)[:60]}")
    return raw
