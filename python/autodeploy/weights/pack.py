"""--pack: evaluates a weight program into one file, so that an artifact needs its checkpoint no more.

weights.bin: the magic, the length of a JSON table (u64), the table {param: [{format, shape, offset, nbytes}]} with an
entry per segment, then the segments at multiples of 4096 bytes. Params are evaluated a few rows at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from .checkpoint import tensor_reader
from .errors import WeightError
from .evaluate import Read, evaluate, rows
from .expr import Expr, tensor_names
from .formats import stored_bytes
from .link import CONSTANT_PREFIX
from .weight_program import Segment, Source, StoredTensor, WeightParam, WeightProgram

PACKED_FILE = "weights.bin"
MAGIC = b"ADWEIGHT"
_ALIGNMENT = 4096
_CHUNK_BYTES = 32 << 20

Progress = Callable[[int, int], None]


def plan_pack(program: WeightProgram) -> tuple[WeightProgram, bytes]:
    """The weight program that reads weights.bin, and that file's header; nothing is evaluated.

    Segments that read nothing but constants are packed like all others, and keep the prefix of their names.
    """
    sized: list[tuple[WeightParam, list[StoredTensor]]] = []
    header = b""
    base = 0
    # The header's length depends on the offsets, which depend on its length: settled after a round or two.
    while True:
        sized, end, table = [], base, {}
        for param in program.params:
            spans = []
            for segment in param.segments:
                nbytes = stored_bytes(segment.expr.format, segment.expr.shape)
                spans.append(StoredTensor(0, end, nbytes, segment.expr.format, segment.expr.shape))
                end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
            sized.append((param, spans))
            table[param.name] = [_entry(s) for s in spans]
        text = json.dumps(table, separators=(",", ":")).encode()
        header = MAGIC + len(text).to_bytes(8, "little") + text
        needed = -(-len(header) // _ALIGNMENT) * _ALIGNMENT
        if needed <= base:
            break
        base = needed
    header = header.ljust(base, b"\0")

    packed = WeightProgram(unused=list(program.unused), notes=list(program.notes))
    packed.sources = [Source(PACKED_FILE, end, base, hashlib.sha256(header).hexdigest())]
    for param, spans in sized:
        segments = []
        for i, (segment, span) in enumerate(zip(param.segments, spans, strict=True)):
            name = param.name if len(spans) == 1 else f"{param.name}#{i}"
            if _is_constant(segment.expr):
                name = CONSTANT_PREFIX + name
            packed.tensors[name] = span
            segments.append(Segment(segment.rows, span.expr(name)))
        packed.params.append(replace(param, segments=segments))
    packed.check()
    return packed, header


def write_packed(
    program: WeightProgram,
    packed: WeightProgram,
    header: bytes,
    folder: Path,
    path: Path,
    progress: Progress | None = None,
) -> None:
    """Writes weights.bin to `path` for the plan that `plan_pack` made. Relative sources of `program` are in `folder`.

    Memory stays near the largest row range of 32 MiB, plus whole operands where an expression cannot be cut.
    """
    read = tensor_reader(program.sources, program.tensors, folder)
    total = sum(t.nbytes for t in packed.tensors.values())
    done = 0
    with open(path, "wb") as f:
        f.write(header)
        for param, target in zip(program.params, packed.params, strict=True):
            for segment, place in zip(param.segments, target.segments, strict=True):
                span = packed.tensors[place.expr.attrs["name"]]
                _pad(f, span.offset)
                for raw in _chunks(segment.expr, read):
                    f.write(raw)
                    done += len(raw)
                    if progress is not None:
                        progress(done, total)
                if f.tell() != span.offset + span.nbytes:
                    raise WeightError(f"[{param.name}] expected {span.nbytes} bytes, wrote {f.tell() - span.offset}")
        _pad(f, packed.sources[0].size)


def _is_constant(x: Expr) -> bool:
    names = tensor_names(x)
    return bool(names) and all(name.startswith(CONSTANT_PREFIX) for name in names)


def _chunks(x: Expr, read: Read) -> Any:
    size = stored_bytes(x.format, x.shape)
    if not x.shape or size <= _CHUNK_BYTES:
        yield evaluate(x, read).to_bytes()
        return
    step = max(1, x.shape[0] * _CHUNK_BYTES // size)
    for at in range(0, x.shape[0], step):
        yield evaluate(rows(x, at, min(at + step, x.shape[0])), read).to_bytes()


def _pad(f: BinaryIO, offset: int) -> None:
    f.write(b"\0" * (offset - f.tell()))


def _entry(span: StoredTensor) -> dict[str, Any]:
    return {"format": span.format, "shape": list(span.shape), "offset": span.offset, "nbytes": span.nbytes}
