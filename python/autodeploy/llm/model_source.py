"""From what a user names as MODEL to an artifact folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autodeploy.artifact import is_artifact, read_manifest

from .artifact_cache import ArtifactCache
from .checkpoint_key import checkpoint_key
from .compile_client import compile_in_child, resolve_in_child
from .gpu_kernels import GpuKernels


def prepare_artifact(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    plugins: Sequence[str] = (),
    load_format: str = "auto",
    gpu: GpuKernels | None = None,
    report: Callable[[str], None] = lambda text: None,
    cache: ArtifactCache | None = None,
) -> Path:
    """The artifact folder for MODEL. A checkpoint is compiled in a child process unless the cache has its artifact.

    plugins, load_format: as of `compile_model`; the digests of the libraries go into the artifact.
    gpu: kernels to compile along; an artifact that is given is taken as it is.
    report: called with lines of progress. Raises ValueError for a user's mistake, CompileError where compiling fails.
    """
    name = os.fspath(model)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"[model] expected a folder, a .gguf file, a hub id or an alias, found {model!r}")
    path = Path(name).expanduser()
    if is_artifact(path):
        if revision is not None:
            raise ValueError(f"[model] revision goes with a hub id; {name} is an artifact")
        return path.resolve()
    checkpoint = find_local_checkpoint(name)
    if checkpoint is None:
        report(f"looking for {name}")
        options = {} if load_format == "auto" else {"weights": False}
        checkpoint, revision = resolve_in_child(
            name, revision=revision, trust_remote_code=trust_remote_code, report=report, **options
        )
    elif revision is not None:
        raise ValueError(f"[model] revision goes with a hub id; {name} is a local checkpoint")
    cache = ArtifactCache() if cache is None else cache
    weights = load_format == "auto" or checkpoint.is_file()  # a .gguf file is configuration and weights in one
    wanted = {} if gpu is None else {"targets": [f"cuda:{gpu.arch}"], "acts": [gpu.act]}
    try:
        key = checkpoint_key(
            checkpoint, trust_remote_code=trust_remote_code, plugins=plugins, weights=weights, **wanted
        )
    except OSError as error:
        raise ValueError(f"[model] {error.filename} cannot be read: {error.strerror}") from None

    def make(out: Path) -> None:
        report(f"compiling {name}")
        more: dict[str, Any] = {"plugins": list(plugins)} if plugins else {}
        more |= {} if weights else {"load_format": load_format}
        more |= {} if gpu is None else {"device_arch": gpu.arch, "acts": [gpu.act]}
        compile_in_child(name, out, revision=revision, trust_remote_code=trust_remote_code, report=report, **more)

    return cache.find_or_make(key, name, make, report)


def find_local_checkpoint(name: str) -> Path | None:
    """The path of that name where it is a checkpoint; None where there is none on disk, so that it may be a hub id.

    Raises ValueError for a file or folder that is no checkpoint, and for a path that does not exist.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"[model] {path}: expected a checkpoint folder or a .gguf file, found another file")
        return path
    if path.is_dir():
        if (path / "artifact.json").is_file():
            read_manifest(path)  # says what is wrong with it
        if not (path / "config.json").is_file():
            raise ValueError(f"[model] {path}: expected config.json (a checkpoint) or artifact.json, found neither")
        return path
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf") or name.count("/") > 1:
        raise ValueError(f"[model] {path} does not exist; give a checkpoint, a .gguf file, a hub id or an artifact")
    return None
