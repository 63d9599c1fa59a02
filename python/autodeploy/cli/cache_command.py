"""`autodeploy cache`: the compiled artifacts on this machine."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from autodeploy.llm.artifact_cache import ArtifactCache
from autodeploy.llm.env import kernel_cache_folder

from .tables import format_bytes, format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the artifacts, the one used last first")
    listing.add_argument("--json", action="store_true", help="print JSON")
    clear = actions.add_parser("clear", help="remove artifacts and GPU kernels; compiles under way are left alone")
    clear.add_argument("keys", nargs="*", metavar="KEY", help="keys, or their beginnings (default: all)")
    for action in (listing, clear):
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    cache = ArtifactCache()
    return _list(cache, args.json) if args.action == "list" else _clear(cache, args.keys)


def _list(cache: ArtifactCache, as_json: bool) -> int:
    entries = cache.entries()
    if as_json:
        facts = [vars(entry) | {"artifact_dir": str(entry.artifact_dir)} for entry in entries]
        print(json.dumps({"root": str(cache.root), "entries": facts}, indent=2))
        return 0
    print(f"{cache.root}: {len(entries)} artifacts, {format_bytes(sum(entry.num_bytes for entry in entries))}")
    kernels = _kernel_files()
    if kernels:
        print(f"{len(kernels)} compiled GPU kernels, {format_bytes(sum(path.stat().st_size for path in kernels))}")
    if entries:
        rows = [
            (entry.key[:12], format_bytes(entry.num_bytes), _when(entry.created), _when(entry.last_used), entry.source)
            for entry in entries
        ]
        print(format_table(("key", "size", "compiled", "last used", "source"), rows, right=(1,)))
    return 0


def _clear(cache: ArtifactCache, keys: list[str]) -> int:
    if not keys:
        print(f"{cache.clear()} artifacts removed")
        kernels = _kernel_files()
        for path in kernels:
            path.unlink(missing_ok=True)
        if kernels:
            print(f"{len(kernels)} compiled GPU kernels removed")
        return 0
    known = [entry.key for entry in cache.entries()]
    chosen = []
    for key in keys:
        matches = [name for name in known if name.startswith(key)] if key else []
        if len(matches) != 1:
            raise ValueError(
                f"[cache] {key!r}: expected the beginning of one key, found {len(matches)}; see cache list"
            )
        chosen += matches
    print(f"{cache.clear(chosen)} artifacts removed")
    return 0


def _kernel_files() -> list[Path]:
    folder = kernel_cache_folder()
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
