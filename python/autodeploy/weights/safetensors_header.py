"""The header of a safetensors file: 8 bytes of length, then JSON {name: {dtype, shape, data_offsets}}.

Specification: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import WeightError
from .formats import stored_bytes

MAX_HEADER_BYTES = 100_000_000
MAX_ELEMENTS = 2**53

FORMATS = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class TensorSpan:
    """A tensor's place in a file: `offset` counts from the start of the file."""

    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass
class FileHeader:
    """Tensors by name; `unsupported` those of other types, with the type; the data starts at `header_bytes`."""

    header_bytes: int
    tensors: dict[str, TensorSpan] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_safetensors_header(path: Path) -> FileHeader:
    """Reads and checks the header. Raises WeightError naming the file and what is wrong."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > size - 8:
            raise WeightError(f"[{path}] is truncated or no safetensors file ({size} bytes): download it again")
        if length > MAX_HEADER_BYTES:
            raise WeightError(f"[{path}] expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}")
        raw = f.read(length)
    header = FileHeader(8 + length)
    for name, entry in _parse(raw, path).items():
        if name != "__metadata__":
            _add(header, name, entry, size, path)
    check_overlaps(header.tensors, path)
    return header


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise WeightError(f"[{path}] names a tensor twice: the file is damaged")
        return out

    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise WeightError(f"[{path}] has no safetensors header ({e}): download it again") from None
    if not isinstance(data, dict):
        raise WeightError(f"[{path}] has no safetensors header: download it again")
    return data


def _add(header: FileHeader, name: str, entry: Any, size: int, path: Path) -> None:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        ints = (*shape, begin, end)
        legal = isinstance(dtype, str) and all(type(i) is int and 0 <= i <= MAX_ELEMENTS for i in ints)
    except (TypeError, KeyError, ValueError):
        legal = False
    if not legal or len(shape) > 8 or begin > end or math.prod(shape) > MAX_ELEMENTS:
        raise WeightError(
            f"[{path}] describes {name} in a way that makes no sense: the file is damaged, download it again"
        )
    if header.header_bytes + end > size:
        raise WeightError(
            f"[{path}] is truncated: {name} ends at byte {header.header_bytes + end}, the file has {size}: "
            "download it again"
        )
    fmt = FORMATS.get(dtype)
    if fmt is None:
        header.unsupported[name] = dtype
        return
    if end - begin != stored_bytes(fmt, shape):
        raise WeightError(
            f"[{path}] gives {name} {end - begin} bytes, but {dtype} {list(shape)} takes {stored_bytes(fmt, shape)}: "
            "the file is damaged, download it again"
        )
    header.tensors[name] = TensorSpan(fmt, shape, header.header_bytes + begin, end - begin)


def check_overlaps(tensors: dict[str, TensorSpan], path: Path) -> None:
    """No byte may belong to two tensors."""
    last, end = "", 0
    for name, t in sorted(tensors.items(), key=lambda item: item[1].offset):
        if t.nbytes and t.offset < end:
            raise WeightError(f"[{path}] lets {last} and {name} overlap: the file is damaged, download it again")
        if t.offset + t.nbytes > end:
            last, end = name, t.offset + t.nbytes
