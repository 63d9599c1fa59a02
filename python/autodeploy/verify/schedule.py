"""Which tokens run in which step: ragged batches whose requests join, prefill in odd chunks, and leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autodeploy.ops import Batch

# Prefill chunks take these sizes in turn: odd ones, single tokens, and one that most prompts fit into.
CHUNKS = (3, 1, 7, 64, 5)


@dataclass(frozen=True)
class Feed:
    """A request as verification feeds it: a prompt, and the tokens that follow it (teacher-forced).

    `prefix` holds the token ids that the Program puts before every prompt; positions count from the prompt.
    """

    prompt: tuple[int, ...]
    following: tuple[int, ...]
    prefix: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that are fed; nothing is fed after the last one was predicted."""
        return self.prefix + self.prompt + self.following[:-1]

    @property
    def begin(self) -> int:
        """Tokens that are prefilled: prefix and prompt."""
        return len(self.prefix) + len(self.prompt)


@dataclass(frozen=True)
class PlannedStep:
    """One step: the batch, its inputs, and for each wanted row (request, position of its token)."""

    batch: Batch
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    wanted: tuple[tuple[int, int], ...]


@dataclass
class _Running:
    request: int
    slot: int
    done: int = 0
    chunks: int = 0


def whole_prompts(feeds: Sequence[Feed]) -> Iterator[PlannedStep]:
    """Each prompt alone in one step, with the logits of all its tokens."""
    for i, feed in enumerate(feeds):
        yield _step(feeds, [(_Running(i, 1), feed.begin)], all_rows=True)


def ragged(
    feeds: Sequence[Feed], max_seqs: int = 3, chunks: Sequence[int] = CHUNKS, stagger: int = 2
) -> Iterator[PlannedStep]:
    """All requests together: a new one joins every `stagger` steps while there is room, each leaves when it is done.

    stagger: 0 lets all that there is room for join at once. Logits are wanted wherever a next token is predicted.
    Slots are reused, so that stale states would show.
    """
    waiting = list(range(len(feeds)))
    free = list(range(1, max_seqs + 1))
    running: list[_Running] = []
    count = 0
    while waiting or running:
        while waiting and free and (not stagger or count % stagger == 0 or not running):
            running.append(_Running(waiting.pop(0), free.pop(0)))
            if stagger:
                break
        count += 1
        work = []
        for seq in running:
            feed = feeds[seq.request]
            left = feed.begin - seq.done
            take = min(left, chunks[(seq.request + seq.chunks) % len(chunks)]) if left > 0 else 1
            work.append((seq, take))
        work.sort(key=lambda item: item[0].done < feeds[item[0].request].begin)  # decodes come first
        yield _step(feeds, work, all_rows=False)
        for seq, take in work:
            seq.done += take
            seq.chunks += 1
            if seq.done == len(feeds[seq.request].tokens):
                running.remove(seq)
                free.append(seq.slot)


def _step(feeds: Sequence[Feed], work: Sequence[tuple[_Running, int]], all_rows: bool) -> PlannedStep:
    token_ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    wanted: list[tuple[int, int]] = []
    for seq, take in work:
        feed = feeds[seq.request]
        for position in range(seq.done, seq.done + take):
            if position >= (len(feed.prefix) if all_rows else feed.begin - 1):
                rows.append(len(token_ids))
                wanted.append((seq.request, position - len(feed.prefix)))
            token_ids.append(feed.tokens[position])
            positions.append(position)
    batch = Batch.of(
        [take for _, take in work],
        [seq.done for seq, _ in work],
        [seq.slot for seq, _ in work],
        rows=rows,
        prompt_len=[len(feeds[seq.request].prompt) for seq, _ in work],
    )
    return PlannedStep(batch, tuple(token_ids), tuple(positions), tuple(wanted))
