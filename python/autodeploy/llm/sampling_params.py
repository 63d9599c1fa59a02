"""How a request's tokens are chosen and when it ends."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .generation_defaults import GenerationDefaults

DEFAULT_MAX_TOKENS = 256
MAX_COMPLETIONS = 64
MAX_LOGPROBS = 128
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_LEN = 4096
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 4096
_MAX_INT = 2**31 - 1
_MAX_SEED = 2**63 - 1
_MIN_TEMPERATURE = 1e-4
_FORBIDDEN = -100.0  # the bias of tokens that a generation config suppresses


def _fail(field: str, expected: str, found: object) -> None:
    raise ValueError(f"[sampling] {field}: expected {expected}, found {found!r}")


def _check_int(field: str, value: object, low: int, high: int, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _fail(field, expected, value)


def _check_float(field: str, value: object, low: float, high: float, expected: str, *, above: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (above and value == low):
        _fail(field, expected, value)


def _check_bool(field: str, value: object) -> None:
    if not isinstance(value, bool):
        _fail(field, "True or False", value)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of a request are chosen. `None` means: as the model's generation config says, else the default.

    The order is: logit_bias, the three penalties, temperature, top_k, top_p, min_p, then the draw.

    n: completions per prompt, each a sequence of its own; more than one needs a temperature above 0.
    max_tokens: tokens to generate at most (default 256); cut to what fits into the engine's max_seq_len.
    temperature: 0 is greedy; above 0 the logits are divided by it.
    top_k: only the k likeliest tokens; 0 for all.
    top_p: only the likeliest tokens that together reach this probability; 1 for all.
    min_p: only tokens with at least this share of the likeliest token's probability.
    repetition_penalty: above 1 divides (positive) or multiplies (negative) the logits of tokens of the prompt and the
        answer (Keskar et al. 2019, arXiv:1909.05858).
    presence_penalty, frequency_penalty: subtracted from the logits of tokens of the answer, once or per occurrence.
    logit_bias: token id -> number added to its logit, -100 (as good as forbidden) to 100.
    seed: the same seed and prompt give the same tokens; completion i of n uses seed + i. None draws a fresh one.
    stop: strings that end the answer; the text stops before them, unless include_stop_str.
    stop_token_ids: token ids that end the answer besides the model's own.
    min_tokens: neither a stop nor an end token counts before so many tokens.
    ignore_eos: the model's own end tokens do not end the answer.
    logprobs: None, or how many of the likeliest tokens to report at each place, besides the chosen one (0 to 128).
    skip_special_tokens: leave special tokens out of the text.

    Raises ValueError for a value out of range, naming the field.
    """

    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _check_int("n", self.n, 1, MAX_COMPLETIONS, f"an integer from 1 to {MAX_COMPLETIONS}")
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, _MAX_INT, "an integer of at least 1")
        _check_int("min_tokens", self.min_tokens, 0, _MAX_INT, "an integer of at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _fail("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)
        if self.temperature is not None:
            _check_float("temperature", self.temperature, 0, 100, "0 (greedy) or a number from 0.0001 to 100")
            if 0 < self.temperature < _MIN_TEMPERATURE:
                _fail("temperature", "0 (greedy) or a number from 0.0001 to 100", self.temperature)
        if self.top_k is not None:
            _check_int("top_k", self.top_k, 0, _MAX_INT, "an integer of at least 1, or 0 for all tokens")
        if self.top_p is not None:
            _check_float("top_p", self.top_p, 0, 1, "a number above 0, up to 1", above=True)
        if self.min_p is not None:
            _check_float("min_p", self.min_p, 0, 1, "a number from 0 to 1")
        if self.repetition_penalty is not None:
            expected = "a number above 0, up to 100"
            _check_float("repetition_penalty", self.repetition_penalty, 0, 100, expected, above=True)
        for field in ("presence_penalty", "frequency_penalty"):
            _check_float(field, getattr(self, field), -2, 2, "a number from -2 to 2")
        if self.seed is not None:
            _check_int("seed", self.seed, 0, _MAX_SEED, "an integer from 0 to 2**63 - 1")
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS, f"None or an integer from 0 to {MAX_LOGPROBS}")
        for field in ("include_stop_str", "ignore_eos", "skip_special_tokens"):
            _check_bool(field, getattr(self, field))
        self._normalise_stops()
        self._normalise_bias()

    def _normalise_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if stop is None or not isinstance(stop, Sequence) or not all(isinstance(text, str) for text in stop):
            _fail("stop", "a string or a list of strings", self.stop)
        if len(stop) > MAX_STOP_STRINGS or not all(0 < len(text) <= MAX_STOP_STRING_LEN for text in stop):
            _fail("stop", f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_STRING_LEN} characters", self.stop)
        ids = self.stop_token_ids
        if not isinstance(ids, Sequence) or isinstance(ids, str) or len(ids) > MAX_STOP_TOKEN_IDS:
            _fail("stop_token_ids", f"a list of at most {MAX_STOP_TOKEN_IDS} token ids", ids)
        for token_id in ids:
            _check_int("stop_token_ids", token_id, 0, _MAX_INT, "token ids of at least 0")
        object.__setattr__(self, "stop", tuple(dict.fromkeys(stop)))
        object.__setattr__(self, "stop_token_ids", tuple(dict.fromkeys(ids)))

    def _normalise_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_LOGIT_BIAS:
            _fail("logit_bias", f"a dict of at most {MAX_LOGIT_BIAS} token ids and numbers", self.logit_bias)
        for token_id, bias in self.logit_bias.items():
            _check_int("logit_bias", token_id, 0, _MAX_INT, "token ids of at least 0")
            _check_float("logit_bias", bias, -100, 100, "numbers from -100 to 100")
        object.__setattr__(self, "logit_bias", {i: float(bias) for i, bias in self.logit_bias.items()})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, without repetitions."""
        return tuple(self.stop)


def resolve_params(
    params: SamplingParams, defaults: GenerationDefaults, *, vocab_size: int, num_prompt_tokens: int, max_seq_len: int
) -> list[dict[str, Any]]:
    """The engine's parameters for each of the n completions: every default filled in, every id checked.

    `max_tokens` is cut to the room that the prompt leaves. Raises ValueError.
    """

    def pick(field: str) -> Any:
        given = getattr(params, field)
        return getattr(defaults, field) if given is None else given

    temperature = float(pick("temperature"))
    if params.n > 1 and temperature == 0:
        _fail("n", "1 where the temperature is 0 (every completion would be the same)", params.n)
    max_tokens = DEFAULT_MAX_TOKENS if pick("max_tokens") is None else pick("max_tokens")
    max_tokens = min(max(max_tokens, params.min_tokens), max_seq_len - num_prompt_tokens)
    for field in ("stop_token_ids", "logit_bias"):
        for token_id in getattr(params, field) or ():
            _check_int(field, token_id, 0, vocab_size - 1, f"token ids below the vocabulary size {vocab_size}")
    bias = dict(params.logit_bias or {})
    bias |= {i: _FORBIDDEN for i in defaults.suppress_token_ids if i < vocab_size and i not in bias}
    seed = random.SystemRandom().getrandbits(62) if params.seed is None else params.seed
    common = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": int(pick("top_k")),
        "top_p": float(pick("top_p")),
        "min_p": float(pick("min_p")),
        "repetition_penalty": float(pick("repetition_penalty")),
        "presence_penalty": float(params.presence_penalty),
        "frequency_penalty": float(params.frequency_penalty),
        "logit_bias": bias,
        "min_tokens": min(params.min_tokens, max_tokens),
        "ignore_eos": params.ignore_eos,
        "logprobs": params.logprobs,
        "stop_token_ids": list(params.stop_token_ids),
        "eos_token_ids": [i for i in defaults.eos_token_ids if i < vocab_size],
    }
    return [common | {"seed": (seed + index) & _MAX_SEED} for index in range(params.n)]
