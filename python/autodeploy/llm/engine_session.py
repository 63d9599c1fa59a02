"""One engine and the thread that listens to it."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import EngineError
from .request_state import EngineOutput, RequestState

_logger = logging.getLogger("autodeploy.llm")
# How long the listener waits at most before it looks whether it shall end; close() does not wait for this.
_WAIT_SECONDS = 1.0
_JOIN_SECONDS = 30.0


class NativeEngine(Protocol):
    """The part of `autodeploy._native.Engine` that is used here."""

    def add_request(self, prompt_token_ids: list[int], params: dict[str, Any]) -> int: ...

    def cancel(self, request_id: int) -> None: ...

    def wait_outputs(self, timeout_seconds: float) -> Sequence[EngineOutput]: ...

    def plan(self) -> str: ...

    def stats(self) -> dict[str, Any]: ...

    def health(self) -> str | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class EngineLimits:
    """What the engine settled on: tokens of the longest sequence, and the size of the vocabulary."""

    max_seq_len: int
    vocab_size: int


class EngineSession:
    """Owns an engine. Requests may be submitted and cancelled from any thread; one thread of its own receives the
    outputs of each step and hands them to the requests. A fault of one request stays with it; when the engine itself
    stops, every request ends with that error.
    """

    def __init__(self, engine: NativeEngine):
        self._engine = engine
        # Reentrant: the garbage collector may close a forgotten stream, which cancels, in the middle of a submit.
        self._lock = threading.RLock()
        self._running: dict[int, tuple[RequestState, int]] = {}
        self._closing = False
        self._fault: str | None = None
        self._thread = threading.Thread(target=self._listen, name="autodeploy-listener", daemon=True)
        self._thread.start()

    def submit(self, state: RequestState, engine_params: Sequence[dict[str, Any]]) -> None:
        """Add a request's completions to the engine, one per entry. Raises EngineError, or the engine's ValueError."""
        with self._lock:
            self._check_open()
            try:
                for index, params in enumerate(engine_params):
                    engine_id = self._engine.add_request(state.prompt_token_ids, params)
                    state.engine_ids.append(engine_id)
                    self._running[engine_id] = (state, index)
            except BaseException:
                self._forget(state)
                raise

    def cancel(self, states: Iterable[RequestState]) -> None:
        """Cancel what still runs of these requests; they end with the finish reason "cancelled"."""
        with self._lock:
            for state in states:
                for engine_id in state.engine_ids:
                    if engine_id in self._running:
                        self._cancel(engine_id)

    def plan(self) -> dict[str, Any]:
        """The engine's memory and kernel plan."""
        with self._lock:
            self._check_open()
            return json.loads(self._engine.plan())

    def limits(self) -> EngineLimits:
        """The limits that hold for every request."""
        limits = self.plan()["limits"]
        return EngineLimits(limits["max_seq_len"], limits["vocab_size"])

    def stats(self) -> dict[str, Any]:
        """The engine's counters."""
        with self._lock:
            self._check_open()
            return self._engine.stats()

    def health(self) -> str | None:
        """Why the engine has stopped; None while it works."""
        with self._lock:
            if self._fault is not None:
                return self._fault
            self._check_open()
            return self._engine.health()

    @property
    def closed(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Stop the engine; requests that still run end with an error. May be called again."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._engine.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)
        self._fail_all("the engine was closed")

    def _check_open(self) -> None:
        if self._fault is not None:
            raise EngineError(f"[engine] it stopped: {self._fault}; make a new one")
        if self._closing:
            raise EngineError("[engine] it is closed; make a new one")

    def _cancel(self, engine_id: int) -> None:
        if not self._closing and self._fault is None:
            self._engine.cancel(engine_id)

    def _forget(self, state: RequestState) -> None:
        for engine_id in state.engine_ids:
            if self._running.pop(engine_id, None) is not None:
                with contextlib.suppress(Exception):
                    self._engine.cancel(engine_id)

    def _listen(self) -> None:
        try:
            while not self._closing:
                for step in self._engine.wait_outputs(_WAIT_SECONDS):
                    self._dispatch(step)
        except Exception as error:
            if not self._closing:
                _logger.error("the engine stopped: %s", error)
                self._fault = str(error) or type(error).__name__
                self._fail_all(f"the engine stopped: {self._fault}")

    def _dispatch(self, step: EngineOutput) -> None:
        with self._lock:
            entry = self._running.get(step.request_id)
            if entry is not None and step.finish_reason is not None:
                del self._running[step.request_id]
        if entry is None:  # cancelled by a stop string; the engine had a step under way
            return
        state, index = entry
        try:
            must_cancel = state.accept(index, step)
        except Exception as error:
            _logger.exception("a request failed while its text was put together")
            state.fail(f"its text could not be put together: {error!r}")
            must_cancel = True
        if must_cancel:
            with self._lock:
                if self._running.pop(step.request_id, None) is not None:
                    self._cancel(step.request_id)

    def _fail_all(self, message: str) -> None:
        with self._lock:
            states = {id(state): state for state, _ in self._running.values()}
            self._running.clear()
        for state in states.values():
            state.fail(message)
