"""Formats of stored weights, and stored tensors as NumPy arrays.

The block formats are GGUF's: 32 elements along the last dimension share a float16 scale and, for the `_1` formats, a
float16 minimum; 5-bit formats keep the high bits in 4 bytes of their own. Layouts as in ggml (`ggml-common.h`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import WeightError

Array = NDArray[Any]


@dataclass(frozen=True)
class FormatInfo:
    """`block_len` elements along the last dimension take `block_bytes` bytes."""

    block_len: int
    block_bytes: int
    dtype: str = ""  # NumPy's, little-endian; bfloat16 is kept as its 16 bits; "" for block formats


FORMATS: dict[str, FormatInfo] = {
    "f64": FormatInfo(1, 8, "<f8"),
    "f32": FormatInfo(1, 4, "<f4"),
    "f16": FormatInfo(1, 2, "<f2"),
    "bf16": FormatInfo(1, 2, "<u2"),
    "i64": FormatInfo(1, 8, "<i8"),
    "i32": FormatInfo(1, 4, "<i4"),
    "i16": FormatInfo(1, 2, "<i2"),
    "i8": FormatInfo(1, 1, "|i1"),
    "u8": FormatInfo(1, 1, "|u1"),
    "bool": FormatInfo(1, 1, "|b1"),
    "q8_0": FormatInfo(32, 34),
    "q4_0": FormatInfo(32, 18),
    "q4_1": FormatInfo(32, 20),
    "q5_0": FormatInfo(32, 22),
    "q5_1": FormatInfo(32, 24),
}


def is_block(fmt: str) -> bool:
    """Whether a format stores blocks along the last dimension."""
    return FORMATS[fmt].block_len > 1


def is_float(fmt: str) -> bool:
    """Whether a format holds real numbers, block formats included."""
    return fmt in ("f64", "f32", "f16", "bf16") or is_block(fmt)


def check_format(fmt: str, where: str) -> str:
    if fmt not in FORMATS:
        raise WeightError(f"[{where}] expected a format of {' '.join(FORMATS)}, found {fmt!r}")
    return fmt


def check_blocks(fmt: str, shape: tuple[int, ...], where: str) -> None:
    """The last dimension must hold whole blocks."""
    info = FORMATS[fmt]
    if info.block_len > 1 and (not shape or shape[-1] % info.block_len):
        raise WeightError(
            f"[{where}] expected a last dimension of a multiple of {info.block_len} for {fmt}, found {list(shape)}"
        )


def stored_bytes(fmt: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes in its format."""
    info = FORMATS[fmt]
    return math.prod(shape) // info.block_len * info.block_bytes


@dataclass(frozen=True)
class Stored:
    """A tensor in its stored format.

    `data` has the tensor's shape and the format's dtype; for block formats it is uint8, the last dimension in bytes.
    """

    format: str
    shape: tuple[int, ...]
    data: Array

    @classmethod
    def from_bytes(cls, fmt: str, shape: tuple[int, ...], raw: Array) -> Stored:
        """Views `raw` (uint8, one-dimensional, of exactly the tensor's size)."""
        if raw.size != stored_bytes(fmt, shape):
            raise WeightError(
                f"[tensor] expected {stored_bytes(fmt, shape)} bytes for {fmt} {list(shape)}, found {raw.size}"
            )
        info = FORMATS[fmt]
        if info.block_len > 1:
            return cls(fmt, shape, raw.reshape(*shape[:-1], shape[-1] // info.block_len * info.block_bytes))
        return cls(fmt, shape, raw.view(info.dtype).reshape(shape))

    @classmethod
    def from_f32(cls, values: Array) -> Stored:
        return cls("f32", values.shape, np.asarray(values, dtype="<f4"))

    def to_f32(self) -> Array:
        """The values as float32; block formats are dequantized."""
        if is_block(self.format):
            return dequantize(self.format, self.data).reshape(self.shape)
        if self.format == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32)

    def to_bytes(self) -> bytes:
        return np.ascontiguousarray(self.data).tobytes()

    def cast(self, fmt: str) -> Stored:
        """Converts to a plain format: to nearest even for floats, towards zero for integers, `!= 0` for bool."""
        if fmt == self.format:
            return self
        if is_block(fmt):
            raise WeightError(f"[cast] expected a plain format, found {fmt}: nothing here quantizes")
        if fmt == "bf16":
            return Stored(fmt, self.shape, f32_to_bf16(self.to_f32()))
        values = self.to_f32() if self.format == "bf16" or is_block(self.format) else self.data
        with np.errstate(over="ignore", invalid="ignore"):
            return Stored(fmt, self.shape, values.astype(FORMATS[fmt].dtype))


def f32_to_bf16(values: Array) -> Array:
    """Rounds float32 to bfloat16 (nearest even; NaN stays NaN), as its 16 bits."""
    bits = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2").reshape(values.shape)


def dequantize(fmt: str, data: Array) -> Array:
    """Rows of blocks [..., bytes] uint8 -> float32 [..., elements]."""
    info = FORMATS[fmt]
    blocks = np.ascontiguousarray(data).reshape(-1, info.block_bytes)

    def half(at: int) -> Array:
        return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)

    def nibbles(at: int) -> Array:
        packed = blocks[:, at : at + 16]
        return np.concatenate([packed & 0x0F, packed >> 4], axis=1)

    def fifth_bits(at: int) -> Array:
        bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
        return bits << 4

    scale = half(0)
    if fmt == "q8_0":
        values = blocks[:, 2:].copy().view(np.int8).astype(np.float32) * scale
    elif fmt == "q4_0":
        values = (nibbles(2).astype(np.float32) - 8) * scale
    elif fmt == "q4_1":
        values = nibbles(4).astype(np.float32) * scale + half(2)
    elif fmt == "q5_0":
        values = ((nibbles(6) | fifth_bits(2)).astype(np.float32) - 16) * scale
    elif fmt == "q5_1":
        values = (nibbles(8) | fifth_bits(4)).astype(np.float32) * scale + half(2)
    else:
        raise WeightError(f"[dequantize] expected a block format, found {fmt}")
    return values.reshape(*data.shape[:-1], data.shape[-1] // info.block_bytes * info.block_len)
