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
    expires_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Revoked:
    """Its publisher took it back. Final: no other card of this version counts again."""

    sequence: int


Entry = Absent | Alive | Revoked


@dataclasses.dataclass(frozen=True, slots=True)
class CardHeard:
    """A card whose signature is good."""

    sequence: int
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
        case Absent(), CardHeard(sequence, expires_ms, False):
            return Step(Alive(sequence, expires_ms), (Keep(),))
        case Alive(known, _), CardHeard(sequence, expires_ms, False) if sequence > known:
            return Step(Alive(sequence, expires_ms), (Keep(),))
        case ((Absent() | Alive()), CardHeard(sequence, expires_ms, True)):
            known = entry.sequence if isinstance(entry, Alive) else 0
            if sequence < known:
                return Step(entry)
            return Step(Revoked(sequence), (Keep(), Withdraw()))
        case Alive(_, expires_ms), TimePassed(now_ms) if now_ms >= expires_ms:
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
