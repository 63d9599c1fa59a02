"""What a model's generation config says about sampling."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# transformers samples with these where do_sample is set and the file gives no value.
_SAMPLING_TEMPERATURE = 1.0
_SAMPLING_TOP_K = 50


@dataclass(frozen=True)
class GenerationDefaults:
    """Values that hold where the user gives none. `eos_token_ids` end a sequence unless `ignore_eos` is asked for."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    suppress_token_ids: tuple[int, ...] = ()


def _number(config: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"[generation config] {key}: expected a number from {low} to {high}, found {value!r}")
    return value


def _token_ids(config: dict[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in ids):
        raise ValueError(f"[generation config] {key}: expected a token id or a list of them, found {value!r}")
    return tuple(dict.fromkeys(ids))


def parse_generation_config(config: dict[str, Any]) -> GenerationDefaults:
    """Defaults from the fields of a generation_config.json. Greedy unless it says `do_sample`, as in transformers.

    Raises ValueError where a field is out of range.
    """
    if not isinstance(config, dict):
        raise ValueError(f"[generation config] expected an object, found {type(config).__name__}")
    samples = config.get("do_sample") is True
    max_tokens = config.get("max_new_tokens")
    return GenerationDefaults(
        temperature=float(_number(config, "temperature", _SAMPLING_TEMPERATURE, 0.0, 100.0)) if samples else 0.0,
        top_k=int(_number(config, "top_k", _SAMPLING_TOP_K, 0, 2**31 - 1)) if samples else 0,
        top_p=float(_number(config, "top_p", 1.0, 1e-9, 1.0)) if samples else 1.0,
        min_p=float(_number(config, "min_p", 0.0, 0.0, 1.0)) if samples else 0.0,
        repetition_penalty=float(_number(config, "repetition_penalty", 1.0, 1e-3, 100.0)),
        max_tokens=None if max_tokens is None else int(_number(config, "max_new_tokens", 0, 1, 2**31 - 1)),
        eos_token_ids=_token_ids(config, "eos_token_id"),
        suppress_token_ids=_token_ids(config, "suppress_tokens"),
    )


def read_generation_defaults(artifact_dir: Path) -> GenerationDefaults:
    """The defaults of an artifact; an artifact without generation_config.json has none."""
    path = artifact_dir / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"[generation config] {path} cannot be read: {error}; compile the model again") from None
    return parse_generation_config(config)
