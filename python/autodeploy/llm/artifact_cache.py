"""Compiled artifacts on disk, by key.

<root>/artifacts/<key>/artifact/      the artifact
<root>/artifacts/<key>/entry.json     what it was made from, and when
<root>/artifacts/.<key>.<pid>.tmp/    a compile under way
<root>/locks/<key>.lock               held by the process that compiles
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autodeploy.artifact import is_artifact

from .env import cache_root

_LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class CacheEntry:
    """A cached artifact: its key, what it was compiled from, bytes on disk, and times in seconds since the epoch."""

    key: str
    source: str
    artifact_dir: Path
    num_bytes: int
    created: float
    last_used: float


class ArtifactCache:
    """The cache of compiled artifacts; safe to use from several processes at once."""

    def __init__(self, root: Path | None = None):
        self.root = cache_root() if root is None else root
        self._artifacts = self.root / "artifacts"

    def find(self, key: str) -> Path | None:
        """The artifact of a key, or None; counts as a use."""
        artifact_dir = self._artifacts / key / "artifact"
        if not is_artifact(artifact_dir):
            return None
        with contextlib.suppress(OSError):  # a read-only cache serves as well
            os.utime(self._artifacts / key / "entry.json")
        return artifact_dir

    def find_or_make(self, key: str, source: str, make: Callable[[Path], None], report: Callable[[str], None]) -> Path:
        """The artifact of a key; where there is none, `make(folder)` writes it.

        One process makes a key at a time, the others wait for it. When `make` fails nothing is left behind.
        Raises ValueError where the cache folder cannot be written.
        """
        if (found := self.find(key)) is not None:
            return found
        with self._locked(key, report):
            if (found := self.find(key)) is not None:
                return found
            self._remove_leftovers(key)
            temporary = self._artifacts / f".{key}.{os.getpid()}.tmp"
            try:
                with self._explained():
                    temporary.mkdir(parents=True)
                make(temporary / "artifact")
                with self._explained():
                    (temporary / "entry.json").write_text(json.dumps({"source": source, "created": time.time()}))
                    shutil.rmtree(self._artifacts / key, ignore_errors=True)  # a damaged entry
                    os.rename(temporary, self._artifacts / key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return self._artifacts / key / "artifact"

    def entries(self) -> list[CacheEntry]:
        """All artifacts, the one used last first."""
        found = []
        for folder in self._artifacts.iterdir() if self._artifacts.is_dir() else ():
            if folder.name.startswith("."):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                entry = json.loads((folder / "entry.json").read_text())
                size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                used = (folder / "entry.json").stat().st_mtime
                source, created = str(entry["source"]), float(entry["created"])
                found.append(CacheEntry(folder.name, source, folder / "artifact", size, created, used))
        return sorted(found, key=lambda entry: -entry.last_used)

    def clear(self, keys: list[str] | None = None) -> int:
        """Remove the artifacts of these keys (default all, with what killed compiles left); returns how many.

        A compile under way is left alone.
        """
        removed = 0
        for folder in list(self._artifacts.iterdir()) if self._artifacts.is_dir() else ():
            key = folder.name.lstrip(".").split(".")[0]
            if keys is not None and key not in keys:
                continue
            with contextlib.suppress(BlockingIOError), self._locked(key, None):
                if folder.name == key:
                    # Renamed first, so that no other process finds half an artifact.
                    doomed = self._artifacts / f".{key}.{os.getpid()}.old"
                    os.rename(folder, doomed)
                    shutil.rmtree(doomed, ignore_errors=True)
                    removed += 1
                else:
                    shutil.rmtree(folder, ignore_errors=True)
        return removed

    def _remove_leftovers(self, key: str) -> None:
        for folder in self._artifacts.glob(f".{key}.*"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, key: str, report: Callable[[str], None] | None) -> Iterator[None]:
        """Hold the lock of a key; waits for it, or raises BlockingIOError where `report` is None."""
        with self._explained():
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = open(self.root / "locks" / f"{key}.lock", "w")  # noqa: SIM115
        with lock:
            told = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if report is None:
                        raise
                    if not told:
                        report("waiting for another process that compiles this model")
                        told = True
                    time.sleep(_LOCK_POLL_SECONDS)
            yield  # closing the file releases the lock

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns a failing file system into an error that says what to do."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "free some space (autodeploy cache clear), or set AUTODEPLOY_CACHE_DIR to another disk"
            else:
                hint = "set AUTODEPLOY_CACHE_DIR to a folder that can be written"
            raise ValueError(f"[cache] {self.root} cannot be written: {error.strerror or error}; {hint}") from None
