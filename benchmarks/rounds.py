"""Rounds of one workload on both sides in turn, so that the machine's noise hits both."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.processes import Group, Process


class Side(Protocol):
    """One system under test."""

    name: str
    group: Group
    client: Process


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    warmup: int
    tasks: int
    submitters: dict[str, int]  # by side: connections of ours, processes of Celery's
    rounds: int
    singles: int


@dataclasses.dataclass(slots=True)
class Measured:
    """What one side gave."""

    rates: list[float] = dataclasses.field(default_factory=list)  # tasks/s, one a round
    accepted: list[float] = dataclasses.field(default_factory=list)  # acknowledged/s
    singles_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: dict[str, float] = dataclasses.field(default_factory=dict)  # in the batch rounds
    tasks: int = 0

    def summary(self) -> dict[str, Any]:
        """As it is reported."""
        times = sorted(self.singles_s)
        return {
            "tasks_per_s": round(statistics.median(self.rates), 1),
            "tasks_per_s_rounds": [round(rate, 1) for rate in self.rates],
            "accepted_per_s": round(statistics.median(self.accepted), 1),
            "single_p50_ms": round(1000 * percentile(times, 0.50), 2),
            "single_p99_ms": round(1000 * percentile(times, 0.99), 2),
            "cpu_ms_per_task": {
                name: round(1000 * spent / self.tasks, 3) for name, spent in self.cpu_s.items()
            },
            "cpu_ms_per_task_all": round(1000 * sum(self.cpu_s.values()) / self.tasks, 3),
        }


def percentile(times: Sequence[float], part: float) -> float:
    """The smallest of the sorted `times` that `part` of them do not exceed (nearest rank)."""
    rank = math.ceil(round(part * len(times), 9))
    return times[max(rank, 1) - 1]


def measure(sides: Sequence[Side], plan: Plan) -> dict[str, Measured]:
    """Warm both up, then alternate: batch A, batch B, singles A, singles B, and again."""
    found = {side.name: Measured() for side in sides}
    for side in sides:
        side.client.order(do="batch", tasks=plan.warmup, submitters=plan.submitters[side.name])
        side.client.order(do="single", tasks=10)
    for number in range(plan.rounds):
        turn = list(sides) if number % 2 == 0 else list(reversed(sides))
        for side in turn:
            before = side.group.cpu_s()
            answer = side.client.order(
                do="batch", tasks=plan.tasks, submitters=plan.submitters[side.name]
            )
            after = side.group.cpu_s()
            mine = found[side.name]
            mine.tasks += plan.tasks
            mine.rates.append(plan.tasks / answer["took_s"])
            mine.accepted.append(plan.tasks / answer["accepted_s"])
            for name in after:
                mine.cpu_s[name] = mine.cpu_s.get(name, 0.0) + after[name] - before[name]
        for side in turn:
            answer = side.client.order(do="single", tasks=plan.singles // plan.rounds)
            found[side.name].singles_s += answer["times_s"]
    return found
