"""Compiled GPU kernels of an artifact, and their JSON form (docs/kernels.md).

`kernels.json` says for each binary in the folder `kernels/` how it is launched, and for instructions of the Program
which binary serves them, by activation type and target.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .fields import MAX_RANK, Fields
from .files import KERNELS, KERNELS_FOLDER
from .program import MAX_PARTS_DEPTH, Instruction, Program

FORMAT = "autodeploy.kernels"
VERSION = (1, 0)

ACTS = ("bfloat16", "float16", "float32")
ARG_TYPES = ("ptr", "i32", "i64", "f32")
FORMATS = {"sm": "cubin", "compute": "ptx"}
MAX_KERNEL_BYTES = 64 << 20
MAX_KERNELS = 1 << 16
MAX_ARGS = 512
MAX_EXPR_DEPTH = 8
MAX_SHARED_BYTES = 1 << 20
MAX_SCRATCH_BYTES = 1 << 30
MAX_WARPS = 32

_TARGET = re.compile(r"(sm|compute)_([1-9][0-9]{1,2})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[0-9a-f]{16,64}\.(cubin|ptx)")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,1023}")

# A number known when an instruction runs (docs/kernels.md, Expressions); as an argument of a launch also a pointer.
Expr = int | float | dict[str, Any]
_OPERATORS = ("mul", "add", "cdiv", "min", "max")


@dataclass(frozen=True)
class KernelArg:
    """A parameter of a kernel. Its code relies on it being a multiple of `divisible_by`; of a pointer: in bytes."""

    type: str
    divisible_by: int = 1


@dataclass(frozen=True)
class Scratch:
    """Memory that a launch hands to its blocks: `bytes` for each, at a multiple of `align`."""

    bytes: int = 0
    align: int = 1


@dataclass(frozen=True)
class Kernel:
    """One binary and its launch contract. After `args` a kernel takes two pointers more: global and profile scratch."""

    file: str
    size: int
    sha256: str
    target: str
    symbol: str
    num_warps: int
    args: tuple[KernelArg, ...]
    shared_bytes: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    global_scratch: Scratch = Scratch()
    profile_scratch: Scratch = Scratch()

    @property
    def format(self) -> str:
        """What the file holds: machine code of one architecture, or text that a driver compiles."""
        return FORMATS[self.target.split("_")[0]]


@dataclass(frozen=True)
class Launch:
    """How one instruction is run: `path` leads to it (its index, then those of parts) in the Program or a body.

    `kernels` maps activation types to targets to indices of kernels, which all take `args`.
    """

    path: tuple[int, ...]
    args: tuple[Expr, ...]
    grid: tuple[Expr, Expr, Expr]
    kernels: dict[str, dict[str, int]]
    body: int | None = None


@dataclass
class Kernels:
    """The content of kernels.json. `program` is the sha256 of the program.json that the launches speak of."""

    program: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": {"major": VERSION[0], "minor": VERSION[1]},
            "program": self.program,
            "versions": dict(sorted(self.versions.items())),
            "kernels": [kernel_to_json(k) for k in self.kernels],
            "launches": [_launch_to_json(launch) for launch in self.launches],
        }

    @classmethod
    def from_json(cls, data: object) -> Kernels:
        """Builds it from the object of kernels.json; raises ArtifactError naming the first wrong field."""
        top = Fields(data, KERNELS)
        top.version(FORMAT, VERSION)
        versions = top.mapping("versions")
        if not all(isinstance(v, str) for v in versions.values()):
            raise ArtifactError(f"[{KERNELS}.versions] expected strings")
        found = cls(
            program=_matching(top, "program", _SHA256, "the sha256 of program.json"),
            versions=versions,
            kernels=[kernel_from_json(k) for k in top.items("kernels")],
            launches=[_launch_from_json(launch) for launch in top.items("launches")],
        )
        top.finish()
        return found


def digest(content: bytes) -> str:
    """The sha256 of a file, as kernels.json has it."""
    return hashlib.sha256(content).hexdigest()


def instruction_at(program: Program, path: Sequence[int], body: int | None = None) -> Instruction:
    """The instruction that a launch speaks of; ArtifactError where there is none."""
    steps = list(path)
    instructions = program.instructions
    if body is not None:
        if not 0 <= body < len(program.bodies):
            raise ArtifactError(f"[{KERNELS}] expected a body below {len(program.bodies)}, found {body}")
        instructions = program.bodies[body].instructions
    for depth, step in enumerate(steps):
        if not 0 <= step < len(instructions):
            raise ArtifactError(f"[{KERNELS}] the path {steps} leads to no instruction")
        if depth == len(steps) - 1:
            return instructions[step]
        instructions = instructions[step].parts
    raise ArtifactError(f"[{KERNELS}] expected a path of at least one index, found none")


def check_kernels(kernels: Kernels, program: Program, program_digest: str) -> None:
    """Raises ArtifactError naming the first thing that breaks a rule of docs/kernels.md."""
    if kernels.program != program_digest:
        raise ArtifactError(f"[{KERNELS}] was written for another program.json: compile the model again")
    if len(kernels.kernels) > MAX_KERNELS:
        raise ArtifactError(f"[{KERNELS}] expected at most {MAX_KERNELS} kernels, found {len(kernels.kernels)}")
    for i, kernel in enumerate(kernels.kernels):
        _check_kernel(kernel, f"{KERNELS}.kernels[{i}]")
    seen = set()
    for i, launch in enumerate(kernels.launches):
        where = f"{KERNELS}.launches[{i}]"
        if (launch.body, launch.path) in seen:
            raise ArtifactError(f"[{where}] a second launch of the same instruction")
        seen.add((launch.body, launch.path))
        _check_launch(kernels, launch, program, where)


def read_binary(folder: Path, kernel: Kernel) -> bytes:
    """The bytes of a kernel, which are those that were written. Raises ArtifactError."""
    path = folder / KERNELS_FOLDER / kernel.file
    try:
        content = path.read_bytes() if path.stat().st_size == kernel.size else b""
    except OSError as e:
        raise ArtifactError(f"[{path}] {e.strerror}: the artifact is damaged, compile it again") from None
    if len(content) != kernel.size or digest(content) != kernel.sha256:
        raise ArtifactError(f"[{path}] expected other content: the artifact is damaged, compile it again")
    return content


def split_target(target: str) -> tuple[str, int]:
    """("sm" or "compute", architecture) of a target such as sm_90 or compute_80."""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ArtifactError(f"[{KERNELS}] expected a target such as sm_90 or compute_80, found {target!r}")
    return match[1], int(match[2])


def _check_kernel(kernel: Kernel, where: str) -> None:
    def need(ok: bool, expected: str, found: object) -> None:
        if not ok:
            raise ArtifactError(f"[{where}] expected {expected}, found {found}")

    split_target(kernel.target)
    need(kernel.file.endswith("." + kernel.format), f"a file of {kernel.format} for {kernel.target}", kernel.file)
    need(0 < kernel.size <= MAX_KERNEL_BYTES, f"1 to {MAX_KERNEL_BYTES} bytes", kernel.size)
    warps = kernel.num_warps
    need(1 <= warps <= MAX_WARPS and warps & (warps - 1) == 0, f"a power of two up to {MAX_WARPS} of warps", warps)
    need(kernel.shared_bytes <= MAX_SHARED_BYTES, f"at most {MAX_SHARED_BYTES} shared bytes", kernel.shared_bytes)
    need(all(1 <= c <= 16 for c in kernel.cluster), "cluster dims from 1 to 16", list(kernel.cluster))
    need(len(kernel.args) <= MAX_ARGS, f"at most {MAX_ARGS} args", len(kernel.args))
    for scratch in (kernel.global_scratch, kernel.profile_scratch):
        need(scratch.bytes <= MAX_SCRATCH_BYTES, f"at most {MAX_SCRATCH_BYTES} bytes of scratch", scratch.bytes)
        need(scratch.align & (scratch.align - 1) == 0 and 1 <= scratch.align <= 4096, "an alignment", scratch.align)
    for arg in kernel.args:
        need(arg.type in ARG_TYPES, f"args of {', '.join(ARG_TYPES)}", arg.type)
        by = arg.divisible_by
        need(1 <= by <= 4096 and by & (by - 1) == 0, "a power of two up to 4096 as divisible_by", by)
        need(by == 1 or arg.type != "f32", "floats without divisible_by", by)


def _check_launch(kernels: Kernels, launch: Launch, program: Program, where: str) -> None:
    instruction = instruction_at(program, launch.path, launch.body)
    for e in launch.grid:
        _check_expr(e, instruction, where, "i64")
    if not launch.kernels:
        raise ArtifactError(f"[{where}] expected at least one kernel")
    for act, targets in launch.kernels.items():
        if act not in ACTS:
            raise ArtifactError(f"[{where}] expected activation types of {', '.join(ACTS)}, found {act!r}")
        for target, index in targets.items():
            if not 0 <= index < len(kernels.kernels) or kernels.kernels[index].target != target:
                raise ArtifactError(f"[{where}] kernel {index} is none for {target}")
            args = kernels.kernels[index].args
            if len(args) != len(launch.args):
                raise ArtifactError(f"[{where}] expected {len(args)} args for kernel {index}, found {len(launch.args)}")
            for arg, e in zip(args, launch.args, strict=True):
                _check_expr(e, instruction, where, arg.type)


def _check_expr(e: Expr, instruction: Instruction, where: str, wanted: str, depth: int = 0) -> None:
    """`wanted` is an argument's type: pointers are operands, floats literals or attributes, integers anything else."""
    words = {"ptr": "an operand", "f32": "a number or an attribute"}.get(wanted, "an integer expression")

    def need(ok: bool) -> None:
        if not ok:
            raise ArtifactError(f"[{where}] expected {words} for {wanted}, found {e!r}")

    need(depth < MAX_EXPR_DEPTH)
    if not isinstance(e, dict):
        need(wanted != "ptr" and not isinstance(e, bool) and (isinstance(e, int) or wanted == "f32"))
        return
    need(len(e) == 1)
    (key, x), *_ = e.items()
    if key in ("in", "out"):
        need(wanted == "ptr" and _names_operand([key, x], instruction))
    elif key == "attr":
        need(wanted != "ptr" and isinstance(instruction.attrs.get(x), (int, float)))
        need(wanted == "f32" or isinstance(instruction.attrs.get(x), int))
    elif key == "numel":
        need(wanted in ("i32", "i64") and _names_operand(x, instruction))
    elif key in ("size", "stride"):
        need(wanted in ("i32", "i64") and isinstance(x, list) and len(x) == 3 and _names_operand(x[:2], instruction))
        need(isinstance(x[2], int) and 0 <= x[2] < MAX_RANK)
    else:
        need(wanted in ("i32", "i64") and key in _OPERATORS and isinstance(x, list) and len(x) == 2)
        for y in x:
            _check_expr(y, instruction, where, wanted, depth + 1)


def _names_operand(x: object, instruction: Instruction) -> bool:
    if not isinstance(x, list) or len(x) != 2 or isinstance(x[1], bool) or not isinstance(x[1], int):
        return False
    if x[0] == "in":
        return 0 <= x[1] < len(instruction.inputs) and instruction.inputs[x[1]] is not None
    return x[0] == "out" and 0 <= x[1] < len(instruction.outputs)


def kernel_to_json(k: Kernel) -> dict[str, Any]:
    """One kernel as kernels.json has it."""
    return {
        "file": k.file,
        "size": k.size,
        "sha256": k.sha256,
        "target": k.target,
        "symbol": k.symbol,
        "num_warps": k.num_warps,
        "shared_bytes": k.shared_bytes,
        "cluster": list(k.cluster),
        "global_scratch": {"bytes": k.global_scratch.bytes, "align": k.global_scratch.align},
        "profile_scratch": {"bytes": k.profile_scratch.bytes, "align": k.profile_scratch.align},
        "args": [{"type": a.type, "divisible_by": a.divisible_by} for a in k.args],
    }


def kernel_from_json(f: Fields) -> Kernel:
    """The kernel of an object of kernels.json; raises ArtifactError naming the first wrong field."""
    cluster = f.ints("cluster", 1)
    if len(cluster) != 3:
        raise ArtifactError(f"[{f.path}.cluster] expected three dims, found {len(cluster)}")
    return Kernel(
        file=_matching(f, "file", _FILE, "a digest with the suffix .cubin or .ptx"),
        size=f.integer("size", 1),
        sha256=_matching(f, "sha256", _SHA256, "a sha256"),
        target=f.text("target"),
        symbol=_matching(f, "symbol", _SYMBOL, "the name of a function"),
        num_warps=f.integer("num_warps", 1),
        args=tuple(KernelArg(a.text("type"), a.integer("divisible_by", 1)) for a in f.items("args")),
        shared_bytes=f.integer("shared_bytes"),
        cluster=(cluster[0], cluster[1], cluster[2]),
        global_scratch=_scratch(f.child("global_scratch")),
        profile_scratch=_scratch(f.child("profile_scratch")),
    )


def _scratch(f: Fields) -> Scratch:
    return Scratch(f.integer("bytes"), f.integer("align", 1))


def _launch_to_json(launch: Launch) -> dict[str, Any]:
    out: dict[str, Any] = {} if launch.body is None else {"body": launch.body}
    return out | {
        "path": list(launch.path),
        "args": list(launch.args),
        "grid": list(launch.grid),
        "kernels": launch.kernels,
    }


def _launch_from_json(f: Fields) -> Launch:
    body = f.integer("body") if f.has("body") else None
    path = f.ints("path")
    if not 1 <= len(path) <= MAX_PARTS_DEPTH + 1:
        raise ArtifactError(f"[{f.path}.path] expected 1 to {MAX_PARTS_DEPTH + 1} indices, found {len(path)}")
    args = f.values("args")
    grid = f.values("grid")
    if len(grid) != 3:
        raise ArtifactError(f"[{f.path}.grid] expected three dims, found {len(grid)}")
    kernels: dict[str, dict[str, int]] = {}
    by_act = f.child("kernels")
    for act in f.mapping("kernels"):
        kernels[act] = by_act.index_map(act)
    return Launch(path, tuple(args), (grid[0], grid[1], grid[2]), kernels, body)


def _matching(f: Fields, name: str, pattern: re.Pattern[str], words: str) -> str:
    text = f.text(name)
    if pattern.fullmatch(text) is None:
        raise ArtifactError(f"[{f.path}.{name}] expected {words}, found {text[:80]!r}")
    return text


def binary_name(kernel: Kernel) -> str:
    """The path of a kernel's file within its artifact."""
    return f"{KERNELS_FOLDER}/{kernel.file}"


def check_binaries(kernels: Kernels, binaries: Mapping[str, bytes]) -> None:
    """Raises ArtifactError unless these are the bytes of every kernel's file, by its name."""
    if {k.file for k in kernels.kernels} != set(binaries):
        raise ArtifactError(f"[{KERNELS}] expected the binaries of its kernels, found others")
    for k in kernels.kernels:
        if (len(binaries[k.file]), digest(binaries[k.file])) != (k.size, k.sha256):
            raise ArtifactError(f"[{KERNELS}] the binary {k.file} is another than the one described")
