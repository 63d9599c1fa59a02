"""Token ids to text, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Context taken from the prompt's end, in tokens: enough for decoders that look at neighbours, more inside a byte run.
_PROMPT_CONTEXT = range(4, 37, 4)
# A character is spread over 4 tokens at most; more that do not decode are not going to.
_MAX_PENDING_TOKENS = 8


class IncrementalDetokenizer:
    """Decodes a growing token sequence; the pieces it returns join to the text that follows the prompt's text.

    A decoder may need neighbours: byte-level tokens hold parts of a UTF-8 character, and SentencePiece drops the space
    before the first token of a text. So each piece is the difference between decoding a window with and without the
    new tokens; the window begins at the previous piece. An incomplete character waits for its other bytes.

        window   [ previous piece | new tokens )
        text     [ shown          | delta ) incomplete character
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int] = (), *, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._window = self._prompt_context(prompt_token_ids)
        self._num_shown = len(self._decode(self._window).rstrip(_REPLACEMENT))
        self._num_pending = 0
        self._piece_begin = len(self._window)

    def append(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the text that became final."""
        return "".join(self._append_one(i) for i in token_ids if i not in self._skipped)

    def finish(self) -> str:
        """The text still held back; an incomplete character becomes U+FFFD."""
        delta = self._show(self._decode(self._window))
        self._rebase()
        return delta

    def _append_one(self, token_id: int) -> str:
        self._window.append(token_id)
        self._num_pending += 1
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) and self._num_pending <= _MAX_PENDING_TOKENS:
            return self._show(text.rstrip(_REPLACEMENT))
        delta = self._show(text)
        if delta:
            self._rebase()
        return delta

    def _prompt_context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The end of the prompt, from a place where a character begins."""
        tail = [i for i in prompt_token_ids[-2 * _PROMPT_CONTEXT.stop :] if i not in self._skipped]
        for length in _PROMPT_CONTEXT:
            if not self._decode(tail[-length:]).startswith(_REPLACEMENT):
                return tail[-length:]
        return []

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def _show(self, text: str) -> str:
        delta = text[self._num_shown :]
        self._num_shown = max(self._num_shown, len(text))
        return delta

    def _rebase(self) -> None:
        """Let the window begin at the piece that was just finished."""
        if self._piece_begin < len(self._window):
            self._window = self._window[self._piece_begin :]
        self._piece_begin = len(self._window)
        self._num_shown = len(self._decode(self._window))
        self._num_pending = 0
