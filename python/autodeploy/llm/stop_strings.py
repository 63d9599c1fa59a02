"""Finding stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches a text for stop strings; what is handed on never holds one, nor the beginning of one that may still come.

    The answer does not depend on how the text is cut into pieces: the first string to be complete wins, and among
    those complete at the same character the longest.
    """

    def __init__(self, stops: Sequence[str], *, include: bool):
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str, *, armed: bool = True) -> str:
        """The part of the text so far that may be shown and has not been. After a match nothing more is shown.

        armed: whether a match may end in `text`; else it passes unsearched (it may still begin a later match).
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        searched_from = len(self._held) if armed else len(self._held) + len(text)
        buffer = self._held + text
        if (match := self._find(buffer, searched_from)) is not None:
            begin, self.matched = match
            self._held = ""
            return buffer[: begin + len(self.matched)] if self._include else buffer[:begin]
        keep = self._longest_beginning(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """What was held back: the text has ended, so no stop string can come to be complete."""
        held, self._held = self._held, ""
        return held

    def _find(self, buffer: str, searched_from: int) -> tuple[int, str] | None:
        """(begin, stop) of the match that ends first, but after `searched_from` characters."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            begin = buffer.find(stop, max(0, searched_from + 1 - len(stop)))
            if begin >= 0 and (best is None or (begin + len(stop), begin) < best[:2]):
                best = (begin + len(stop), begin, stop)
        return None if best is None else (best[1], best[2])

    def _longest_beginning(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that is a proper beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(buffer)), longest, -1):
                if buffer.endswith(stop[:length]):
                    longest = length
                    break
        return longest
