"""
What an owner makes known of its tasks' changes: events, log lines, counts, and conduct.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import structlog
import trio

from zerostate_node.machines import task as machine
from zerostate_node.machines.dispatch import WINDOW_MAX, Claimer
from zerostate_node.services.hub import Hub
from zerostate_node.services.owned import Change
from zerostate_node.wire.messages import Outcome

log = structlog.get_logger()

LOST_ONCE_S = 5.0  # a worker that dies with many leases is blamed for one death
BLAMED_MAX = 1_024

_CONDUCT = {
    Outcome.COMPLETED: "completed",
    Outcome.LOST: "lost",
    Outcome.REFUSED: "refused",
    Outcome.UNFETCHABLE: "refused",
}  # what an outcome says about the worker; any other is the guest's doing


class Chronicle:
    """Tells of changes, once each, after they are durable."""

    def __init__(
        self,
        *,
        hub: Hub,
        claimers: Mapping[str, Claimer],
        behaved: Callable[[str, str], None],
    ) -> None:
        self._hub = hub
        self._claimers = claimers
        self._behaved = behaved
        self._lost_s: dict[str, float] = {}  # when each worker was last blamed for lost leases
        self.settled: Counter[str] = Counter()

    def tell(self, change: Change) -> None:
        """Say it to watchers and to the log; judge the worker; count."""
        task_id, entry, before = change.task_id, change.entry, change.before
        match change.after:
            case machine.Leased(attempt, fence, worker):
                if isinstance(before, machine.Leased) and before.fence == fence:
                    return  # renewed
                self._hub.tell(
                    "task.leased", task_id=task_id, worker=worker, attempt=attempt, fence=fence
                )
                log.info("lease granted", task=task_id, fence=fence, worker=worker[-8:])
            case machine.Open(attempt, fence, _, excluded):
                lost = before.worker if isinstance(before, machine.Leased) else ""
                self._hub.tell("task.retry", task_id=task_id, attempt=attempt, worker=lost)
                log.info("task open again", task=task_id, fence=fence, worker=lost[-8:])
                blamed = isinstance(before, machine.Leased) and excluded != before.excluded
                if blamed and change.ended is not None:
                    self._judge(lost, change.ended)
            case machine.Settled(outcome, _, fence, worker, detail):
                self.settled[outcome.value] += 1
                if worker:
                    self._judge(worker, outcome)
                self._hub.tell(
                    "task.settled",
                    task_id=task_id,
                    outcome=outcome.value,
                    worker=worker,
                    detail=detail,
                    fence=fence,
                )
                log.info(
                    "task settled",
                    task=task_id,
                    outcome=outcome.value,
                    fence=fence,
                    worker=worker[-8:],
                    trace=entry.spec.trace,
                )

    def _judge(self, worker: str, outcome: Outcome) -> None:
        """What an attempt's end says of its worker: its conduct, and how many it may hold."""
        claimer = self._claimers.get(worker)
        if outcome is Outcome.LOST:
            now_s = trio.current_time()
            if now_s - self._lost_s.get(worker, float("-inf")) < LOST_ONCE_S:
                return
            if len(self._lost_s) >= BLAMED_MAX and worker not in self._lost_s:
                del self._lost_s[next(iter(self._lost_s))]
            self._lost_s[worker] = now_s
            if claimer is not None:
                claimer.window = max(1, claimer.window // 2)
        elif outcome is Outcome.COMPLETED and claimer is not None:
            claimer.window = min(WINDOW_MAX, claimer.window + 1)
        self._behaved(worker, _CONDUCT.get(outcome, "guest_failed"))
