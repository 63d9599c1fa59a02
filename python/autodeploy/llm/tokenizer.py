"""Text to token ids and back, by the tokenizer.json of an artifact and the `tokenizers` library alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"[tokenizer] {path} cannot be read: {error}; compile the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"[tokenizer] {path}: expected an object; compile the model again")
    return content


def _token_text(value: object) -> str | None:
    """The text of a special token: a string, or an added-token object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


class Tokenizer:
    """Encodes prompts as transformers does (BOS and the like as tokenizer.json says) and decodes tokens.

    special_tokens: their names and texts, such as {"bos_token": "<s>"}; chat templates see them as variables.
    special_ids: ids of tokens that are no text.
    """

    def __init__(self, backend: BackendTokenizer, config: dict[str, Any] | None = None):
        self._backend = backend
        backend.no_padding()
        backend.no_truncation()
        config = config or {}
        self.special_tokens = self._named_special_tokens(config)
        added = backend.get_added_tokens_decoder()
        named = set(self.special_tokens.values())
        self.special_ids = frozenset(i for i, token in added.items() if token.special or token.content in named)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_artifact(cls, artifact_dir: Path) -> Tokenizer | None:
        """The tokenizer of an artifact; None where the artifact has none (then prompts are token ids).

        Raises ValueError where a tokenizer file cannot be read.
        """
        path = artifact_dir / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            backend = BackendTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"[tokenizer] {path} cannot be read: {error}; compile the model again") from None
        config_path = artifact_dir / "tokenizer_config.json"
        return cls(backend, _read_json(config_path) if config_path.is_file() else {})

    @staticmethod
    def _named_special_tokens(config: dict[str, Any]) -> dict[str, str]:
        named = {name: _token_text(value) for name, value in config.items() if name.endswith("_token")}
        extra = config.get("extra_special_tokens")
        if isinstance(extra, dict):
            named |= {name: _token_text(value) for name, value in extra.items()}
        return {name: text for name, text in named.items() if text is not None}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written in it are recognised.

        add_special_tokens: add what the tokenizer puts around every text (BOS, say); a rendered chat has its own.
        """
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids outside the vocabulary give nothing."""
        ids = [i for i in token_ids if i not in self.special_ids] if skip_special_tokens else list(token_ids)
        return self._backend.decode(ids, skip_special_tokens=False) if ids else ""

    def token_text(self, token_id: int) -> str:
        """A single token as text, for reports such as logprobs; an incomplete character shows as U+FFFD."""
        return self._backend.decode([token_id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its exact spelling in the vocabulary."""
        return self._backend.token_to_id(token)
