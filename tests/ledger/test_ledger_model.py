"""Random histories against a model that fits on a page."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
import trio
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from ledger_samples import lease, opening, reopening, settling

from zerostate_node.errors import Refused
from zerostate_node.ledger.sqlite import SqliteLedger
from zerostate_node.ports.ledger import Write
from zerostate_node.wire.messages import Outcome

T = TypeVar("T")
FENCES = st.integers(0, 6)


@dataclasses.dataclass
class Model:
    phase: str = "open"
    fence: int = 0
    attempts: int = 0
    receipt: bytes | None = None


class LedgerHistories(RuleBasedStateMachine):
    """Every write is new (its time differs), so the replay of a write never enters here."""

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.models: dict[str, Model] = {}
        self.pending: list[tuple[Write, Callable[[], bool]]] = []
        self.clock = 0

    def teardown(self) -> None:
        self.flush()
        self.folder.cleanup()

    @initialize(target=tasks)
    def first(self) -> Any:
        return multiple(self.open_one(), self.open_one())

    def open_one(self) -> str:
        self.clock += 1
        write = opening(self.clock)
        task_id = write.row.spec.task_id

        def apply() -> bool:
            self.models[task_id] = Model()
            return True

        self.pending.append((write, apply))
        return task_id

    @rule(target=tasks)
    def opens(self) -> str:
        return self.open_one()

    @rule(task_id=tasks, fence=FENCES)
    def leases(self, task_id: str, fence: int) -> None:
        self.clock += 1

        def apply() -> bool:
            model = self.models[task_id]
            if model.phase == "settled" or fence <= model.fence:
                return False
            model.phase, model.fence, model.attempts = "leased", fence, model.attempts + 1
            return True

        self.pending.append((lease(task_id, fence, now_ms=self.clock), apply))

    @rule(task_id=tasks, fence=FENCES)
    def reopens(self, task_id: str, fence: int) -> None:
        self.clock += 1

        def apply() -> bool:
            model = self.models[task_id]
            if model.phase != "leased" or fence != model.fence:
                return False
            model.phase = "open"
            return True

        self.pending.append((reopening(task_id, fence, now_ms=self.clock), apply))

    @rule(task_id=tasks, fence=FENCES, outcome=st.sampled_from(Outcome), signed=st.booleans())
    def settles(self, task_id: str, fence: int, outcome: Outcome, signed: bool) -> None:
        self.clock += 1
        receipt = str(self.clock).encode() if signed else b""

        def apply() -> bool:
            model = self.models[task_id]
            if model.phase == "settled" or fence != model.fence:
                return False
            model.phase, model.receipt = "settled", receipt or None
            return True

        write = settling(task_id, fence, outcome=outcome, receipt=receipt, now_ms=self.clock)
        self.pending.append((write, apply))

    def with_ledger(self, work: Callable[[SqliteLedger], Any]) -> Any:
        async def run() -> Any:
            async with SqliteLedger(self.path, now_ms=lambda: 1) as ledger:
                return await work(ledger)

        return trio.run(run)

    @rule()
    def restarts(self) -> None:
        """Commit all that waits as one group, in a ledger that was just opened."""
        self.flush()

    def flush(self) -> None:
        pending, self.pending = self.pending, []

        async def work(ledger: SqliteLedger) -> None:
            before = {task_id: model.fence for task_id, model in self.models.items()}
            results = await ledger.commit([write for write, _ in pending])
            assert len(results) == len(pending)
            for (write, apply), result in zip(pending, results, strict=True):
                assert isinstance(result, Refused) == (not apply()), (write, result)
                if isinstance(result, Refused):
                    assert result.code == "stale_fence"
            await self.compare(ledger, before)

        self.with_ledger(work)

    async def compare(self, ledger: SqliteLedger, before: dict[str, int]) -> None:
        live = {task.spec.task_id: task for task in await ledger.live()}
        unsettled = {key for key, model in self.models.items() if model.phase != "settled"}
        assert set(live) == unsettled
        counts: dict[str, int] = {}
        for task_id, model in self.models.items():
            task = await ledger.task(task_id)
            assert task is not None
            assert (task.phase, task.fence) == (model.phase, model.fence)
            assert task.fence >= before.get(task_id, 0)
            assert await ledger.receipt(task_id) == model.receipt
            attempts = await ledger.attempts(task_id)
            assert len(attempts) == model.attempts
            running = [attempt for attempt in attempts if attempt.outcome is None]
            assert len(running) == (model.phase == "leased")
            name = task.outcome.value if task.outcome else task.phase
            counts[name] = counts.get(name, 0) + 1
        assert {name: n for name, n in (await ledger.counts()).items() if n} == counts

    @invariant()
    def groups_stay_small(self) -> None:
        if len(self.pending) > 12:
            self.flush()


LedgerHistories.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLedgerHistories = LedgerHistories.TestCase
