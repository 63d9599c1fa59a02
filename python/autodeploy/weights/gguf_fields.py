"""Makes transformers' reading of GGUF metadata quick.

The gguf package's reader takes seconds for a vocabulary, and transformers constructs it for the configuration and again
for the tokenizer; it makes the map of tensor names anew for every module of a model. While `fast_gguf` is open, a
reader that knows fields and tensor names alone stands in, and both are made once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gguf_header import read_gguf_header

_UINT64, _FLOAT64, _BOOL, _STRING, _ARRAY = 10, 12, 7, 8, 9


@dataclass(frozen=True)
class _Field:
    """As gguf.ReaderField: `parts[i]` for i in `data` are the values, `types` the GGUF types of the whole."""

    parts: list[Any]
    types: list[int]

    @property
    def data(self) -> range:
        return range(len(self.parts))


@dataclass(frozen=True)
class _Tensor:
    name: str


@dataclass(frozen=True)
class _FieldsReader:
    """The part of gguf.GGUFReader that reading metadata needs."""

    fields: dict[str, _Field]
    tensors: list[_Tensor]


def _open(path: str, mode: str = "r") -> _FieldsReader:
    stat = Path(path).stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read(path: str, size: int, mtime: int) -> _FieldsReader:
    header = read_gguf_header(Path(path), keep_arrays=True)
    fields = {key: _field(value) for key, value in header.metadata.items()}
    return _FieldsReader(fields, [_Tensor(name) for name in header.tensors])


def _field(value: Any) -> _Field:
    if isinstance(value, list):
        return _Field([_part(x) for x in value], [_ARRAY, _type(value[0]) if value else _UINT64])
    return _Field([_part(value)], [_type(value)])


def _part(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else [value]


def _type(value: Any) -> int:
    return {str: _STRING, bool: _BOOL, float: _FLOAT64, int: _UINT64}[type(value)]


@contextlib.contextmanager
def fast_gguf() -> Iterator[None]:
    """While it is open, `gguf.GGUFReader` reads metadata only: not for loading tensors."""
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = _open, functools.lru_cache(name_map)  # type: ignore
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map  # type: ignore
