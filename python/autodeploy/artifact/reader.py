"""Reads an artifact folder and checks that it is whole."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .fields import Fields
from .files import FORMAT, KERNELS, MANIFEST, MAX_JSON_BYTES, PROGRAM, REQUIRED, VERSION, WEIGHTS, Provenance, load_json
from .kernels import Kernels, check_kernels, digest, read_binary
from .program import Program
from .validate import validate


@dataclass
class Artifact:
    """An artifact as read: `weights` is the object of weights.json, `files` the sizes of all but artifact.json.

    `kernels` are those compiled for GPUs, None where the model was compiled without.
    """

    path: Path
    program: Program
    weights: dict[str, Any]
    provenance: Provenance
    files: dict[str, int] = field(default_factory=dict)
    kernels: Kernels | None = None

    def read_text(self, name: str) -> str | None:
        """An optional text file of the artifact, or None where it has none of that name."""
        return (self.path / name).read_text(encoding="utf-8") if name in self.files else None


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether a folder claims to be an artifact (its artifact.json says so); it may still be damaged."""
    manifest = Path(path) / MANIFEST
    try:
        if manifest.stat().st_size > MAX_JSON_BYTES:
            return False
        data = load_json(manifest.read_bytes(), MANIFEST)
    except (OSError, ArtifactError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def read_manifest(path: str | os.PathLike[str]) -> tuple[Provenance, dict[str, int]]:
    """Reads artifact.json and checks that the files it lists are there with their sizes; no other file is opened."""
    folder = Path(path)
    top = Fields(load_json(_read(folder, MANIFEST), str(folder / MANIFEST)), str(folder / MANIFEST))
    top.version(FORMAT, VERSION)
    provenance = Provenance.from_json(top.child("provenance"))
    files = top.child("files")
    sizes = {}
    for name in sorted(top.mapping("files")):
        if name != os.path.basename(name) or name in ("", ".", "..", MANIFEST):
            raise ArtifactError(f"[{folder / MANIFEST}] expected plain file names, found {name!r}")
        sizes[name] = files.child(name).integer("size")
    top.finish()
    for name in REQUIRED:
        if name not in sizes:
            raise ArtifactError(f"[{folder / MANIFEST}] the artifact lists no {name}: compile the model again")
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as e:
            raise ArtifactError(f"[{folder / name}] {e.strerror}: the artifact is damaged, compile it again") from None
        if found != size:
            raise ArtifactError(
                f"[{folder / name}] expected {size} bytes, found {found}: the artifact is damaged, compile it again"
            )
    return provenance, sizes


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Reads and validates an artifact. Raises ArtifactError naming the file and field that is wrong."""
    folder = Path(path)
    provenance, sizes = read_manifest(folder)
    raw = _read(folder, PROGRAM)
    program = Program.from_json(load_json(raw, str(folder / PROGRAM)))
    validate(program)
    weights = load_json(_read(folder, WEIGHTS), str(folder / WEIGHTS))
    if not isinstance(weights, dict):
        raise ArtifactError(f"[{folder / WEIGHTS}] expected an object")
    kernels = _read_kernels(folder, program, digest(raw)) if KERNELS in sizes else None
    return Artifact(folder, program, weights, provenance, sizes, kernels)


def _read_kernels(folder: Path, program: Program, program_digest: str) -> Kernels:
    """kernels.json, and every binary that it names compared with its digest."""
    kernels = Kernels.from_json(load_json(_read(folder, KERNELS), str(folder / KERNELS)))
    check_kernels(kernels, program, program_digest)
    for kernel in kernels.kernels:
        read_binary(folder, kernel)
    return kernels


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtifactError(f"[{path}] expected at most {MAX_JSON_BYTES} bytes of JSON")
        return path.read_bytes()
    except OSError as e:
        hint = "this is not an artifact folder" if name == MANIFEST else "the artifact is damaged, compile it again"
        raise ArtifactError(f"[{path}] {e.strerror}: {hint}") from None
