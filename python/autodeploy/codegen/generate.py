"""Kernels for the instructions of a Program: those of regions are written here, those of a model's author are given;
equal ones are compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from autodeploy.artifact.kernels import Expr, Kernel, Kernels, Launch, digest
from autodeploy.artifact.program import Instruction, Param, Program, Value
from autodeploy.custom_ops import CustomOp, declared_op

from .author_kernels import AuthorLaunch, author_launch
from .iteration import Walk, walk_of
from .kernel_cache import KernelCache, cache_key
from .region_source import KernelSource, block_size, region_source
from .targets import Targets
from .triton_compile import (
    OPTIONS,
    Binary,
    compile_function,
    compile_source,
    require_triton,
    triton_errors,
)

Report = Callable[[str], None]
Grid = tuple[Expr, Expr, Expr]
Schemas = Mapping[str, Sequence[tuple[str, bool]]]
"""Of an author's operators: their arguments, as (name, whether it is a tensor)."""


@dataclass(frozen=True)
class Site:
    """An instruction and where it stands: in the Program or in a body, at a path of indices."""

    instruction: Instruction
    path: tuple[int, ...]
    body: int | None
    values: list[Value]
    params: list[Param]


@dataclass(frozen=True)
class _Job:
    """A kernel to compile. Equal facts give equal binaries."""

    facts: str
    compile: Callable[[int, tuple[str, ...]], dict[str, Binary]] = field(compare=False)


@dataclass(frozen=True)
class _Planned:
    """An instruction with what it is launched with, and its kernel by activation type."""

    site: Site
    args: tuple[Expr, ...]
    grid: Grid
    jobs: dict[str, _Job]


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
    program: Program,
    targets: Targets,
    *,
    schemas: Schemas | None = None,
    cache_folder: Path | None = None,
    report: Report = lambda text: None,
) -> Generated:
    """Compiles kernels for the regions of a Program, and for operators whose author gave a kernel, for each activation
    type and target.

    Args:
        schemas: arguments of the author's operators.
        cache_folder: where compiled kernels are kept for the next time; None: nowhere.
        report: called with lines of progress.

    Raises:
        ValueError: Triton is not there, or an author's launch does not fit its kernel.
    """
    generated = Generated()
    if not targets.archs:
        return generated
    version = str(require_triton().__version__)
    generated.kernels.versions["triton"] = version
    planned = [p for site in sites(program) if (p := _plan(program, site, targets.acts, schemas or {})) is not None]
    # In the order of their first use, so that equal Programs give equal files.
    wanted: dict[_Job, dict[str, int]] = {job: {} for p in planned for job in p.jobs.values()}
    store = KernelCache(cache_folder)
    for done, job in enumerate(wanted):
        report(f"compiling GPU kernels: {done + 1} of {len(wanted)}")
        for arch, names in targets.names.items():
            for target, (kernel, content) in _compiled(job, arch, names, version, store).items():
                wanted[job][target] = _place(generated, kernel, content)
    for p in planned:
        by_act = {act: dict(wanted[job]) for act, job in p.jobs.items()}
        generated.kernels.launches.append(Launch(p.site.path, p.args, p.grid, by_act, p.site.body))
    return generated


def _plan(program: Program, site: Site, acts: Sequence[str], schemas: Schemas) -> _Planned | None:
    """What an instruction needs; None where it has a kernel of the runtime's own."""
    instruction = site.instruction
    if instruction.op == "region":
        walk = walk_of(instruction, site.values, site.params)
        region = program.regions[int(instruction.attrs["region"])]  # type: ignore[arg-type]
        sources = {act: region_source(region, walk.iteration, act) for act in acts}
        return _Planned(site, *region_launch(instruction, walk), {act: _region_job(s) for act, s in sources.items()})
    op = declared_op(instruction.op) if "::" in instruction.op else None
    if op is None or op.triton is None:
        return None
    order = schemas.get(op.name)
    if order is None:
        raise ValueError(f"[codegen] expected the arguments of {op.name}, found none")
    launches = [author_launch(op, order, instruction, site.values, site.params, act) for act in acts]
    first = launches[0]
    if any((other.args, other.grid) != (first.args, first.grid) for other in launches):
        raise ValueError(
            f"[custom op] {op.name}: expected the same arguments and grid for {', '.join(acts)}, found a launch that "
            "depends on the dtype; compile for one of them (--act)"
        )
    jobs = {act: _author_job(op, launch) for act, launch in zip(acts, launches, strict=True)}
    return _Planned(site, first.args, first.grid, jobs)


def region_launch(instruction: Instruction, walk: Walk) -> tuple[tuple[Expr, ...], Grid]:
    """Arguments and grid of a region's kernel, as region_source.py writes it."""
    args: list[Expr] = [{"in": i} for i in range(len(instruction.inputs))]
    args += [{"out": o} for o in range(len(instruction.outputs))]
    count: Expr = {"numel": ["out", 0]}
    return (*args, count, *walk.numbers), ({"cdiv": [count, block_size(walk.iteration)]}, 1, 1)


def _region_job(source: KernelSource) -> _Job:
    facts = cache_key(source.name, source.text, source.params, source.num_warps, _device_functions())
    return _Job(facts, lambda arch, names: compile_source(source, arch, names))


def _author_job(op: CustomOp, launch: AuthorLaunch) -> _Job:
    facts = cache_key(op.triton.cache_key, launch.params, repr(launch.constexprs), launch.options)
    constexprs, options = dict(launch.constexprs), dict(launch.options)

    def compile_it(arch: int, names: tuple[str, ...]) -> dict[str, Binary]:
        try:
            return compile_function(op.triton, launch.params, constexprs, options, arch, names)
        except triton_errors() as error:
            text = " ".join(str(error).split())
            where = f"[custom op] {op.name}"
            raise ValueError(f"{where}: Triton cannot compile its kernel for sm_{arch}: {text}") from error

    return _Job(facts, compile_it)


def _compiled(
    job: _Job, arch: int, names: tuple[str, ...], version: str, store: KernelCache
) -> dict[str, tuple[Kernel, bytes]]:
    key = cache_key(job.facts, arch, version, OPTIONS)
    found = {name: hit for name in names if (hit := store.find(key, name)) is not None}
    if len(found) == len(names):
        return found
    made = job.compile(arch, names)
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
def _device_functions() -> str:
    """A digest of what sources of regions call."""
    return digest(Path(__file__).with_name("device_functions.py").read_bytes())
