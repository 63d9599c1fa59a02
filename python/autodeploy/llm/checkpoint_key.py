"""A key for what a compile depends on: equal keys, equal artifacts."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Packages whose versions decide what an artifact looks like.
_PACKAGES = ("autodeploy", "torch", "transformers", "tokenizers", "safetensors", "gguf")
# Rooms of our own package that no artifact depends on.
_SERVING_ROOMS = ("llm", "cli", "serve", "testing")
_WEIGHT_SUFFIXES = (".safetensors", ".gguf")
_MAX_SAFETENSORS_HEADER = 100 << 20  # what the format allows
_GGUF_HEADER_BYTES = 1 << 20
_KEY_LEN = 40


def checkpoint_key(
    checkpoint: Path,
    *,
    trust_remote_code: bool,
    plugins: Sequence[str] = (),
    targets: Sequence[str] = (),
    acts: Sequence[str] = (),
    weights: bool = True,
) -> str:
    """Hex digest over a local checkpoint (a folder, or a .gguf file), the code that would compile it, and the options.

    Weights count by path, size, time of change and header; every other file of the folder by its bytes, or by size and
    time where it is large. Without `weights` it is the key of the folder's configuration alone. Raises OSError where a
    file cannot be read.
    """
    checkpoint = checkpoint.resolve()
    files = [checkpoint] if checkpoint.is_file() else sorted(p for p in checkpoint.iterdir() if p.is_file())
    if not weights:
        files = [path for path in files if path.suffix not in _WEIGHT_SUFFIXES]
    facts: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "files": [_file_facts(path) for path in files],
        "modelling_code": _modelling_code(checkpoint),
        "compiler": _compiler_code(),
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": list(sys.version_info[:2])},
        "trust_remote_code": trust_remote_code,
    }
    if not weights:
        facts["load_format"] = "dummy"
    if plugins:
        facts["plugins"] = [[Path(p).name, hashlib.sha256(Path(p).read_bytes()).hexdigest()] for p in plugins]
    if targets:
        facts["targets"] = {"targets": list(targets), "acts": list(acts), "triton": _version("triton")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_KEY_LEN]


def _file_facts(path: Path) -> list[object]:
    stat = path.stat()
    facts: list[object] = [path.name, stat.st_size]
    if path.suffix in _WEIGHT_SUFFIXES:
        return [*facts, stat.st_mtime_ns, _header_digest(path)]
    if stat.st_size > (4 << 20):
        return [*facts, stat.st_mtime_ns]
    return [*facts, hashlib.sha256(path.read_bytes()).hexdigest()]


def _header_digest(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(8)
        length = _GGUF_HEADER_BYTES
        if path.suffix == ".safetensors":
            length = min(int.from_bytes(begin, "little"), _MAX_SAFETENSORS_HEADER)
        return hashlib.sha256(begin + file.read(length)).hexdigest()


def _modelling_code(checkpoint: Path) -> str:
    """Digest of the model's folder in transformers, which someone may have edited; "" where that is not to be found."""
    try:
        config = json.loads((checkpoint / "config.json").read_bytes())
        model_type = str(config["model_type"]).replace("-", "_")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    spec = importlib.machinery.PathFinder.find_spec("transformers")
    if not model_type.isidentifier() or spec is None or spec.origin is None:
        return ""
    return _digest_sources((Path(spec.origin).parent / "models" / model_type).glob("*.py"), by_content=True)


def _compiler_code() -> str:
    """Digest of this package's compiler, by size and time of its files: an edited checkout compiles anew."""
    package = Path(__file__).parent.parent
    sources = (p for p in package.rglob("*.py") if p.relative_to(package).parts[0] not in _SERVING_ROOMS)
    return _digest_sources(sources, by_content=False)


def _digest_sources(paths: Iterable[Path], *, by_content: bool) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        if by_content:
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        else:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
