"""What comes back for a request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logprob:
    """A token's log probability and its rank, 1 for the likeliest.

    The logarithm is natural and of the model's own distribution: before bias, penalties and temperature.
    """

    logprob: float
    rank: int
    token: str


@dataclass
class CompletionOutput:
    """One completion of a prompt.

    text, token_ids: everything so far. The token that ended the answer is the last id; its text is left out.
    delta, delta_token_ids: what is new since the previous output of a stream; the whole of it outside a stream.
    finish_reason: None while it runs; "stop" (an end token or a stop string), "length", "cancelled" or "error".
    stop_reason: the stop string or the token id that ended it.
    logprobs: for each token a dict token id -> Logprob, the chosen token first; None unless asked for.
    error: what went wrong, where the finish reason is "error".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    error: str | None = None
    delta: str = ""
    delta_token_ids: list[int] = field(default_factory=list)


@dataclass
class RequestMetrics:
    """Times in seconds on the monotonic clock, and token counts. A time that has not come yet is None."""

    arrival_time: float
    first_token_time: float | None = None
    finish_time: float | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the request's arrival to its first token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens per second after the first one, over all completions; None before the end, or with one token only."""
        if self.finish_time is None or self.first_token_time is None or self.num_generated_tokens < 2:
            return None
        elapsed = self.finish_time - self.first_token_time
        return (self.num_generated_tokens - 1) / elapsed if elapsed > 0 else None


@dataclass
class RequestOutput:
    """A prompt and its completions (n of them). `prompt` is None where token ids were given."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.outputs[0].text
