"""Options of the engine, checked, and the native engine made from them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import env

if TYPE_CHECKING:
    from .engine_session import NativeEngine

_MAX_SEQ_LEN = 2**30
_MAX_NUM_SEQS = 65536
_MAX_BATCH_TOKENS = 2**24
_LOAD_FORMATS = ("auto", "dummy")
_DUMMY_ROUTINGS = ("model", "uniform")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_DEVICE = re.compile(r"cpu|cuda(-emulated)?(:\d{1,3})?")


def _check_count(name: str, value: int | None, high: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high):
        raise ValueError(f"[options] {name}: expected an integer from 1 to {high}, found {value!r}")


@dataclass(frozen=True)
class EngineOptions:
    """Limits and choices of an engine; None leaves a choice to the engine. cache_bytes in bytes."""

    max_seq_len: int | None = None
    max_num_seqs: int | None = None
    max_batch_tokens: int | None = None
    cache_bytes: int | None = None
    num_threads: int | None = None
    exact: bool = False
    load_format: str | None = None
    dummy_seed: int | None = None
    dummy_routing: str | None = None
    time_steps: bool = False
    gpu_memory_fraction: float | None = None
    plugins: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "auto"

    @classmethod
    def from_user(
        cls,
        *,
        max_seq_len: int | None = None,
        max_num_seqs: int | None = None,
        max_batch_tokens: int | None = None,
        cache_memory: int | str | None = None,
        threads: int | None = None,
        dtype: str = "auto",
        exact: bool = False,
        load_format: str = "auto",
        dummy_seed: int = 0,
        dummy_routing: str = "model",
        time_steps: bool = False,
        gpu_memory_fraction: float | None = None,
        plugins: Iterable[str | os.PathLike[str]] | None = None,
        device: str | None = None,
    ) -> EngineOptions:
        """Options from what a user gave; the environment fills in memory and threads. Raises ValueError."""
        env.check_environment()
        _check_count("max_seq_len", max_seq_len, _MAX_SEQ_LEN)
        if max_seq_len == 1:
            raise ValueError("[options] max_seq_len: expected at least 2 (prompt and answer), found 1")
        _check_count("max_num_seqs", max_num_seqs, _MAX_NUM_SEQS)
        _check_count("max_batch_tokens", max_batch_tokens, _MAX_BATCH_TOKENS)
        device = env.DEVICE.get() if device is None else device
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise ValueError(f"[options] device: expected cpu, cuda or cuda:N, found {device!r}")
        known = _DTYPES[:2] if device == "cpu" else _DTYPES
        if dtype not in known:
            raise ValueError(f"[options] dtype: expected one of {', '.join(known)} on {device}, found {dtype!r}")
        if not isinstance(exact, bool):
            raise ValueError(f"[options] exact: expected True or False, found {exact!r}")
        if load_format not in _LOAD_FORMATS:
            raise ValueError(
                f"[options] load_format: expected one of {', '.join(_LOAD_FORMATS)}, found {load_format!r}"
            )
        if isinstance(dummy_seed, bool) or not isinstance(dummy_seed, int) or not 0 <= dummy_seed < 2**63:
            raise ValueError(f"[options] dummy_seed: expected an integer from 0 to 2**63 - 1, found {dummy_seed!r}")
        if gpu_memory_fraction is not None and (
            isinstance(gpu_memory_fraction, bool)
            or not isinstance(gpu_memory_fraction, int | float)
            or not 0 < gpu_memory_fraction <= 1
        ):
            raise ValueError(
                f"[options] gpu_memory_fraction: expected a number above 0, up to 1, found {gpu_memory_fraction!r}"
            )
        dummy = load_format == "dummy"
        if dummy_seed and not dummy:
            raise ValueError(f"[options] dummy_seed: expected load_format dummy beside it, found {load_format}")
        if dummy_routing not in _DUMMY_ROUTINGS:
            raise ValueError(
                f"[options] dummy_routing: expected one of {', '.join(_DUMMY_ROUTINGS)}, found {dummy_routing!r}"
            )
        if dummy_routing != "model" and not dummy:
            raise ValueError(f"[options] dummy_routing: expected load_format dummy beside it, found {load_format}")
        if not isinstance(time_steps, bool):
            raise ValueError(f"[options] time_steps: expected True or False, found {time_steps!r}")
        return cls(
            max_seq_len=max_seq_len,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            cache_bytes=_or(cache_memory, "cache_memory", env.parse_bytes, env.CACHE_MEMORY),
            num_threads=_or(threads, "threads", env.parse_threads, env.NUM_THREADS),
            exact=exact,
            load_format=load_format if dummy else None,
            dummy_seed=dummy_seed if dummy else None,
            dummy_routing=dummy_routing if dummy_routing != "model" else None,
            time_steps=time_steps,
            gpu_memory_fraction=gpu_memory_fraction,
            plugins=plugin_paths(plugins),
            device=device,
            dtype=dtype,
        )

    def to_native(self) -> dict[str, Any]:
        """The options that were chosen, as the native engine takes them."""
        options = {name: value for name, value in vars(self).items() if value is not None and name != "plugins"}
        for name, default in (("device", "cpu"), ("dtype", "auto"), ("time_steps", False)):
            if options[name] == default:
                del options[name]
        return options | ({"plugins": list(self.plugins)} if self.plugins else {})


def plugin_paths(given: Iterable[str | os.PathLike[str]] | None) -> tuple[str, ...]:
    """Libraries with kernels for an author's operators: those given, else the environment's. Raises ValueError."""
    if given is None:
        return env.PLUGINS.get()
    if isinstance(given, str | os.PathLike):
        raise ValueError(f"[options] plugins: expected a list of paths, found {given!r}")
    try:
        return env.parse_plugins(given)
    except ValueError as error:
        raise ValueError(f"[options] plugins: {error}") from None


def _or(given: Any, name: str, parse: Callable[[Any], int], variable: env.EnvVar[int | None]) -> int | None:
    if given is None:
        return variable.get()
    try:
        return parse(given)
    except ValueError as error:
        raise ValueError(f"[options] {name}: {error}") from None


def make_engine(artifact_dir: Path, options: EngineOptions, progress: Callable[..., None]) -> NativeEngine:
    """The C++ engine. Raises ValueError for an artifact or options it refuses, ImportError where it was not built."""
    from autodeploy._load_native import load_native

    return load_native().Engine(str(artifact_dir), options.to_native(), progress)
