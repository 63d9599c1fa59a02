"""What is known of a running request: engine outputs go in, `RequestOutput`s come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .detokenizer import IncrementalDetokenizer
from .outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from .sampling_params import SamplingParams
from .stop_strings import StopStrings
from .tokenizer import Tokenizer


class EngineOutput(Protocol):
    """What the engine reports of a request after a step (see `autodeploy._native.Engine.wait_outputs`)."""

    request_id: int
    new_token_ids: Sequence[int]
    logprobs: Sequence[tuple[int, float, int, Sequence[tuple[int, float]]]]
    finish_reason: str | None
    stop_token_id: int | None
    error: str


class CompletionState:
    """One completion: its tokens, its text so far, and whether it has ended."""

    def __init__(
        self, index: int, prompt_token_ids: Sequence[int], params: SamplingParams, tokenizer: Tokenizer | None
    ):
        self.output = CompletionOutput(index, logprobs=None if params.logprobs is None else [])
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens)
            if tokenizer is not None
            else None
        )
        self._stops = StopStrings(params.stop_strings, include=params.include_stop_str)

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    def accept(self, step: EngineOutput) -> bool:
        """Take a step's tokens. Returns whether a stop string ended the completion here, ahead of the engine."""
        for position, token_id in enumerate(step.new_token_ids):
            is_last = position + 1 == len(step.new_token_ids)
            ends_answer = is_last and step.stop_token_id == token_id and step.finish_reason == "stop"
            self._append(token_id, step.logprobs[position] if position < len(step.logprobs) else None, ends_answer)
            if self._stops.matched is not None:
                self._finish("stop", self._stops.matched)
                return step.finish_reason is None
        if step.finish_reason is not None:
            self._finish(step.finish_reason, step.stop_token_id if step.finish_reason == "stop" else None)
            self.output.error = (step.error or "the engine gave no reason") if step.finish_reason == "error" else None
        return False

    def fail(self, message: str) -> None:
        """End the completion with an error that is not its own."""
        if not self.finished:
            self._finish("error", None)
            self.output.error = message

    def take_snapshot(self) -> CompletionOutput:
        """The completion as it stands, in lists of its own; its deltas begin anew."""
        output = self.output
        snapshot = CompletionOutput(
            output.index,
            output.text,
            list(output.token_ids),
            output.finish_reason,
            output.stop_reason,
            None if output.logprobs is None else list(output.logprobs),
            output.error,
            output.delta,
            output.delta_token_ids,
        )
        output.delta, output.delta_token_ids = "", []
        return snapshot

    def _append(self, token_id: int, logprob: tuple[Any, ...] | None, ends_answer: bool) -> None:
        output = self.output
        output.token_ids.append(token_id)
        output.delta_token_ids.append(token_id)
        if output.logprobs is not None and logprob is not None:
            output.logprobs.append(self._logprobs(logprob))
        if self._detokenizer is None or (ends_answer and not self._params.include_stop_str):
            return
        armed = len(output.token_ids) >= self._params.min_tokens
        self._show(self._stops.feed(self._detokenizer.append([token_id]), armed=armed))

    def _finish(self, reason: str, stop_reason: str | int | None) -> None:
        if self._detokenizer is not None and self._stops.matched is None:
            armed = len(self.output.token_ids) >= self._params.min_tokens
            self._show(self._stops.feed(self._detokenizer.finish(), armed=armed))
            if self._stops.matched is not None:
                reason, stop_reason = "stop", self._stops.matched
            self._show(self._stops.flush())
        self.output.finish_reason = reason
        self.output.stop_reason = stop_reason

    def _show(self, text: str) -> None:
        self.output.text += text
        self.output.delta += text

    def _logprobs(self, entry: tuple[Any, ...]) -> dict[int, Logprob]:
        token_id, logprob, rank, top = entry
        found = {token_id: Logprob(logprob, rank, self._token_text(token_id))}
        for place, (other_id, other) in enumerate(top, 1):
            found.setdefault(other_id, Logprob(other, place, self._token_text(other_id)))
        return found

    def _token_text(self, token_id: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.token_text(token_id)


class RequestState:
    """A prompt with its n completions. `deliver` is called on the dispatcher's thread with each RequestOutput.

    every_step: deliver after each step; else once, when all completions have ended.
    """

    def __init__(
        self,
        request_id: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        deliver: Callable[[RequestOutput], None],
        *,
        every_step: bool,
    ):
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.completions = [CompletionState(i, prompt_token_ids, params, tokenizer) for i in range(params.n)]
        self.engine_ids: list[int] = []
        self._deliver = deliver
        self._every_step = every_step
        self._metrics = RequestMetrics(time.monotonic(), num_prompt_tokens=len(prompt_token_ids))
        self._delivered_last = False

    @property
    def finished(self) -> bool:
        return all(completion.finished for completion in self.completions)

    def accept(self, index: int, step: EngineOutput) -> bool:
        """Take a step of completion `index`. Returns whether the engine must be told to cancel it."""
        completion = self.completions[index]
        if completion.finished:
            return False
        now = time.monotonic()
        if step.new_token_ids and self._metrics.first_token_time is None:
            self._metrics.first_token_time = now
        cancel = completion.accept(step)
        self._metrics.num_generated_tokens = sum(len(c.output.token_ids) for c in self.completions)
        self._report(now)
        return cancel

    def fail(self, message: str) -> None:
        """End every completion that still runs, with an error."""
        for completion in self.completions:
            completion.fail(message)
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        finished = self.finished
        if self._delivered_last or not (finished or self._every_step):
            return
        if finished:
            self._metrics.finish_time = now
            self._delivered_last = True
        elif not any(c.output.delta or c.output.delta_token_ids for c in self.completions):
            return
        metrics = RequestMetrics(**vars(self._metrics))
        outputs = [completion.take_snapshot() for completion in self.completions]
        self._deliver(RequestOutput(self.request_id, self.prompt, self.prompt_token_ids, outputs, finished, metrics))
