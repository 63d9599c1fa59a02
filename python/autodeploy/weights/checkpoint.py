"""Opens a checkpoint by its headers alone: which tensors there are, where they lie, and in what format.

A checkpoint is a folder with safetensors files (`model.safetensors`, or shards with an index) or a GGUF file. Only
headers are read; every mistake in them is one WeightError that names the file and what to do.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import WeightError
from .evaluate import Read
from .formats import Stored
from .gguf_header import GGUF_MAGIC, read_gguf_header
from .safetensors_header import read_safetensors_header
from .weight_program import Source, StoredTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 256 << 20


@dataclass
class Checkpoint:
    """Tensors of a checkpoint.

    `kind` is "safetensors" or "gguf" (or "absent": weights/absent.py); `unsupported` names tensors of formats that
    nothing here reads, with their type; `metadata` holds a GGUF file's scalars and strings.
    """

    kind: str
    path: Path
    sources: list[Source] = field(default_factory=list)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """All tensors, those of unsupported formats included."""
        return sorted({*self.tensors, *self.unsupported})

    def reader(self) -> Read:
        """Reads tensors through memory maps, for evaluation in Python."""
        return tensor_reader(self.sources, self.tensors, self.path.parent)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint folder, a single safetensors file or a GGUF file. Raises WeightError."""
    path = Path(path).absolute()
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise WeightError(f"[checkpoint] {path} does not exist: check the path")
    with open(path, "rb") as f:
        magic = f.read(4)
    if magic == GGUF_MAGIC or path.suffix == ".gguf":
        return _open_gguf(path)
    checkpoint = Checkpoint("safetensors", path)
    _add_safetensors(checkpoint, path)
    return checkpoint


def _open_folder(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint("safetensors", folder)
    if (folder / SINGLE).exists():
        _add_safetensors(checkpoint, folder / SINGLE)
    elif (folder / INDEX).exists():
        weight_map = _read_index(folder / INDEX)
        for shard in sorted(set(weight_map.values())):
            if not (folder / shard).exists():
                raise WeightError(f"[{folder / INDEX}] names {shard}, which is missing: download the checkpoint again")
            _add_safetensors(checkpoint, folder / shard)
        lost = sorted(set(weight_map) - set(checkpoint.names()))
        if lost:
            raise WeightError(
                f"[{folder / INDEX}] names {lost[0]}, which no shard holds: download the checkpoint again"
            )
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise WeightError(f"[{folder}] has only pickled weights, which are not read: convert them to safetensors")
    else:
        raise WeightError(
            f"[{folder}] expected {SINGLE} or {INDEX}, found neither: this is not a whole checkpoint "
            "(a configuration alone is enough for made-up weights: load_format=dummy)"
        )
    return checkpoint


def _read_index(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise WeightError(f"[{path}] expected an index of at most {MAX_INDEX_BYTES} bytes")
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        found = {str(k): str(v) for k, v in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise WeightError(
            f"[{path}] expected an index with a weight_map ({e!r}): download the checkpoint again"
        ) from None
    for shard in found.values():
        if shard != Path(shard).name or not shard:
            raise WeightError(f"[{path}] expected plain file names, found {shard!r}")
    return found


def _add_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    header = read_safetensors_header(path)
    source = len(checkpoint.sources)
    checkpoint.sources.append(fingerprint(path, header.header_bytes))
    for name, t in header.tensors.items():
        if name in checkpoint.tensors or name in checkpoint.unsupported:
            raise WeightError(f"[{path}] holds {name}, which an earlier shard holds too: download the checkpoint again")
        checkpoint.tensors[name] = StoredTensor(source, t.offset, t.nbytes, t.format, t.shape)
    checkpoint.unsupported.update(header.unsupported)


def _open_gguf(path: Path) -> Checkpoint:
    header = read_gguf_header(path)
    checkpoint = Checkpoint("gguf", path, [fingerprint(path, header.header_bytes)], metadata=header.metadata)
    for name, t in header.tensors.items():
        checkpoint.tensors[name] = StoredTensor(0, t.offset, t.nbytes, t.format, t.shape)
    return checkpoint


def fingerprint(path: Path, header_bytes: int) -> Source:
    """Describes a file as a source: its size, and the SHA-256 of its first `header_bytes` bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        left = header_bytes
        while left:
            chunk = f.read(min(left, 1 << 20))
            if not chunk:
                raise WeightError(
                    f"[{path}] ends before {header_bytes} bytes: the file is truncated, download it again"
                )
            digest.update(chunk)
            left -= len(chunk)
    return Source(str(path), path.stat().st_size, header_bytes, digest.hexdigest())


def tensor_reader(sources: list[Source], tensors: dict[str, StoredTensor], folder: Path) -> Read:
    """Reads tensors through memory maps. Relative source paths start at `folder`.

    Raises WeightError where a source is missing or is not the file that was described.
    """
    maps: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def bytes_of(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if index not in maps:
            source = sources[index]
            path = folder / source.path
            if not path.is_file():
                raise WeightError(f"[{path}] does not exist: put the checkpoint back, or compile again")
            if (
                path.stat().st_size != source.size
                or fingerprint(path, source.header_bytes).fingerprint != source.fingerprint
            ):
                raise WeightError(f"[{path}] is not the file that was compiled: put that one back, or compile again")
            with open(path, "rb") as f:
                maps[index] = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        return maps[index]

    def read(name: str) -> Stored:
        t = tensors[name]
        if t.source is None:
            raise WeightError(
                f"[{name}] has no weights: the artifact was compiled from a configuration alone (load_format=dummy); "
                "compile a checkpoint"
            )
        if t.nbytes == 0:
            return Stored.from_bytes(t.format, t.shape, np.zeros(0, np.uint8))
        raw = bytes_of(t.source)[t.offset : t.offset + t.nbytes]
        return Stored.from_bytes(t.format, t.shape, raw)

    return read
