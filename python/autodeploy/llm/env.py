"""The environment variables that autodeploy reads: one typed table. A bad value is an error, never ignored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_BYTE_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "kib": 2**10, "m": 10**6, "mb": 10**6, "mib": 2**20}
_BYTE_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 2**30, "t": 10**12, "tb": 10**12, "tib": 2**40}
_MAX_BYTES = 2**50
_MAX_THREADS = 1024


def parse_bytes(value: int | str) -> int:
    """Bytes from a number or from text such as "512MiB", "2 GB" or "1.5GiB". Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected a size such as 2147483648 or '2GiB', found {value!r}")
    if isinstance(value, int):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", value)
        unit = _BYTE_UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f"expected a size such as '512MiB' or '2GB', found {value!r}")
        size = int(float(match.group(1)) * unit) if "." in match.group(1) else int(match.group(1)) * unit
    if not 0 < size <= _MAX_BYTES:
        raise ValueError(f"expected a size between 1 byte and 1 PiB, found {value!r}")
    return size


def parse_threads(value: int | str) -> int:
    """A thread count, 1 to 1024. Raises ValueError."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", text) or not 1 <= int(text) <= _MAX_THREADS:
        raise ValueError(f"expected a number of threads from 1 to {_MAX_THREADS}, found {value!r}")
    return int(text)


def _parse_path(text: str) -> Path:
    if "\0" in text or not text.strip():
        raise ValueError(f"expected a folder, found {text!r}")
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"expected an absolute path, found {text!r}")
    return path


def _parse_folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError(f"expected a folder that is there, found {text!r}")
    return Path(text)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.strip().lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, found {text!r}")
        return text.strip().lower()

    return parse


def parse_plugins(value: str | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Absolute paths of shared libraries, from paths or from text with colons between them. Raises ValueError."""
    paths = value.split(":") if isinstance(value, str) else list(value)
    found = []
    for path in paths:
        if not os.fspath(path):
            continue
        if not Path(path).expanduser().is_file():
            raise ValueError(f"expected shared libraries that are there, found {os.fspath(path)!r}")
        found.append(str(Path(path).expanduser().absolute()))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class EnvVar(Generic[T]):
    """One variable: its name, how its text is read, what holds when it is unset or empty, and what it is for."""

    name: str
    parse: Callable[[str], T]
    default: T
    doc: str

    def get(self, environ: Mapping[str, str] | None = None) -> T:
        """The value. Raises ValueError naming the variable when its text is not acceptable."""
        text = (os.environ if environ is None else environ).get(self.name, "")
        if text == "":
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise ValueError(f"[environment] {self.name}: {error}; correct it or unset it") from None


CACHE_DIR: EnvVar[Path | None] = EnvVar(
    "AUTODEPLOY_CACHE_DIR",
    _parse_path,
    None,
    "folder of compiled artifacts; else XDG_CACHE_HOME/autodeploy or ~/.cache/autodeploy",
)
CACHE_MEMORY: EnvVar[int | None] = EnvVar(
    "AUTODEPLOY_CACHE_MEMORY", parse_bytes, None, "memory of the engine's caches (pages and slots), such as 2GiB"
)
DEVICE: EnvVar[str] = EnvVar("AUTODEPLOY_DEVICE", str.strip, "cpu", "where the engine runs: cpu, cuda or cuda:N")
NUM_THREADS: EnvVar[int | None] = EnvVar(
    "AUTODEPLOY_NUM_THREADS", parse_threads, None, "threads of the engine; else all cores this process may use"
)
LOG: EnvVar[str] = EnvVar(
    "AUTODEPLOY_LOG", _one_of("error", "warning", "info", "debug"), "warning", "how much the Python side logs"
)
PROGRESS: EnvVar[str] = EnvVar(
    "AUTODEPLOY_PROGRESS", _one_of("auto", "on", "off"), "auto", "progress lines on stderr; auto: on a terminal only"
)
DUMP: EnvVar[Path | None] = EnvVar(
    "AUTODEPLOY_DUMP", _parse_path, None, "folder that receives the graph after each transform of a compile"
)
NATIVE_DIR: EnvVar[Path | None] = EnvVar(
    "AUTODEPLOY_NATIVE_DIR", _parse_folder, None, "folder of a developer's build of the extension module"
)

PLUGINS: EnvVar[tuple[str, ...]] = EnvVar(
    "AUTODEPLOY_PLUGINS",
    parse_plugins,
    (),
    "shared libraries with kernels for a model author's own operators, with colons between them",
)

ENV_VARS: tuple[EnvVar[object], ...] = (  # type: ignore[assignment]
    *(CACHE_DIR, CACHE_MEMORY, DEVICE, NUM_THREADS, LOG, PROGRESS, DUMP, NATIVE_DIR, PLUGINS),
)


def check_environment(environ: Mapping[str, str] | None = None) -> None:
    """Read every variable once, so that a bad one is reported before any work is done. Raises ValueError."""
    for variable in ENV_VARS:
        variable.get(environ)


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the artifact cache (it need not exist)."""
    environ = os.environ if environ is None else environ
    if (configured := CACHE_DIR.get(environ)) is not None:
        return configured
    # The XDG base directory specification: a relative path there is to be ignored.
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "autodeploy"


def kernel_cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of compiled GPU kernels (it need not exist)."""
    return cache_root(environ) / "kernels"
