"""What is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One measurement of an engine, in tokens per second.

    decode: num_seqs sequences generate num_tokens each, together; the rate counts all of them after their first tokens.
    prefill: a prompt of prompt_len tokens is read; the rate counts its tokens until the next token is known.
    """

    name: str
    kind: str
    num_seqs: int
    prompt_len: int
    num_tokens: int

    def to_request(self) -> dict[str, Any]:
        """As an engine's process takes it."""
        return asdict(self)


CASES = (
    Case("decode 1 sequence", "decode", 1, 16, 128),
    Case("decode 8 sequences", "decode", 8, 16, 64),
    Case("prefill 512", "prefill", 1, 512, 1),
)

# Longest sequence, tokens of the largest step and sequences at a time that the cases need.
MAX_SEQ_LEN = 1024
MAX_BATCH_TOKENS = 512
MAX_NUM_SEQS = 8
WARM_UP_TOKENS = 8


def prompt_ids(vocab_size: int, length: int, seed: int) -> list[int]:
    """Token ids that every engine is given alike; without meaning, as rates do not depend on it."""
    low, state, ids = min(100, vocab_size // 2), seed * 2654435761 + 12345, []
    for _ in range(length):
        state = (state * 1103515245 + 12345) % 2**31
        ids.append(low + (state >> 8) % (vocab_size - low))
    return ids
