"""Kernel sources to binaries: the one place that calls Triton's compiler. It needs no GPU."""

from __future__ import annotations

import contextlib
import linecache
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from autodeploy.artifact.kernels import Kernel, KernelArg, Scratch, digest, split_target

from .region_source import KernelSource

TRITON_VERSIONS = ((3, 6), (3, 10))
"""From the first up to below the second: releases whose kernels are known to be launched as kernels.json says."""

_ARG_TYPES = {"i32": "i32", "i64": "i64", "fp32": "f32"}
# Contraction would skip a rounding; flushing would make 0 of small numbers within elementary functions.
OPTIONS = {"enable_fp_fusion": False, "enable_reflect_ftz": False}
_PARAM = re.compile(r"\.param\s+\.(\w+)")
_PARAM_WIDTHS = {"ptr": 8, "i64": 8, "i32": 4, "f32": 4}


@dataclass(frozen=True)
class Binary:
    """A compiled kernel as the artifact has it, with its bytes."""

    kernel: Kernel
    content: bytes


def require_triton() -> ModuleType:
    """Triton, of a release that the launch contract holds for. Raises ValueError saying what to install."""
    try:
        import triton
    except ImportError:
        raise ValueError(
            "[codegen] expected Triton to compile kernels for GPUs, found none: install autodeploy[cuda], or compile "
            "with --target cpu"
        ) from None
    release = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not TRITON_VERSIONS[0] <= release < TRITON_VERSIONS[1]:
        low, high = (".".join(map(str, v)) for v in TRITON_VERSIONS)
        raise ValueError(
            f"[codegen] expected Triton from {low} to below {high}, found {triton.__version__}: install "
            "autodeploy[cuda], or compile with --target cpu"
        )
    return triton


def triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises where a function is wrong or too large for a target."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return CompilationError, OutOfResources, PTXASError


def load_function(source: KernelSource, device: ModuleType) -> Any:
    """The jitted function of a source. `device` holds the functions that it calls (device_functions.py)."""
    import triton
    import triton.language as tl

    # Triton reads a function's text again, through linecache.
    file = f"<{source.name} {digest(source.text.encode())[:16]}>"
    linecache.cache[file] = (len(source.text), None, source.text.splitlines(True), file)
    namespace: dict[str, Any] = {"triton": triton, "tl": tl, "device": device, "__name__": "autodeploy_generated"}
    exec(compile(source.text, file, "exec"), namespace)
    return namespace[source.name]


def compile_source(source: KernelSource, arch: int, targets: tuple[str, ...]) -> dict[str, Binary]:
    """Compiles for one architecture; returns a binary per target that is wanted of it."""
    require_triton()
    from . import device_functions

    function = load_function(source, device_functions)
    return compile_function(function, source.params, {}, {"num_warps": source.num_warps}, arch, targets)


def compile_function(
    function: Any,
    params: Sequence[tuple[str, str, int]],
    constexprs: dict[str, Any],
    options: dict[str, Any],
    arch: int,
    targets: tuple[str, ...],
) -> dict[str, Binary]:
    """Compiles a jitted function. `params` are (name, Triton's type, multiple of); other parameters are constexprs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: kind for name, kind, _ in params} | dict.fromkeys(constexprs, "constexpr")
    places = {name: i for i, name in enumerate(function.arg_names)}
    attrs = {(places[name],): [["tt.divisibility", by]] for name, _, by in params if by > 1}
    ordered = {name: signature[name] for name in function.arg_names}
    source = ASTSource(fn=function, signature=ordered, constexprs=constexprs, attrs=attrs)
    with _own_settings():
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS | options)
    meta = compiled.metadata
    by_name = {name: (kind, by) for name, kind, by in params}
    args = tuple(_arg(*by_name[name]) for name in function.arg_names if name in by_name)
    _check_params(compiled.asm["ptx"], args, meta.name)
    binaries = {}
    for target in targets:
        kind = split_target(target)[0]
        content = compiled.asm["cubin"] if kind == "sm" else compiled.asm["ptx"].encode()
        sha = digest(content)
        kernel = Kernel(
            file=f"{sha[:32]}.{'cubin' if kind == 'sm' else 'ptx'}",
            size=len(content),
            sha256=sha,
            target=target,
            symbol=meta.name,
            num_warps=meta.num_warps,
            args=args,
            shared_bytes=meta.shared,
            cluster=(meta.num_ctas, 1, 1),
            global_scratch=Scratch(meta.global_scratch_size, max(1, meta.global_scratch_align)),
            profile_scratch=Scratch(meta.profile_scratch_size, max(1, meta.profile_scratch_align)),
        )
        binaries[target] = Binary(kernel, content)
    return binaries


def _arg(kind: str, divisible_by: int) -> KernelArg:
    return KernelArg("ptr" if kind.startswith("*") else _ARG_TYPES[kind], divisible_by)


def _check_params(ptx: str, args: tuple[KernelArg, ...], symbol: str) -> None:
    """That the compiled function takes what the launch contract says: its args, then two pointers."""
    head = ptx[ptx.index(f".entry {symbol}(") :]
    head = head[: head.index("{") if "{" in head else len(head)]
    found = [int(re.sub(r"\D", "", kind)) // 8 for kind in _PARAM.findall(head)]
    wanted = [_PARAM_WIDTHS[a.type] for a in args] + [8, 8]
    if found != wanted:
        raise AssertionError(f"[codegen] {symbol} takes parameters of {found} bytes where {wanted} were expected")


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Settings of Triton's that make equal sources equal binaries; its own cache is left out."""
    from triton import knobs

    settings = knobs.cache.scope(), knobs.compilation.scope()
    with tempfile.TemporaryDirectory(prefix="autodeploy-triton-") as folder, settings[0], settings[1]:
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True
        knobs.compilation.always_compile = True
        yield
