from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autodeploy.llm.stop_strings import StopStrings


def feed_all(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    watcher = StopStrings(stops, include=include)
    shown = "".join(watcher.feed(piece) for piece in pieces)
    return shown + watcher.flush(), watcher.matched


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "matched"),
    [
        (["END"], ["abc", "EN", "D", "more"], "abc", "END"),
        (["END"], ["abcENx", "ENDy"], "abcENx", "END"),
        (["END"], ["abc", "EN"], "abcEN", None),
        (["aab"], ["a", "a", "a", "b"], "a", "aab"),
        (["\n\n"], ["x\n", "\ny"], "x", "\n\n"),
        (["b", "ab"], ["xab"], "x", "ab"),
        (["abc", "b"], ["xabc"], "xa", "b"),
        ([], ["anything"], "anything", None),
    ],
)
def test_cases(stops, pieces, text, matched):
    assert feed_all(stops, pieces) == (text, matched)


def test_included_stop_string():
    assert feed_all(["END"], ["abcE", "NDmore"], include=True) == ("abcEND", "END")


def test_nothing_of_a_stop_string_is_shown_early():
    watcher = StopStrings(["<end>"], include=False)
    assert watcher.feed("hi <") == "hi "
    assert watcher.feed("en") == ""
    assert watcher.feed("x") == "<enx"
    assert watcher.feed("<end") == ""
    assert watcher.feed(">") == ""
    assert watcher.matched == "<end>"


def test_unarmed_text_may_begin_but_not_end_a_match():
    watcher = StopStrings(["END"], include=False)
    assert watcher.feed("END-E", armed=False) == "END-"
    assert watcher.feed("ND") == ""
    assert watcher.matched == "END"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_the_cut_into_pieces_does_not_matter(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = next(
        (
            (text[: end - len(stop)], stop)
            for end in range(len(text) + 1)
            for stop in sorted(set(stops), key=len, reverse=True)
            if text[:end].endswith(stop)
        ),
        (text, None),
    )
    assert feed_all(stops, pieces) == expected
