"""`LLM`: a model, ready to answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .chat_template import ChatTemplate, read_chat_template
from .engine_options import EngineOptions, make_engine
from .engine_session import EngineSession, NativeEngine
from .errors import RequestError
from .generation_defaults import GenerationDefaults, read_generation_defaults
from .gpu_kernels import kernels_for
from .model_source import prepare_artifact
from .outputs import RequestOutput
from .progress import ProgressLine, wants_progress
from .request_state import RequestState
from .sampling_params import SamplingParams, resolve_params
from .tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Conversation = Sequence[Message]

_POLL_SECONDS = 0.2


class LLM:
    """A causal LM served by the C++ runtime.

        with LLM("path/to/checkpoint") as llm:
            print(llm.generate("The capital of France is")[0].text)

    model: a checkpoint folder, a .gguf file, a hub id, an artifact folder, or an alias such as "smollm2". A checkpoint
        is compiled first, in a child process, into the artifact cache; the next time the artifact is found there.
    max_seq_len: tokens of the longest sequence, prompt and answer; default: what the model was made for, or what fits.
    max_num_seqs: sequences that run together. max_batch_tokens: tokens of the largest step.
    cache_memory: memory of the caches in bytes, or text such as "2GiB".
    gpu_memory_fraction: part of a GPU's memory that may be in use, by anybody, with this engine; default 0.9.
    threads: threads of the engine; default all cores this process may use.
    load_format: "auto", or "dummy": weights are made up from dummy_seed, none are read and none need to be there; a
        checkpoint folder is then compiled from its configuration alone.
    dummy_routing: "model", or "uniform": with made-up weights, experts are drawn from dummy_seed, each as likely as any
        other, in place of those that the router chooses.
    device: "cpu" (default, or what AUTODEPLOY_DEVICE says), "cuda" or "cuda:N".
    dtype: type of the activations: "auto" (float32 on the CPU, bfloat16 on a GPU), "float32", "bfloat16", "float16".
    time_steps: on a GPU, time decode steps and the gaps between them on the device, for stats().
    exact: forbid fast paths that round activations to 8 bits, so that results equal float32 arithmetic on the weights.
    revision: branch, tag or commit of a hub id. trust_remote_code: let Python code of the checkpoint run in a compile.
    plugins: shared libraries with kernels for operators that the model's author wrote; they run in this process.
    chat_template: Jinja text to use in place of the model's own.
    progress: show progress on stderr; default on a terminal only.
    engine_factory: makes the engine from an artifact folder and options; for tests and other runtimes.

    Use it as a context manager, or call close(). All methods may be called from several threads.
    Raises ValueError for a user's mistake, CompileError where compiling fails, EngineError where the engine does.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        max_seq_len: int | None = None,
        max_num_seqs: int | None = None,
        max_batch_tokens: int | None = None,
        cache_memory: int | str | None = None,
        gpu_memory_fraction: float | None = None,
        threads: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        exact: bool = False,
        load_format: str = "auto",
        dummy_seed: int = 0,
        dummy_routing: str = "model",
        time_steps: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        plugins: Sequence[str | os.PathLike[str]] | None = None,
        chat_template: str | None = None,
        progress: bool | None = None,
        engine_factory: Callable[[Path, EngineOptions, Callable[..., None]], NativeEngine] = make_engine,
    ):
        options = EngineOptions.from_user(
            max_seq_len=max_seq_len,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            cache_memory=cache_memory,
            gpu_memory_fraction=gpu_memory_fraction,
            threads=threads,
            device=device,
            dtype=dtype,
            exact=exact,
            load_format=load_format,
            dummy_seed=dummy_seed,
            dummy_routing=dummy_routing,
            time_steps=time_steps,
            plugins=plugins,
        )
        with ProgressLine(enabled=wants_progress(progress)) as line:
            self.artifact_dir: Path = prepare_artifact(
                model,
                revision=revision,
                trust_remote_code=trust_remote_code,
                plugins=options.plugins,
                load_format=load_format,
                gpu=kernels_for(options.device, options.dtype),
                report=line.show,
            )
            self.tokenizer: Tokenizer | None = Tokenizer.from_artifact(self.artifact_dir)
            self.generation_defaults: GenerationDefaults = read_generation_defaults(self.artifact_dir)
            self._chat_template = self._load_chat_template(chat_template)
            engine = engine_factory(self.artifact_dir, options, _loading_reporter(line))
        self._session = EngineSession(engine)
        # Runs at interpreter exit too, while threads can still be joined.
        self._finalizer = weakref.finalize(self, EngineSession.close, self._session)
        limits = self._session.limits()
        self.max_seq_len: int = limits.max_seq_len
        self.vocab_size: int = limits.vocab_size
        self._request_ids = itertools.count()

    def close(self) -> None:
        """Stop the engine and free its memory. Requests that still run end with an error. May be called again."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete one or more prompts, all together in the engine; outputs stand in the order of the prompts.

        prompts: a text, a list of token ids, or a list of such. params: one for all, or one for each.
        Ctrl-C cancels everything and raises KeyboardInterrupt. Every prompt is checked before any is submitted.
        Raises ValueError for a bad prompt, RequestError (with all outputs) where a request failed on its own.
        """
        batch = _as_batch(prompts)
        pairs = zip(batch, _per_prompt(params, len(batch)), strict=True)
        return self._run_all([self._prepare(prompt, each) for prompt, each in pairs], progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Complete one prompt, with an output after each step: `outputs[i].delta` is new, `.text` everything so far.

        Leaving the loop early cancels the request. Raises as `generate`.
        """
        return self._stream(self._prepare(prompt, params))

    def generate_async(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """`stream` for asyncio: `async for output in llm.generate_async(prompt): ...`. Many may run at once."""
        return self._stream_async(self._prepare(prompt, params))

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, given as lists of {"role": ..., "content": ...}.

        template_options: tools, documents, add_generation_prompt, continue_final_message, and the template's variables.
        Raises as `generate`, and ValueError where the model has no chat template or its template refuses the messages.
        """
        chats = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        requests = [
            self._prepare_chat(chat, s, template_options)
            for chat, s in zip(chats, _per_prompt(params, len(chats)), strict=True)
        ]
        return self._run_all(requests, progress)

    def chat_stream(
        self, messages: Conversation, params: SamplingParams | None = None, **template_options: Any
    ) -> Iterator[RequestOutput]:
        """`chat` for one conversation, as a stream."""
        return self._stream(self._prepare_chat(messages, params, template_options))

    def chat_async(
        self, messages: Conversation, params: SamplingParams | None = None, **template_options: Any
    ) -> AsyncIterator[RequestOutput]:
        """`chat` for one conversation, as a stream for asyncio."""
        return self._stream_async(self._prepare_chat(messages, params, template_options))

    def render_chat(self, messages: Conversation, **template_options: Any) -> str:
        """The prompt text that `chat` gives the model."""
        if self._chat_template is None:
            raise ValueError("[chat] the model has no chat template; use generate, or give LLM(chat_template=...)")
        return self._chat_template.render(messages, **template_options)

    def plan(self) -> dict[str, Any]:
        """The engine's plan: every byte of memory, and the kernel of every instruction."""
        return self._session.plan()

    def stats(self) -> dict[str, Any]:
        """The engine's counters: running and waiting requests, steps, pages in use; decode steps, and how many of those
        were replayed from graphs; with time_steps microseconds of decode steps and of gaps between them."""
        return self._session.stats()

    def health(self) -> str | None:
        """Why the engine has stopped; None while it works."""
        return self._session.health()

    def _load_chat_template(self, override: str | None) -> ChatTemplate | None:
        special_tokens = {} if self.tokenizer is None else self.tokenizer.special_tokens
        if override is not None:
            return ChatTemplate(override, special_tokens)
        return read_chat_template(self.artifact_dir, special_tokens)

    def _prepare_chat(
        self, messages: Conversation, params: SamplingParams | None, template_options: Mapping[str, Any]
    ) -> _Request:
        text = self.render_chat(messages, **template_options)
        return self._prepare(text, params, add_special_tokens=False)

    def _prepare(self, prompt: Prompt, params: SamplingParams | None, *, add_special_tokens: bool = True) -> _Request:
        """A prompt and its parameters, checked and resolved. Raises ValueError."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"[sampling] expected SamplingParams, found {type(params).__name__}")
        text = prompt if isinstance(prompt, str) else None
        token_ids = self._encode(prompt, add_special_tokens)
        if params.stop_strings and self.tokenizer is None:
            raise ValueError("[sampling] stop: the artifact has no tokenizer; use stop_token_ids")
        if len(token_ids) >= self.max_seq_len:
            raise ValueError(
                f"[prompt] expected at most {self.max_seq_len - 1} tokens, found {len(token_ids)}: "
                "shorten it, or raise max_seq_len where the model allows it"
            )
        resolved = resolve_params(
            params,
            self.generation_defaults,
            vocab_size=self.vocab_size,
            num_prompt_tokens=len(token_ids),
            max_seq_len=self.max_seq_len,
        )
        return _Request(text, token_ids, params, resolved)

    def _encode(self, prompt: Prompt, add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("[prompt] the artifact has no tokenizer; give token ids")
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"[prompt] expected text that UTF-8 can hold, found {error.reason}") from None
            token_ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        else:
            token_ids = list(prompt)
            for token_id in token_ids:
                if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self.vocab_size:
                    raise ValueError(f"[prompt] expected token ids from 0 to {self.vocab_size - 1}, found {token_id!r}")
        if not token_ids:
            raise ValueError("[prompt] it is empty; give at least one token")
        return token_ids

    def _submit(self, request: _Request, deliver: Callable[[RequestOutput], None], *, every_step: bool) -> RequestState:
        state = RequestState(
            next(self._request_ids),
            request.prompt,
            request.token_ids,
            request.params,
            self.tokenizer,
            deliver,
            every_step=every_step,
        )
        self._session.submit(state, request.resolved)
        return state

    def _run_all(self, requests: Sequence[_Request], progress: bool | None) -> list[RequestOutput]:
        arrived: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        states: list[RequestState] = []
        outputs: dict[int, RequestOutput] = {}
        with ProgressLine(enabled=len(requests) > 1 and wants_progress(progress)) as line:
            try:
                states += (self._submit(request, arrived.put, every_step=False) for request in requests)
                while len(outputs) < len(states):
                    output = _get(arrived)
                    outputs[output.request_id] = output
                    line.show(f"{len(outputs)} of {len(states)} prompts answered")
            except BaseException:
                self._session.cancel(states)
                raise
        ordered = [outputs[state.request_id] for state in states]
        _raise_faults(ordered)
        return ordered

    def _stream(self, request: _Request) -> Iterator[RequestOutput]:
        arrived: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        state = self._submit(request, arrived.put, every_step=True)
        try:
            while True:
                output = _get(arrived)
                yield output
                if output.finished:
                    _raise_faults([output])
                    return
        finally:
            self._session.cancel([state])

    async def _stream_async(self, request: _Request) -> AsyncIterator[RequestOutput]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[RequestOutput] = asyncio.Queue()

        def deliver(output: RequestOutput) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(arrived.put_nowait, output)

        state = self._submit(request, deliver, every_step=True)
        try:
            while True:
                output = await arrived.get()
                yield output
                if output.finished:
                    _raise_faults([output])
                    return
        finally:
            self._session.cancel([state])


class _Request:
    """A checked prompt: its text, tokens and parameters, and the engine's parameters for each completion."""

    def __init__(
        self, prompt: str | None, token_ids: list[int], params: SamplingParams, resolved: list[dict[str, Any]]
    ):
        self.prompt = prompt
        self.token_ids = token_ids
        self.params = params
        self.resolved = resolved


def _loading_reporter(line: ProgressLine) -> Callable[..., None]:
    """The engine's progress callback: bytes of weights in memory, and bytes in all."""

    def report(done: int, total: int) -> None:
        share = 100 * done // total if total else 100
        line.show(f"loading weights: {share} % of {total / 2**20:.0f} MiB")

    return report


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise ValueError(f"[prompt] expected a text, token ids or a list of such, found {type(prompts).__name__}")
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    for item in items:
        if not isinstance(item, str) and not isinstance(item, Sequence):
            raise ValueError(f"[prompt] expected a text or a list of token ids, found {item!r}")
    return items


def _per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * num_prompts
    if not isinstance(params, Sequence) or len(params) != num_prompts:
        raise ValueError(f"[sampling] expected one SamplingParams, or {num_prompts} of them, found {params!r}")
    return params


def _get(arrived: queue.SimpleQueue[RequestOutput]) -> RequestOutput:
    """The next output. Waits in turns: Ctrl-C may be delivered to another thread, which would not wake this one."""
    while True:
        with contextlib.suppress(queue.Empty):
            return arrived.get(timeout=_POLL_SECONDS)


def _raise_faults(outputs: Sequence[RequestOutput]) -> None:
    """RequestError where a completion ended with a fault of its own."""
    faults = [
        f"prompt {place}: {completion.error}"
        for place, output in enumerate(outputs)
        for completion in output.outputs
        if completion.finish_reason == "error"
    ]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise RequestError(f"[request] {faults[0]}{more}", list(outputs))
