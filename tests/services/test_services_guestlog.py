"""Log lines and progress out of a guest's stderr, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zerostate_node.services.guestlog import GuestLog


def test_a_progress_line_is_progress_and_no_log_line() -> None:
    log = GuestLog()
    assert log.feed("one\n::progress 7\ntwo\n::progress 8\n") == ("one\ntwo\n", 8)
    assert log.feed("::progress 101\n") == ("::progress 101\n", None)
    assert log.feed("see ::progress 9\n") == ("see ::progress 9\n", None)
    assert log.end() == ""


def test_text_is_shown_at_once_unless_it_may_become_progress() -> None:
    log = GuestLog()
    assert log.feed("no newline yet") == ("no newline yet", None)
    assert log.feed("::progress 5\n") == ("::progress 5\n", None)  # the same line goes on
    assert log.feed("::prog") == ("", None)
    assert log.feed("ress 12\n") == ("", 12)
    assert log.feed("::pro") == ("", None)
    assert log.end() == "::pro"


@given(
    st.lists(
        st.sampled_from(["a", "::progress 5", "x::progress 6", "::progress", "::", "", "é" * 30]),
        max_size=8,
    ),
    st.lists(st.integers(0, 60), max_size=12),
)
def test_how_it_is_cut_changes_nothing(lines: list[str], cuts: list[int]) -> None:
    text = "".join(line + "\n" for line in lines)
    whole = GuestLog()
    shown, progress = whole.feed(text)
    shown += whole.end()
    pieces, at = [], 0
    for cut in sorted(cuts):
        pieces.append(text[at:cut])
        at = max(at, cut)
    pieces.append(text[at:])
    log = GuestLog()
    parts, last = "", None
    for piece in pieces:
        more, said = log.feed(piece)
        parts += more
        last = said if said is not None else last
    assert (parts + log.end(), last) == (shown, progress)
