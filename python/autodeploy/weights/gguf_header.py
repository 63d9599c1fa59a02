"""The header of a GGUF file, versions 2 and 3: metadata and where the tensors lie.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file lists dimensions innermost first;
shapes here are the other way round, as everywhere else.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from .errors import WeightError
from .formats import FORMATS, stored_bytes
from .safetensors_header import FileHeader, TensorSpan, check_overlaps

GGUF_MAGIC = b"GGUF"
MAX_COUNT = 1 << 20  # metadata entries, or tensors
MAX_NAME = 1 << 16
MAX_ARRAY = 1 << 26
MAX_NESTING = 4
MAX_ELEMENTS = 2**53

# ggml_type numbers. Those that map to None are known by name, and refused.
TYPES: dict[int, str | None] = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 24: "i8",
                                25: "i16", 26: "i32", 27: "i64", 28: "f64", 30: "bf16"}  # fmt: skip
OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def read_gguf_header(path: Path, keep_arrays: bool = False) -> FileHeader:
    """Reads and checks the header. Raises WeightError.

    `metadata` of the result holds scalars and strings, and with `keep_arrays` arrays as lists.
    """
    if path.stat().st_size < 24:
        raise WeightError(f"[{path}] is truncated or no GGUF file: download it again")
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Reader(content, path, keep_arrays).header()
        except (struct.error, UnicodeDecodeError) as e:
            raise WeightError(f"[{path}] ends inside its header ({e}): download it again") from None


class _Reader:
    def __init__(self, content: mmap.mmap, path: Path, keep_arrays: bool) -> None:
        self._content = content
        self._path = path
        self._at = 0
        self._keep_arrays = keep_arrays

    def header(self) -> FileHeader:
        self._expect(self._content[:4] == GGUF_MAGIC, f"found {self._content[:4]!r} where GGUF was expected")
        self._at = 4
        version = self._number("<I")
        self._expect(version not in (0x02000000, 0x03000000), "is big-endian, which is not read")
        self._expect(version in (2, 3), f"has version {version}; versions 2 and 3 are read")
        num_tensors, num_entries = self._number("<Q"), self._number("<Q")
        self._expect(max(num_tensors, num_entries) <= MAX_COUNT, "counts more entries than any model has")

        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string(MAX_NAME)
            value = self._value(self._number("<I"), 0)
            if value is not None:
                metadata[key] = value
        infos = [self._tensor_info() for _ in range(num_tensors)]

        alignment = metadata.get("general.alignment", 32)
        legal = isinstance(alignment, int) and 0 < alignment <= 1 << 20 and alignment & (alignment - 1) == 0
        self._expect(legal, f"has the alignment {alignment!r}")
        start = -(-self._at // alignment) * alignment
        header = FileHeader(min(start, len(self._content)), metadata=metadata)
        for name, kind, shape, offset in infos:
            self._expect(offset % alignment == 0, f"places {name} at {offset}, against its alignment of {alignment}")
            self._add(header, name, kind, shape, start + offset)
        check_overlaps(header.tensors, self._path)
        return header

    def _add(self, header: FileHeader, name: str, kind: int, shape: tuple[int, ...], offset: int) -> None:
        fmt = TYPES.get(kind)
        if fmt is None:
            known = ", ".join(f.upper() for f in TYPES.values() if f)
            raise WeightError(
                f"[{self._path}] the tensor {name} has the type {OTHER_TYPES.get(kind, kind)}, which is not read yet: "
                f"use a file whose tensors are of {known}"
            )
        block = FORMATS[fmt].block_len
        self._expect(
            not shape or shape[-1] % block == 0, f"gives {name} rows of {shape[-1:]}, which are no whole blocks"
        )
        nbytes = stored_bytes(fmt, shape)
        if offset + nbytes > len(self._content):
            raise WeightError(
                f"[{self._path}] is truncated: {name} ends at byte {offset + nbytes}, the file has "
                f"{len(self._content)}: download it again"
            )
        self._expect(name not in header.tensors, f"names {name} twice")
        header.tensors[name] = TensorSpan(fmt, shape, offset, nbytes)

    def _tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string(MAX_NAME)
        rank = self._number("<I")
        self._expect(rank <= 8, f"gives {name} {rank} dimensions")
        shape = tuple(self._number("<Q") for _ in range(rank))[::-1]
        self._expect(
            all(d <= MAX_ELEMENTS for d in shape) and math.prod(shape) <= MAX_ELEMENTS, f"gives {name} {shape}"
        )
        return name, self._number("<I"), shape, self._number("<Q")

    def _value(self, kind: int, depth: int) -> Any:
        """A scalar, a string or a list; None for an array that is skipped."""
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(len(self._content))
        self._expect(kind == _ARRAY and depth < MAX_NESTING, f"has metadata of the unknown type {kind}")
        inner, count = self._number("<I"), self._number("<Q")
        self._expect(count <= MAX_ARRAY, f"has a metadata array of {count} elements")
        if self._keep_arrays:
            return [self._value(inner, depth + 1) for _ in range(count)]
        if inner in _SCALARS:
            self._skip(struct.calcsize(_SCALARS[inner]) * count)
        elif inner == _STRING:
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            for _ in range(count):
                self._value(inner, depth + 1)
        return None

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._content, self._at)
        self._at += struct.calcsize(code)
        return value

    def _string(self, limit: int) -> str:
        length = self._number("<Q")
        self._expect(length <= limit, f"has a name of {length} bytes")
        start = self._at
        self._skip(length)
        return self._content[start : self._at].decode("utf-8")

    def _skip(self, count: int) -> None:
        self._expect(self._at + count <= len(self._content), "ends inside its header")
        self._at += count

    def _expect(self, ok: bool, found: str) -> None:
        if not ok:
            raise WeightError(f"[{self._path}] {found}: the file is damaged or of another kind, download it again")
