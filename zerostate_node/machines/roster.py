"""
Which agents and nodes are believed alive: one entry per agent version, one per node.

Everything here was signed by its author, so that what is decided is only which of two things that
the same author said is the later one, and when it is out of date. Revocation is final.
"""

from __future__ import annotations

import dataclasses

from zerostate_node.machines.step import Step

# -- agent versions ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Absent:
    """Nothing is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alive:
    """The newest card heard: its publisher's sequence number and when it stops being true."""

    sequence: int
    key: bytes  # breaks ties between two cards of one sequence, so that all nodes agree
    expires_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Revoked:
    """Its publisher took it back. Final: only a later revocation takes its place."""

    sequence: int
    key: bytes


Entry = Absent | Alive | Revoked


@dataclasses.dataclass(frozen=True, slots=True)
class CardHeard:
    """A card whose signature is good."""

    sequence: int
    key: bytes
    expires_ms: int
    revoked: bool


@dataclasses.dataclass(frozen=True, slots=True)
class TimePassed:
    """It is `now_ms`."""

    now_ms: int


Fact = CardHeard | TimePassed


@dataclasses.dataclass(frozen=True, slots=True)
class Keep:
    """Store this card, tell whoever watches."""


@dataclasses.dataclass(frozen=True, slots=True)
class Withdraw:
    """The agent version may not be run any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Forget it: it expired."""


Effect = Keep | Withdraw | Drop


def step(entry: Entry, fact: Fact) -> Step[Entry, Effect]:
    """What is believed of one agent version after hearing something."""
    match entry, fact:
        case Absent() | Alive(), CardHeard(sequence, key, _, True):
            return Step(Revoked(sequence, key), (Keep(), Withdraw()))
        case Revoked(), CardHeard(sequence, key, _, True):
            if (sequence, key) <= (entry.sequence, entry.key):
                return Step(entry)
            return Step(Revoked(sequence, key), (Keep(),))
        case Absent(), CardHeard(sequence, key, expires_ms, False):
            return Step(Alive(sequence, key, expires_ms), (Keep(),))
        case Alive(), CardHeard(sequence, key, expires_ms, False) if (sequence, key) > (
            entry.sequence,
            entry.key,
        ):
            return Step(Alive(sequence, key, expires_ms), (Keep(),))
        case Alive(expires_ms=expires_ms), TimePassed(now_ms) if now_ms >= expires_ms:
            return Step(Absent(), (Drop(),))
        case _:
            return Step(entry)


# -- nodes -----------------------------------------------------------------------------------------


def newer_advert(known_issued_ms: int | None, issued_ms: int) -> bool:
    """Whether an advert replaces the one known: a node's own clock orders what it says."""
    return known_issued_ms is None or issued_ms > known_issued_ms


def announce_interval_ms(
    nodes_known: int, *, base_ms: int = 30_000, budget_per_s: float = 10.0
) -> int:
    """
    How long to wait between two adverts of ours.

    Every node hears every advert, so the interval stretches with the mesh: all together stay
    within `budget_per_s` messages a second.
    """
    return max(base_ms, int(1000 * nodes_known / budget_per_s))
