"""
How a peer behaved, as one number, and what follows from it.

Good work raises the score slowly, bad bytes lower it fast, and time pulls it back to zero: an
honest peer with a bug today is welcome tomorrow. Only what this node saw itself counts.
"""

from __future__ import annotations

import dataclasses

from zerostate_node.machines.step import Step

SCORE_MIN, SCORE_MAX = -1_000, 1_000
BAN_AT = -100
BAN_MS = 10 * 60_000
BANS_MS_MAX = 24 * 3_600_000
HALF_LIFE_MS = 30 * 60_000


@dataclasses.dataclass(frozen=True, slots=True)
class Conduct:
    """Score at `at_ms`, and the ban, if any. `bans` counts how often it came to that."""

    score: float = 0.0  # not rounded: else each weightless act would wash a point away
    at_ms: int = 0
    banned_until_ms: int = 0
    bans: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Behaved:
    """A peer did something of this weight (see WEIGHTS)."""

    weight: int
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ban:
    """Drop the peer and refuse it for this long."""

    for_ms: int


WEIGHTS = {
    "completed": 2,
    "guest_failed": 0,  # the guest's fault, not the worker's
    "refused": -1,
    "lost": -5,
    "stale_receipt": 0,  # an honest zombie sends one
    "malformed": -25,
    "bad_signature": -40,
    "not_allowed": -20,
    "lied": -100,
    "flooded": -10,
}


def score_at(state: Conduct, now_ms: int) -> int:
    """The score after time has pulled it towards zero, in whole points."""
    return int(_healed(state, now_ms))


def _healed(state: Conduct, now_ms: int) -> float:
    halves = max(0, now_ms - state.at_ms) / HALF_LIFE_MS
    return float(state.score * 0.5 ** min(halves, 64))


def step(state: Conduct, fact: Behaved) -> Step[Conduct, Ban]:
    """The peer's standing after what it did."""
    # A clock that was set back heals nobody twice.
    now_ms = max(fact.now_ms, state.at_ms)
    score = max(SCORE_MIN, min(SCORE_MAX, _healed(state, now_ms) + fact.weight))
    if score > BAN_AT or now_ms < state.banned_until_ms:
        return Step(dataclasses.replace(state, score=score, at_ms=now_ms))
    for_ms = min(BANS_MS_MAX, BAN_MS << min(state.bans, 8))
    banned = Conduct(score / 2, now_ms, now_ms + for_ms, state.bans + 1)
    return Step(banned, (Ban(for_ms),))
