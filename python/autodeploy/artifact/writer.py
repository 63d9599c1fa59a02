"""Writes an artifact folder: whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .files import (
    CONSTANTS,
    FORMAT,
    KERNELS,
    KERNELS_FOLDER,
    MANIFEST,
    OPTIONAL,
    PROGRAM,
    VERSION,
    WEIGHTS,
    Provenance,
    dump_json,
)
from .kernels import Kernels, check_binaries, check_kernels, digest
from .program import Program
from .reader import is_artifact
from .validate import validate

# A file's content, or a function that writes it to the path given.
Content = bytes | Callable[[Path], None]


def write_artifact(
    directory: str | os.PathLike[str],
    program: Program,
    weights: dict[str, Any],
    provenance: Provenance,
    files: Mapping[str, Content],
    kernels: Kernels | None = None,
    binaries: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes an artifact and returns its folder.

    `weights` is the object of weights.json; `files` holds constants.bin and whichever of the optional files there are.
    `kernels` are compiled kernels of the Program, whose digest is filled in here, with `binaries` by their file names.
    Everything is written and synced in a temporary folder beside `directory`, which then takes its place. An earlier
    artifact or an empty folder is replaced; anything else is refused. On any failure nothing is left behind and an
    earlier artifact stays.

    Raises ArtifactError on a program that is not valid, a target that is not an artifact, or a failing file system.
    """
    validate(program)
    unknown = sorted(set(files) - {CONSTANTS, *OPTIONAL})
    if unknown or CONSTANTS not in files:
        raise ArtifactError(f"[write] expected {CONSTANTS} and any of {', '.join(OPTIONAL)}, found {sorted(files)}")
    target = Path(directory).absolute()
    _check_target(target)

    contents: dict[str, Content] = {
        PROGRAM: dump_json(program.to_json()),
        WEIGHTS: dump_json(weights),
        **{name: files[name] for name in (CONSTANTS, *OPTIONAL) if name in files},
    }
    if kernels is not None:
        kernels.program = digest(dump_json(program.to_json()))
        check_kernels(kernels, program, kernels.program)
        check_binaries(kernels, binaries or {})
        contents[KERNELS] = dump_json(kernels.to_json())
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        if binaries:
            (temporary / KERNELS_FOLDER).mkdir()
            for name, content in binaries.items():
                _write_file(temporary / KERNELS_FOLDER / name, content)
            _sync_folder(temporary / KERNELS_FOLDER)
        sizes = {name: _write_file(temporary / name, content) for name, content in contents.items()}
        manifest = {
            "format": FORMAT,
            "version": {"major": VERSION[0], "minor": VERSION[1]},
            "provenance": provenance.to_json(),
            "files": {name: {"size": size} for name, size in sizes.items()},
        }
        _write_file(temporary / MANIFEST, dump_json(manifest))
        _sync_folder(temporary)
        _replace(temporary, target)
    except OSError as e:
        raise ArtifactError(_explain(e, target)) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check_target(target: Path) -> None:
    if not target.exists() or is_artifact(target):
        return
    if not target.is_dir():
        raise ArtifactError(f"[write] expected a folder at {target}, found a file: choose another output")
    if any(target.iterdir()):
        raise ArtifactError(
            f"[write] {target} is not an artifact and not empty, so it will not be overwritten: choose another output"
        )


def _write_file(path: Path, content: Content) -> int:
    """Writes and syncs one file; returns its size."""
    if isinstance(content, bytes):
        with open(path, "xb") as f:
            f.write(content)
    else:
        content(path)
    with open(path, "rb+") as f:
        os.fsync(f.fileno())
        return os.fstat(f.fileno()).st_size


def _replace(temporary: Path, target: Path) -> None:
    """Moves the finished folder to its place; what stood there stays until the new one is in."""
    old = temporary.with_suffix(".old")
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        if old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some file systems cannot sync a folder; the rename is atomic all the same.
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def _explain(e: OSError, target: Path) -> str:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"[write] no space left for the artifact {target}: free some, or choose an output on another disk"
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"[write] not allowed to write {target} ({e.strerror}): choose another output"
    return f"[write] could not write the artifact {target}: {e}"
