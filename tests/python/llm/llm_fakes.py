"""An engine in a few lines of Python, with the interface of `autodeploy._native.Engine`, and an artifact for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors


@dataclass
class FakeOutput:
    request_id: int
    new_token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, float, int, list[tuple[int, float]]]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str = ""


@dataclass
class _Running:
    prompt: list[int]
    params: dict[str, Any]
    generated: list[int] = field(default_factory=list)
    cancelled: bool = False


class FakeEngine:
    """`next_token(prompt, generated, params)` is the model; every step advances all requests by one token.

    A next_token that raises ValueError ends its request with that error; RuntimeError stops the engine.
    """

    def __init__(
        self,
        next_token: Callable[[list[int], list[int], dict[str, Any]], int],
        *,
        vocab_size: int = 1000,
        max_seq_len: int = 128,
        step_seconds: float = 0.0,
    ):
        self._next_token = next_token
        self._limits = {"vocab_size": vocab_size, "max_seq_len": max_seq_len}
        self._step_seconds = step_seconds
        self._condition = threading.Condition()
        self._requests: dict[int, _Running] = {}
        self._num_added = 0
        self.added: list[dict[str, Any]] = []
        self.closed = False
        self.most_together = 0

    def add_request(self, prompt_token_ids: list[int], params: dict[str, Any]) -> int:
        with self._condition:
            assert not self.closed
            assert prompt_token_ids
            assert len(prompt_token_ids) + params["max_tokens"] <= self._limits["max_seq_len"]
            self._num_added += 1
            self._requests[self._num_added] = _Running(list(prompt_token_ids), params)
            self.added.append(params)
            self._condition.notify_all()
            return self._num_added

    def cancel(self, request_id: int) -> None:
        with self._condition:
            if request_id in self._requests:
                self._requests[request_id].cancelled = True
                self._condition.notify_all()

    def wait_outputs(self, timeout_seconds: float) -> list[FakeOutput]:
        with self._condition:
            self._condition.wait_for(lambda: self._requests or self.closed, timeout_seconds)
            if self.closed:
                return []
            self.most_together = max(self.most_together, len(self._requests))
            outputs = [self._step(request_id, request) for request_id, request in list(self._requests.items())]
        time.sleep(self._step_seconds)
        return outputs

    def _step(self, request_id: int, request: _Running) -> FakeOutput:
        output = FakeOutput(request_id)
        params = request.params
        if request.cancelled:
            output.finish_reason = "cancelled"
        else:
            try:
                token = self._next_token(request.prompt, request.generated, params)
            except ValueError as error:
                output.finish_reason, output.error = "error", str(error)
            else:
                request.generated.append(token)
                output.new_token_ids = [token]
                if params["logprobs"] is not None:
                    top = [(token, -0.5), (token + 1, -1.5), (token + 2, -2.5)][: params["logprobs"]]
                    output.logprobs = [(token, -0.5, 1, top)]
                ends = set(params["stop_token_ids"]) | (set() if params["ignore_eos"] else set(params["eos_token_ids"]))
                if token in ends and len(request.generated) > params["min_tokens"]:
                    output.finish_reason, output.stop_token_id = "stop", token
                elif len(request.generated) == params["max_tokens"]:
                    output.finish_reason = "length"
        if output.finish_reason is not None:
            del self._requests[request_id]
        return output

    def plan(self) -> str:
        return json.dumps({"limits": self._limits})

    def stats(self) -> dict[str, Any]:
        return {"num_running": len(self._requests)}

    def health(self) -> str | None:
        return None

    def close(self) -> None:
        with self._condition:
            self.closed = True
            self._condition.notify_all()


def scripted(tokens: Sequence[int]) -> Callable[[list[int], list[int], dict[str, Any]], int]:
    """A model that says the same tokens whatever it is asked."""
    return lambda prompt, generated, params: tokens[len(generated) % len(tokens)]


CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "user assistant system: hello world, how are you? I am fine.",
] * 4


def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE with the special tokens of a chat model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """Like a SentencePiece model with byte fallback: a space begins a word, and BOS stands before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted({character for text in CORPUS[:3] for character in text if character != " "})
    merges = []
    for pair in ("▁ t", "h e", "▁t he", "▁ h", "▁h e", "l l", "▁he ll", "▁hell o"):
        left, right = pair.split()
        pieces.append(left + right)
        merges.append((left, right))
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)


def write_fake_artifact(
    folder: Path,
    tokenizer: Tokenizer | None,
    generation_config: dict[str, Any] | None = None,
    chat_template: str | None = None,
) -> Path:
    """What the Python layer reads of an artifact: the manifest's name and the tokenizer's files. No program."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artifact.json").write_text(json.dumps({"format": "autodeploy.artifact"}))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": None}))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder
