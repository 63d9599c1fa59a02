"""Joins what the compiler wants (params over names of the captured model) with where those come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .absent import ABSENT
from .checkpoint import Checkpoint
from .constants import pack_constants
from .derive import Derivation
from .errors import WeightError
from .expr import Expr, dequantized_tensors, keep_stored, tensor_names
from .expr_json import parse_expr
from .formats import Array
from .weight_program import Segment, StoredTensor, WeightParam, WeightProgram

# Prefix of constants among the tensors' names; no checkpoint tensor may take it.
CONSTANT_PREFIX = "constants/"


class WantedSegment(Protocol):
    """`rows` of a param, and the expression that makes them as JSON.

    Leaves are {"op": "tensor", "name": parameter of the captured model} and {"op": "constant", "name": key}.
    """

    @property
    def rows(self) -> int: ...
    @property
    def expr(self) -> dict[str, Any]: ...


class WantedParam(Protocol):
    """A param of the Program."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def segments(self) -> Sequence[WantedSegment]: ...


def link(
    params: Iterable[WantedParam],
    constants: Mapping[str, tuple[str, Array]],
    derivation: Derivation,
    checkpoint: Checkpoint,
) -> tuple[WeightProgram, bytes]:
    """Builds the weight program and the bytes of constants.bin.

    `constants` maps a key to (format, array). A constant that the checkpoint holds under its name (a buffer that was
    saved) comes from there, since what the code computed for it is not what the model was saved with.

    Raises WeightError naming the param where a leaf has no origin or shapes disagree.
    """
    program = WeightProgram()
    saved = {key for key in constants if key in derivation.origins and checkpoint.kind != ABSENT}
    kept = {CONSTANT_PREFIX + key: value for key, value in constants.items() if key not in saved}
    content, source, stored = pack_constants(kept, len(checkpoint.sources))
    program.sources = [*checkpoint.sources, source]
    tensors: dict[str, StoredTensor] = {**checkpoint.tensors, **stored}

    for param in params:
        segments = []
        for i, segment in enumerate(param.segments):
            where = f"{param.name} segment {i}"

            def resolve(op: str, name: str, where: str = where) -> Expr:
                if op == "constant" and name not in saved:
                    if CONSTANT_PREFIX + name not in stored:
                        raise WeightError(f"[{where}] expected a constant, found none of the name {name!r}")
                    return stored[CONSTANT_PREFIX + name].expr(CONSTANT_PREFIX + name)
                if name not in derivation.origins:
                    raise WeightError(f"[{where}] the checkpoint {checkpoint.path} has nothing for {name!r}")
                return derivation.origins[name]

            made = keep_stored(parse_expr(segment.expr, resolve, where, dequantize=True))
            segments.append(Segment(segment.rows, made))
        program.params.append(WeightParam(param.name, tuple(param.shape), segments))

    program.notes = list(_notes(program))
    used = set[str]().union(*(tensor_names(s.expr) for p in program.params for s in p.segments))
    program.tensors = {name: t for name, t in tensors.items() if name in used}
    program.unused = [] if checkpoint.kind == ABSENT else _unused(used, derivation, checkpoint)
    program.check()
    return program, content


def _unused(used: set[str], derivation: Derivation, checkpoint: Checkpoint) -> list[str]:
    """Tensors of the checkpoint that nothing takes: unknown to the model, or of parts that no token reaches."""
    return sorted({*derivation.unused, *checkpoint.names()} - used - derivation.copies)


def _notes(program: WeightProgram) -> Iterator[str]:
    """A line for each block format of which tensors are not kept."""
    turned: dict[str, str] = {}
    for param in program.params:
        for segment in param.segments:
            turned |= dequantized_tensors(segment.expr)
    for fmt in sorted(set(turned.values())):
        names = [name for name, f in turned.items() if f == fmt]
        shown = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
        yield (
            f"{len(names)} tensors of {fmt} are dequantized to f32, because their rows do not stay whole, are joined "
            f"with another format or take part in arithmetic: {shown}"
        )
