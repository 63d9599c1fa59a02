"""Compiled kernels on disk, so that equal sources are compiled once on a machine.

<folder>/<key>.<target>     one line of JSON, the launch contract; then the binary
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path

from autodeploy.artifact import ArtifactError
from autodeploy.artifact.fields import Fields
from autodeploy.artifact.kernels import Kernel, digest, kernel_from_json, kernel_to_json

_KEY_LEN = 40
_MAX_HEADER = 1 << 20


def cache_key(*facts: object) -> str:
    """The key of what a compile depends on: JSON data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_KEY_LEN]


class KernelCache:
    """A folder of compiled kernels, or nothing where `folder` is None; safe to use from several processes at once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str, target: str) -> tuple[Kernel, bytes] | None:
        """A kernel and its bytes; None where there is none, or a damaged one."""
        if self._folder is None:
            return None
        try:
            with open(self._folder / f"{key}.{target}", "rb") as file:
                header = file.readline(_MAX_HEADER)
                content = file.read()
            kernel = kernel_from_json(Fields(json.loads(header), "kernel"))
        except (OSError, ValueError, ArtifactError):
            return None
        whole = (len(content), digest(content), target) == (kernel.size, kernel.sha256, kernel.target)
        return (kernel, content) if whole else None

    def keep(self, key: str, kernel: Kernel, content: bytes) -> None:
        """Keeps a kernel; a folder that cannot be written costs the next compile its time, nothing else."""
        if self._folder is None:
            return
        header = json.dumps(kernel_to_json(kernel), separators=(",", ":")).encode() + b"\n"
        temporary = self._folder / f".{key}.{secrets.token_hex(4)}.tmp"
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(header + content)
                os.replace(temporary, self._folder / f"{key}.{kernel.target}")
            finally:
                temporary.unlink(missing_ok=True)
