"""
Who gets which task: open tasks meet claims.

Pure bookkeeping, no I/O: the driver feeds it what it hears and asks for pairs. First come, first
served among tasks; among workers the one that is least busy for its size, has behaved best, and did
not just fail this task. Work per call grows with the pairs made, not with the tasks that wait.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator

EXCLUDED_MS = 10_000  # how long a worker that failed a task is passed over for it, others absent


@dataclasses.dataclass(slots=True)
class Claimer:
    """A worker that asks for work on one stream."""

    worker: str
    slots: int
    region: str = ""
    serves: frozenset[str] = frozenset()
    credits: int = 0
    in_flight: int = 0
    score: int = 0  # conduct; higher is better, 0 is a stranger
    turn: int = 0  # when it was last picked: among equals the one that waited longest is next

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
            100 * self.in_flight // max(1, self.slots),
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
    """Open tasks in order of arrival, and the workers that claim."""

    def __init__(self) -> None:
        self._ready: deque[Wanted] = deque()
        self._parked: dict[str, Wanted] = {}  # wait for a time, or for another worker
        self._gone: set[str] = set()  # withdrawn while in the deque
        self._waiting: set[str] = set()
        self._turn = 0
        self.claimers: dict[str, Claimer] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, wanted: Wanted) -> None:
        """A task is open."""
        self._gone.discard(wanted.task_id)
        self._waiting.add(wanted.task_id)
        self._ready.append(wanted)

    def withdraw(self, task_id: str) -> None:
        """A task is not open any more."""
        if task_id in self._waiting:
            self._waiting.discard(task_id)
            if self._parked.pop(task_id, None) is None:
                self._gone.add(task_id)

    def kinds(self) -> dict[str, int]:
        """Open tasks by agent id: what an announcement says."""
        counts: dict[str, int] = {}
        for wanted in [*self._parked.values(), *list(self._ready)[:512]]:
            if wanted.task_id not in self._gone:
                counts[wanted.agent_id] = counts.get(wanted.agent_id, 0) + 1
        return counts

    def unpark(self) -> None:
        """Something changed (a claim, the clock): parked tasks get another look."""
        self._ready.extendleft(reversed(self._parked.values()))
        self._parked.clear()

    def pairs(self, now_ms: int, *, most: int) -> Iterator[tuple[str, str]]:
        """Up to `most` pairs (task id, worker); each pair costs the worker one credit."""
        made = 0
        while self._ready and made < most:
            free = [c for c in self.claimers.values() if c.credits > 0]
            if not free:
                return
            wanted = self._ready.popleft()
            if wanted.task_id in self._gone:
                self._gone.discard(wanted.task_id)
                continue
            claimer = self._pick(wanted, free, now_ms)
            if claimer is None:
                self._parked[wanted.task_id] = wanted
                continue
            claimer.credits -= 1
            claimer.in_flight += 1
            self._turn += 1
            claimer.turn = self._turn
            self._waiting.discard(wanted.task_id)
            made += 1
            yield wanted.task_id, claimer.worker

    def _pick(self, wanted: Wanted, free: list[Claimer], now_ms: int) -> Claimer | None:
        if now_ms < wanted.not_before_ms:
            return None
        able = [c for c in free if c.serves_kind(wanted.agent_id, wanted.capability)]
        fresh = [c for c in able if c.worker not in wanted.excluded]
        if not fresh and wanted.since_ms + EXCLUDED_MS <= now_ms:
            # Nobody else came: one that failed before is better than nobody.
            fresh = able
        return min(fresh, key=lambda c: c.rank(wanted.region), default=None)
