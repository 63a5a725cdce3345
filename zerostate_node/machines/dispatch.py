"""
Who gets which task: open tasks meet claims.

Pure bookkeeping, no I/O: the driver feeds it what it hears and asks for pairs. First come, first
served among tasks; among workers the one that is least busy for its size, has behaved best, and did
not just fail this task. Work per call grows with the pairs made and the kinds that wait, not with
the tasks that wait.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterator

EXCLUDED_MS = 10_000  # how long a worker that failed a task is passed over for it, others absent
EXCLUDED_BUSY_MS = 60_000  # ... and while there are others, but all of them are busy
WINDOW_FIRST = 32  # leases that a stranger may hold at once, whatever it claims
WINDOW_MAX = 4_096
SLOTS_BELIEVED = 256  # more than this a worker may say, but it is not ranked by it
DEAD_MAX = 1_024  # withdrawn tasks whose places are kept before they are swept, beside one for each


@dataclasses.dataclass(slots=True)
class Claimer:
    """A worker that asks for work on one stream."""

    worker: str
    slots: int
    region: str = ""
    serves: frozenset[str] = frozenset()
    credits: int = 0
    in_flight: int = 0
    unsent: int = 0  # leases granted that are not on their way yet
    window: int = WINDOW_MAX  # leases it may hold at once: what it has earned, not what it claims
    score: int = 0  # conduct; higher is better, 0 is a stranger
    turn: int = 0  # when it was last picked: among equals the one that waited longest is next

    @property
    def room(self) -> int:
        """How many more leases it may have now."""
        return min(self.credits, self.window - self.in_flight)

    def serves_kind(self, agent_id: str, capability: str) -> bool:
        """Whether this worker asked for such work."""
        return (
            "*" in self.serves
            or agent_id in self.serves
            or bool(capability and f"cap:{capability}" in self.serves)
        )

    def rank(self, region: str) -> tuple[float, int, int, int]:
        """Lower is better: badly behaved last, the same region, the least busy, the one in turn."""
        return (
            1.0 if self.score < 0 else 0.0,
            0 if not region or self.region == region else 1,
            100 * self.in_flight // max(1, min(self.slots, SLOTS_BELIEVED)),
            self.turn,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """An open task, as the dispatcher needs it."""

    task_id: str
    agent_id: str
    capability: str
    excluded: tuple[str, ...]
    not_before_ms: int
    since_ms: int
    region: str = ""


class Dispatcher:
    """
    Open tasks in order of arrival, and the workers that claim.

    Tasks queue by kind (agent and capability), so that those that nobody here serves cost nothing
    while the others flow. A task that must wait for a time or for another worker is parked.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, _Place] = {}  # by task id: the one place of each that counts
        self._ready: dict[_Kind, deque[_Place]] = {}
        self._parked: dict[_Kind, deque[_Place]] = {}
        self._kinds: dict[str, int] = {}
        self._dead = 0
        self._order = 0
        self._turn = 0
        self.claimers: dict[str, Claimer] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, wanted: Wanted) -> None:
        """A task is open. One that is here already is replaced and goes to the end."""
        self.withdraw(wanted.task_id)
        self._order += 1
        place = _Place(self._order, wanted)
        self._waiting[wanted.task_id] = place
        self._kinds[wanted.agent_id] = self._kinds.get(wanted.agent_id, 0) + 1
        self._ready.setdefault(_kind_of(wanted), deque()).append(place)

    def withdraw(self, task_id: str) -> None:
        """A task is not open any more."""
        if self._remove(task_id):
            self._dead += 1
            if self._dead > DEAD_MAX + len(self._waiting):
                self._sweep()

    def _remove(self, task_id: str) -> bool:
        place = self._waiting.pop(task_id, None)
        if place is None:
            return False
        agent_id = place.wanted.agent_id
        self._kinds[agent_id] -= 1
        if not self._kinds[agent_id]:
            del self._kinds[agent_id]
        return True

    def _sweep(self) -> None:
        """Let go of places that do not count any more: nobody may ever come to pass over them."""
        for queues in (self._ready, self._parked):
            for kind, places in list(queues.items()):
                live = deque(p for p in places if self._waiting.get(p.wanted.task_id) is p)
                if live:
                    queues[kind] = live
                else:
                    del queues[kind]
        self._dead = 0

    def kinds(self) -> dict[str, int]:
        """Open tasks by agent id: what an announcement says."""
        return dict(self._kinds)

    def unpark(self) -> None:
        """Something changed (a claim, the clock): parked tasks get another look."""
        for kind, parked in self._parked.items():
            ready = self._ready.setdefault(kind, deque())
            ready.extendleft(reversed(parked))
        self._parked.clear()

    def pairs(self, now_ms: int, *, most: int) -> Iterator[tuple[str, str]]:
        """
        Up to `most` pairs (task id, worker); each costs the worker one credit.

        Between two of them the caller may neither add nor withdraw tasks, nor change claims.
        """
        free = [c for c in self.claimers.values() if c.room > 0]
        heads = [
            (ready[0].order, kind)
            for kind, ready in self._ready.items()
            if ready and any(c.serves_kind(*kind) for c in free)
        ]
        heapq.heapify(heads)
        made = 0
        while heads and made < most:
            _, kind = heapq.heappop(heads)
            able = [c for c in free if c.room > 0 and c.serves_kind(*kind)]
            if not able:
                continue
            ready = self._ready[kind]
            place = ready.popleft()
            if self._waiting.get(place.wanted.task_id) is place:
                claimer = self._pick(place.wanted, able, now_ms)
                if claimer is None:
                    self._parked.setdefault(kind, deque()).append(place)
                else:
                    made += 1
                    yield self._give(place.wanted, claimer)
            if ready:
                heapq.heappush(heads, (ready[0].order, kind))
            else:
                del self._ready[kind]

    def _pick(self, wanted: Wanted, able: list[Claimer], now_ms: int) -> Claimer | None:
        if now_ms < wanted.not_before_ms:
            return None
        fresh = [c for c in able if c.worker not in wanted.excluded]
        waited_ms = now_ms - wanted.since_ms
        if not fresh and waited_ms >= EXCLUDED_MS:
            # Nobody else came: one that failed before is better than nobody. Where others are only
            # busy it waits longer: else one that claims all and does nothing could use up its tries
            others = waited_ms < EXCLUDED_BUSY_MS and any(
                c.worker not in wanted.excluded
                and c.serves_kind(wanted.agent_id, wanted.capability)
                for c in self.claimers.values()
            )
            fresh = [] if others else able
        return min(fresh, key=lambda c: c.rank(wanted.region), default=None)

    def _give(self, wanted: Wanted, claimer: Claimer) -> tuple[str, str]:
        self._remove(wanted.task_id)
        self._turn += 1
        claimer.turn = self._turn
        claimer.credits -= 1
        claimer.unsent += 1
        claimer.in_flight += 1
        return wanted.task_id, claimer.worker


def first_window(score: int, slots: int) -> int:
    """How many leases a worker of this standing may hold before it has done any here."""
    if score < 0:
        return 1
    return min(WINDOW_MAX, max(WINDOW_FIRST, min(slots, 2 * WINDOW_FIRST)) + 4 * score)


_Kind = tuple[str, str]  # agent id and capability: what decides who may serve it


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a task stands in the queue. One that was withdrawn is passed over when it comes up."""

    order: int
    wanted: Wanted


def _kind_of(wanted: Wanted) -> _Kind:
    return wanted.agent_id, wanted.capability
