"""constants.bin: real buffers of a model, as a safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from .errors import WeightError
from .formats import FORMATS, Array, is_block
from .safetensors_header import FORMATS as SAFETENSORS_FORMATS
from .weight_program import Source, StoredTensor

CONSTANTS_FILE = "constants.bin"
_ALIGNMENT = 64
_DTYPES = {ours: theirs for theirs, ours in SAFETENSORS_FORMATS.items()}


def pack_constants(
    arrays: Mapping[str, tuple[str, Array]], source: int
) -> tuple[bytes, Source, dict[str, StoredTensor]]:
    """Lays out {name: (format, array)} as a safetensors file.

    Each array has the dtype that FORMATS gives for its format. Returns the file's bytes, its description as a source (a
    path relative to the artifact), and where each tensor lies; `source` is the index that the description will have.
    """
    header: dict[str, object] = {}
    blobs: list[bytes] = []
    at = 0
    for name, (fmt, array) in arrays.items():
        if is_block(fmt) or array.dtype != np.dtype(FORMATS[fmt].dtype):
            raise WeightError(f"[{name}] expected an array of a plain format, found {array.dtype} for {fmt}")
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": _DTYPES[fmt], "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text

    tensors = {}
    at = len(head)
    for (name, (fmt, array)), raw in zip(arrays.items(), blobs, strict=True):
        tensors[name] = StoredTensor(source, at, len(raw), fmt, tuple(array.shape))
        at += len(raw)
    content = head + b"".join(blobs)
    return content, Source(CONSTANTS_FILE, len(content), len(head), hashlib.sha256(head).hexdigest()), tensors
