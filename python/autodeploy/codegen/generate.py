"""Kernels for the instructions of a Program: the ones for regions are written here, equal ones compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from autodeploy.artifact.kernels import Expr, Kernel, Kernels, Launch, digest
from autodeploy.artifact.program import Instruction, Param, Program, Value

from .iteration import Walk, walk_of
from .kernel_cache import KernelCache, cache_key
from .region_source import KernelSource, block_size, region_source
from .targets import Targets
from .triton_compile import OPTIONS, TRITON_VERSION, compile_source, require_triton

Report = Callable[[str], None]
Grid = tuple[Expr, Expr, Expr]


@dataclass(frozen=True)
class Site:
    """An instruction and where it stands: in the Program or in a body, at a path of indices."""

    instruction: Instruction
    path: tuple[int, ...]
    body: int | None
    values: list[Value]
    params: list[Param]


@dataclass
class Generated:
    """What goes into the artifact: kernels.json, and the binaries by file name."""

    kernels: Kernels = field(default_factory=Kernels)
    binaries: dict[str, bytes] = field(default_factory=dict)


def sites(program: Program) -> Iterator[Site]:
    """Every instruction of a Program: its own with the parts of composites, then those of its bodies."""

    def walk(instructions: list[Instruction], path: tuple[int, ...], body: int | None) -> Iterator[Site]:
        values = program.values if body is None else program.bodies[body].values
        for i, instruction in enumerate(instructions):
            yield Site(instruction, (*path, i), body, values, program.params)
            yield from walk(instruction.parts, (*path, i), body)

    yield from walk(program.instructions, (), None)
    for b, body in enumerate(program.bodies):
        yield from walk(body.instructions, (), b)


def generate(
    program: Program, targets: Targets, *, cache_folder: Path | None = None, report: Report = lambda text: None
) -> Generated:
    """Compiles a kernel for every region instruction of a Program, for each activation type and target.

    Args:
        cache_folder: where compiled kernels are kept for the next time; None: nowhere.
        report: called with lines of progress.

    Raises:
        ValueError: Triton is not there.
    """
    generated = Generated()
    regions = [site for site in sites(program) if site.instruction.op == "region"]
    if not targets.archs:
        return generated
    require_triton()
    generated.kernels.versions["triton"] = TRITON_VERSION
    # Sources in the order of their first use, so that equal Programs give equal files.
    wanted: dict[KernelSource, dict[str, int]] = {}
    launches: list[tuple[Site, tuple[Expr, ...], Grid, dict[str, KernelSource]]] = []
    for site in regions:
        walk = walk_of(site.instruction, site.values, site.params)
        region = program.regions[int(site.instruction.attrs["region"])]  # type: ignore[arg-type]
        sources = {act: region_source(region, walk.iteration, act) for act in targets.acts}
        wanted |= {source: {} for source in sources.values() if source not in wanted}
        launches.append((site, *region_launch(site.instruction, walk), sources))

    store = KernelCache(cache_folder)
    for done, source in enumerate(wanted):
        report(f"compiling GPU kernels: {done + 1} of {len(wanted)}")
        for arch, names in targets.names.items():
            for target, (kernel, content) in _compiled(source, arch, names, store).items():
                wanted[source][target] = _place(generated, kernel, content)
    for site, args, grid, sources in launches:
        by_act = {act: dict(wanted[source]) for act, source in sources.items()}
        generated.kernels.launches.append(Launch(site.path, args, grid, by_act, site.body))
    return generated


def region_launch(instruction: Instruction, walk: Walk) -> tuple[tuple[Expr, ...], Grid]:
    """Arguments and grid of a region's kernel, as region_source.py writes it."""
    args: list[Expr] = [{"in": i} for i in range(len(instruction.inputs))]
    args += [{"out": o} for o in range(len(instruction.outputs))]
    count: Expr = {"numel": ["out", 0]}
    return (*args, count, *walk.numbers), ({"cdiv": [count, block_size(walk.iteration)]}, 1, 1)


def _compiled(
    source: KernelSource, arch: int, names: tuple[str, ...], store: KernelCache
) -> dict[str, tuple[Kernel, bytes]]:
    key = cache_key(source.name, source.text, source.params, source.num_warps, arch, _toolchain())
    found = {name: hit for name in names if (hit := store.find(key, name)) is not None}
    if len(found) == len(names):
        return found
    made = compile_source(source, arch, names)
    for binary in made.values():
        store.keep(key, binary.kernel, binary.content)
    return {name: (binary.kernel, binary.content) for name, binary in made.items()}


def _place(generated: Generated, kernel: Kernel, content: bytes) -> int:
    """The index of a kernel in the file; equal ones have one."""
    if kernel not in generated.kernels.kernels:
        generated.kernels.kernels.append(kernel)
        generated.binaries[kernel.file] = content
    return generated.kernels.kernels.index(kernel)


@cache
def _toolchain() -> list[object]:
    """What a binary depends on besides its source."""
    functions = Path(__file__).with_name("device_functions.py").read_bytes()
    return [TRITON_VERSION, OPTIONS, digest(functions)]
