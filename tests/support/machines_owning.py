"""A driver over a real ledger, with workers that only listen."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ledger_samples
import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ledger.sqlite import SqliteLedger
from zerostate_node.machines import task as machine
from zerostate_node.machines.dispatch import Claimer
from zerostate_node.ports.desk import Event
from zerostate_node.ports.ledger import OpenTask, Write
from zerostate_node.services.driver import Driver
from zerostate_node.services.hub import Hub
from zerostate_node.services.owned import DriverSettings, LeaseOut, ReceiptPayload, row_of
from zerostate_node.wire.messages import Outcome

T0 = ledger_samples.T0
TTL = 15_000
WAIT_S = 20.0  # far beyond what anything here takes, also on a loaded machine


class Clock:
    """Wall time that stands still until it is moved."""

    def __init__(self, now_ms: int = T0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class Away:
    """A ledger that is away as often as it is told, for writes or for reads."""

    def __init__(self, inner: SqliteLedger) -> None:
        self.inner = inner
        self.commits_failing = 0
        self.reads_failing = 0
        self.lies_failing = 0  # commits that are done although they are said to have failed
        self.refused = 0
        self.commits: list[int] = []

    async def commit(self, writes: Sequence[Write]) -> list[object]:
        if self.commits_failing:
            self.commits_failing -= 1
            self.refused += 1
            raise Unavailable("the disk is full", code="ledger_away")
        results = await self.inner.commit(writes)
        self.commits.append(len(writes))
        if self.lies_failing:
            self.lies_failing -= 1
            raise Unavailable("no word came back", code="ledger_away")
        return results

    async def task(self, task_id: str) -> Any:
        self._read()
        return await self.inner.task(task_id)

    async def input_inline(self, task_id: str) -> Any:
        self._read()
        return await self.inner.input_inline(task_id)

    def _read(self) -> None:
        if self.reads_failing:
            self.reads_failing -= 1
            raise Unavailable("the disk does not answer", code="ledger_away")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclasses.dataclass
class Listener:
    """A worker's outlet: everything sent to it, in order."""

    worker: str
    claimer: Claimer
    sent: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    leases: list[LeaseOut] = dataclasses.field(default_factory=list)
    news: trio.Event = dataclasses.field(default_factory=trio.Event)

    def lease(self, leases: Sequence[LeaseOut]) -> None:
        self.leases += leases
        self._tell(*(("lease", lease.spec.task_id, lease.fence) for lease in leases))

    def renewed(self, task_id: str, fence: int, ttl_ms: int) -> None:
        self._tell(("renewed", task_id, fence, ttl_ms))

    def ack(self, task_id: str, fence: int, verdict: str, reason: str) -> None:
        self._tell(("ack", task_id, fence, verdict))

    def cancel(self, task_id: str, fence: int, reason: str) -> None:
        self._tell(("cancel", task_id, fence))

    def _tell(self, *what: tuple[Any, ...]) -> None:
        self.sent += what
        self.news.set()
        self.news = trio.Event()

    async def until(self, done: Callable[[Listener], bool]) -> None:
        """Wait until what was sent fulfils this."""
        with trio.fail_after(WAIT_S):
            while not done(self):
                await self.news.wait()

    async def leased(self, count: int = 1) -> list[LeaseOut]:
        """Wait for so many leases."""
        await self.until(lambda it: len(it.leases) >= count)
        return self.leases

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [what for what in self.sent if what[0] == kind]


class House:
    """An owner without a network."""

    def __init__(self, ledger: SqliteLedger, clock: Clock, **settings: Any) -> None:
        self.ledger = Away(ledger)
        self.clock = clock
        self.hub = Hub(clock)
        self.conduct: list[tuple[str, str]] = []
        self.driver = Driver(
            ledger=self.ledger,
            hub=self.hub,
            settings=DriverSettings(lease_ttl_ms=TTL, **settings),
            now_ms=clock,
            behaved=lambda worker, what: self.conduct.append((worker, what)),
        )

    def worker(self, name: str, credits: int = 0, **changes: Any) -> Listener:
        fields: dict[str, Any] = {"slots": 4, "serves": frozenset({"*"})}
        claimer = Claimer(name, credits=credits, **(fields | changes))
        listener = Listener(name, claimer)
        self.driver.welcome(claimer, listener)
        self.driver.claims_changed()
        return listener

    def claim(self, listener: Listener, credits: int) -> None:
        listener.claimer.credits = credits
        self.driver.claims_changed()

    async def submit(self, number: int = 0, **changes: Any) -> str:
        return await self.driver.submit(self.opening(number, **changes))

    def opening(
        self, number: int = 0, *, key: str = "", digest: str = "", **changes: Any
    ) -> OpenTask:
        spec = ledger_samples.spec(number, **changes)
        row = row_of(spec, "operator", self.clock())
        return OpenTask(row=row, input_inline=b"input", key=key, request_digest=digest)

    def receipt(self, lease: LeaseOut, worker: str, outcome: Outcome = Outcome.COMPLETED) -> None:
        """A checked receipt for a lease."""
        self.driver.post(
            lease.spec.task_id,
            machine.ReceiptCame(worker, lease.fence, outcome, "", self.clock()),
            ReceiptPayload(
                envelope=b"signed by " + worker.encode(),
                output=ledger_samples.ref(b"output"),
                output_inline=b"output",
                fuel_used=5,
                price_ucr=0,
            ),
        )

    async def told(self, kind: str, count: int = 1, **body: Any) -> list[Event]:
        """Wait for so many events of a kind."""
        found: list[Event] = []
        with trio.fail_after(WAIT_S):
            async for batch in self.hub.follow(0):
                found += [
                    event
                    for event in batch
                    if event.kind == kind and body.items() <= event.body.items()
                ]
                if len(found) >= count:
                    return found
        raise AssertionError("unreachable")

    async def turned(self) -> None:
        """Wait until everything that waits now has been decided on."""
        await self.submit(99)


@asynccontextmanager
async def house(path: Path, clock: Clock | None = None, **settings: Any) -> AsyncIterator[House]:
    """A driver that runs over the ledger in this file."""
    clock = clock or Clock()
    async with SqliteLedger(path, now_ms=clock) as ledger:
        here = House(ledger, clock, **settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(here.driver.run)
            yield here
            nursery.cancel_scope.cancel()
