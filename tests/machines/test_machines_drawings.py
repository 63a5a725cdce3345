"""docs/machines.md shows the machines as they are."""

from __future__ import annotations

import pytest
from machines_drawings import PAGE, draw, page, walk

from zerostate_node.machines import roster


def test_the_drawings_are_what_the_machines_do() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python tests/support/machines_drawings.py --write"
    )


def test_a_drawing_changes_with_the_machine() -> None:
    alphabet = [("CardHeard", roster.CardHeard(1, b"a", 10, False))]
    more = [*alphabet, ("TimePassed", roster.TimePassed(10))]
    name = lambda state: type(state).__name__  # noqa: E731
    assert draw(roster.Absent(), alphabet, roster.step, name) != draw(
        roster.Absent(), more, roster.step, name
    )


def test_every_state_of_the_roster_is_reached() -> None:
    alphabet = [
        ("alive", roster.CardHeard(1, b"a", 10, False)),
        ("revoked", roster.CardHeard(1, b"a", 10, True)),
    ]
    reached = {type(state) for state in walk(roster.Absent(), alphabet, roster.step)}
    assert reached == {roster.Absent, roster.Alive, roster.Revoked}


def test_a_walk_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machines_drawings.STATES_MAX", 2)
    with pytest.raises(RuntimeError):
        page()
