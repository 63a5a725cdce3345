"""
The loop in which an owner decides: facts in, one commit, effects out.

Theory of operation. Everything that may change a task (a submission, a claim, a receipt, the clock)
is queued as a fact. Each turn drains what waits, steps the task machines, lets the dispatcher pair
open tasks with claims, writes ALL that must be durable in one ledger commit, and only then performs
the effects: answers, leases, acknowledgements, events. While a commit is on its way facts gather
for the next turn; that is what makes one fsync carry hundreds of tasks under load.

No `await` stands between reading a task's state and replacing it, so no lock is needed.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import structlog
import trio

from zerostate_node.errors import Refused, Unavailable, ZeroStateError
from zerostate_node.machines import task as machine
from zerostate_node.machines.dispatch import Claimer, Dispatcher, Wanted
from zerostate_node.ports.ledger import (
    Ledger,
    OpenTask,
    TaskRow,
    Write,
)
from zerostate_node.services.chronicle import Chronicle
from zerostate_node.services.hub import Hub
from zerostate_node.services.owned import (
    Change,
    DriverSettings,
    Entry,
    LeaseOut,
    Outlet,
    ReceiptPayload,
    settled_state,
    write_of,
)
from zerostate_node.units import MIB
from zerostate_node.wire.cardshape import ARGS_BYTES_MAX
from zerostate_node.wire.messages import RetryPolicy, TaskSpec

log = structlog.get_logger()

TURN_TASKS_MAX = 512  # pairs made in one turn: bounds the size of one commit
TICK_S = 0.25  # how late a lapse may be noticed
INLINE_KEPT_BYTES_MAX = 64 * MIB  # inputs of open tasks held in memory; more are read when leased
LEDGER_RETRY_S = 0.5
LOOKUPS_MAX = 64  # tasks that are over, read from the ledger in one turn for their late receipts
DUE_MIN = 8_192  # entries of the clock that are kept before those of ended tasks are swept


@dataclasses.dataclass(slots=True)
class _Submission:
    write: OpenTask
    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    result: object = None


_Fact = tuple[str, machine.Fact, ReceiptPayload | None]  # about the task of this id


@dataclasses.dataclass(frozen=True, slots=True)
class _Doubt:
    """The ledger refused a transition: what was believed before it, and what led to it."""

    before: machine.State
    facts: tuple[_Fact, ...]


@dataclasses.dataclass(slots=True)
class _Turn:
    """What one turn has decided so far."""

    now_ms: int
    writes: list[Write] = dataclasses.field(default_factory=list)
    owners: list[str] = dataclasses.field(default_factory=list)  # task id behind each write
    effects: list[tuple[str, machine.Effect]] = dataclasses.field(default_factory=list)
    before: dict[str, machine.State] = dataclasses.field(default_factory=dict)
    changes: list[Change] = dataclasses.field(default_factory=list)
    granted: list[tuple[str, Claimer]] = dataclasses.field(default_factory=list)


class Driver:
    """Owns tasks: the only place where their state changes."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        hub: Hub,
        settings: DriverSettings,
        now_ms: Callable[[], int],
        behaved: Callable[[str, str], None] = lambda worker, what: None,
    ) -> None:
        self._ledger = ledger
        self._hub = hub
        self._settings = settings
        self._now_ms = now_ms
        self.tasks: dict[str, Entry] = {}
        self.dispatch = Dispatcher()
        self._outlets: dict[str, Outlet] = {}
        self._submissions: deque[_Submission] = deque()
        self._facts: deque[_Fact] = deque()
        self._doubts: dict[str, _Doubt] = {}
        self._due: list[tuple[int, str]] = []
        self._due_most = DUE_MIN
        self._unpark_at = 0.0
        self._wake = trio.Event()
        self._inline_bytes = 0
        self.turns = 0
        self.writes = 0
        self.submitted = 0
        self.chronicle = Chronicle(hub=hub, claimers=self.dispatch.claimers, behaved=behaved)

    # -- asked by others ---------------------------------------------------------------------------

    async def submit(self, write: OpenTask) -> str:
        """
        Open a task; durable when it returns its id.

        Raises:
            Refused: the idempotency key was used for another request; args too long.
            Unavailable: too many open tasks, or the ledger is away.
        """
        args_bytes = sum(len(arg.encode()) for arg in write.row.spec.args)
        if args_bytes > ARGS_BYTES_MAX:
            raise Refused(
                f"args take {args_bytes} bytes, {ARGS_BYTES_MAX} are allowed",
                code="bad_request",
                hint="a receipt repeats them: send what is long as input",
            )
        if len(self.tasks) + len(self._submissions) >= self._settings.tasks_open_max:
            raise Unavailable(
                f"{self._settings.tasks_open_max} tasks are open already",
                code="too_many_tasks",
                hint="wait for some to finish, or raise owner.tasks_open_max",
                retry_after_s=5,
            )
        submission = _Submission(write)
        self._submissions.append(submission)
        self._wake.set()
        await submission.done.wait()
        if isinstance(submission.result, ZeroStateError):
            raise submission.result
        return str(submission.result)

    def post(self, task_id: str, fact: machine.Fact, payload: ReceiptPayload | None = None) -> None:
        """Queue a fact about a task."""
        self._facts.append((task_id, fact, payload))
        self._wake.set()

    def welcome(self, claimer: Claimer, outlet: Outlet) -> None:
        """A worker's stream is there: answers to it go to `outlet` from now on."""
        self.dispatch.claimers[claimer.worker] = claimer
        self._outlets[claimer.worker] = outlet
        self._recount()
        self._unpark_at = 0.0

    @property
    def waiting(self) -> int:
        """Facts that wait to be decided on: the ledger is slow or away when there are many."""
        return len(self._facts)

    def claims_changed(self) -> None:
        """A worker asks for work, or changed what it asked for."""
        self._wake.set()

    def worker_lost(self, worker: str, outlet: Outlet) -> None:
        """The worker's stream is gone. A newer stream of the same worker is left alone."""
        if self._outlets.get(worker) is not outlet:
            return
        del self._outlets[worker]
        self.dispatch.claimers.pop(worker, None)
        now_ms = self._now_ms()
        for task_id, entry in self.tasks.items():
            if isinstance(entry.state, machine.Leased) and entry.state.worker == worker:
                self.post(task_id, machine.WorkerLost(worker, now_ms))

    # -- the loop ----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume what the ledger holds, then turn for ever."""
        await self._resume()
        task_status.started()
        while True:
            with trio.move_on_after(TICK_S):
                await self._wake.wait()
            self._wake = trio.Event()
            self._look_at_clock()
            try:
                await self._turn()
            except Unavailable as error:
                log.warning("ledger away, deciding nothing", cause=str(error))
                self._refuse(self._submissions, error)
                self._submissions.clear()
                await trio.sleep(LEDGER_RETRY_S)
                self._wake.set()

    async def _resume(self) -> None:
        for row in await self._ledger.live():
            if isinstance(self._restore(row).state, machine.Leased):
                self.post(row.spec.task_id, self._resumed(row.spec))
        if self.tasks:
            log.info("tasks resumed", tasks=len(self.tasks))

    def _restore(self, row: TaskRow) -> Entry:
        """Hold a task as the ledger has it. A lease wants `_resumed` to be posted."""
        task_id = row.spec.task_id
        state: machine.State
        if row.phase == "leased":
            state = machine.Leased(
                row.attempt,
                row.fence,
                row.worker,
                row.lease_until_ms,
                row.excluded,
                row.cancel_reason,
            )
        else:
            state = machine.Open(row.attempt, row.fence, row.not_before_ms, row.excluded)
        entry = self.tasks[task_id] = Entry(row.spec, row.actor, state)
        self._schedule(row.spec.deadline_ms, task_id)
        if isinstance(state, machine.Leased):
            self._schedule(state.until_ms, task_id)
        self._want(task_id, entry, self._now_ms())
        return entry

    def _resumed(self, spec: TaskSpec) -> machine.Resumed:
        # Renewals are not in the ledger, so the term that it knows may be over already.
        return machine.Resumed(self._settings.lease_ttl_ms, self._now_ms(), self._most_ms(spec))

    def _most_ms(self, spec: TaskSpec) -> int:
        """How long one worker may have a task, whatever it says."""
        return spec.limits.wall_ms_max + self._settings.unstarted_ms_max

    def _look_at_clock(self) -> None:
        now_ms = self._now_ms()
        noticed = set()
        while self._due and self._due[0][0] <= now_ms:
            _, task_id = heapq.heappop(self._due)
            if task_id in self.tasks and task_id not in noticed:
                noticed.add(task_id)
                self.post(task_id, machine.TimePassed(now_ms))
        if trio.current_time() >= self._unpark_at:
            self._unpark_at = trio.current_time() + TICK_S
            self.dispatch.unpark()

    def _schedule(self, at_ms: int, task_id: str) -> None:
        heapq.heappush(self._due, (at_ms, task_id))
        if len(self._due) > self._due_most:
            # Deadlines are far away and most tasks end long before theirs.
            self._due = [due for due in self._due if due[1] in self.tasks]
            heapq.heapify(self._due)
            self._due_most = max(DUE_MIN, 2 * len(self._due))

    async def _turn(self) -> None:
        for task_id in list(self._doubts):
            await self._reload(task_id)
        over = await self._look_up_strangers()
        # No await from here to the commit: what is taken from the queues is decided in this turn,
        # and a receipt is judged by the state that it was checked against.
        submissions = [self._submissions.popleft() for _ in range(len(self._submissions))]
        facts = [self._facts.popleft() for _ in range(len(self._facts))]
        turn = _Turn(self._now_ms())
        self.turns += 1

        for submission in submissions:
            self._admit(turn, submission.write)
        for task_id, fact, payload in facts:
            entry = self.tasks.get(task_id)
            if entry is not None:
                self._step(turn, task_id, entry, fact, payload)
            elif isinstance(fact, machine.ReceiptCame) and task_id not in over:
                self._facts.append((task_id, fact, payload))  # for the next turn's look-up
                self._wake.set()
            else:
                self._step_settled(turn, task_id, over.get(task_id), fact)
        self._pair(turn)

        results: list[object] = []
        if turn.writes:
            try:
                results = await self._ledger.commit(turn.writes)
            except Unavailable as error:
                self._undo(turn, submissions, facts, error)
                raise
            self.writes += len(turn.writes)
        self._reconcile(turn, submissions, facts, results)
        await self._perform(turn)

    def _pair(self, turn: _Turn) -> None:
        unpaired = []
        for task_id, worker in self.dispatch.pairs(turn.now_ms, most=TURN_TASKS_MAX):
            entry, claimer = self.tasks[task_id], self.dispatch.claimers[worker]
            turn.granted.append((task_id, claimer))
            chosen = machine.Chosen(
                worker, self._settings.lease_ttl_ms, turn.now_ms, self._most_ms(entry.spec)
            )
            self._step(turn, task_id, entry, chosen, None)
            if not isinstance(entry.state, machine.Leased):
                unpaired.append(task_id)  # its deadline passed since the clock was looked at
        if len(turn.granted) >= TURN_TASKS_MAX:
            self._wake.set()
        self._take_back(turn, set(unpaired))
        for task_id in unpaired:
            self._want(task_id, self.tasks[task_id], turn.now_ms)

    def _take_back(self, turn: _Turn, task_ids: set[str]) -> None:
        """These tasks are not leased after all: their workers may take others instead."""
        if not task_ids:
            return
        for task_id, claimer in turn.granted:
            if task_id in task_ids:
                claimer.credits += 1
                claimer.unsent -= 1
        turn.granted = [g for g in turn.granted if g[0] not in task_ids]
        self._recount()

    def _recount(self) -> None:
        """How many leases each connected worker holds."""
        held = Counter(
            entry.state.worker
            for entry in self.tasks.values()
            if isinstance(entry.state, machine.Leased)
        )
        for claimer in self.dispatch.claimers.values():
            claimer.in_flight = held[claimer.worker]

    def _admit(self, turn: _Turn, write: OpenTask) -> None:
        spec = write.row.spec
        entry = Entry(spec, write.row.actor, machine.Open(), write.input_inline)
        self._inline_bytes += len(write.input_inline or b"")
        if self._inline_bytes > INLINE_KEPT_BYTES_MAX:
            self._drop_inline(entry)
        self.tasks[spec.task_id] = entry
        turn.writes.append(write)
        turn.owners.append(spec.task_id)
        self._schedule(spec.deadline_ms, spec.task_id)
        self._want(spec.task_id, entry, turn.now_ms)

    def _want(self, task_id: str, entry: Entry, now_ms: int) -> None:
        state = entry.state
        if isinstance(state, machine.Open):
            self.dispatch.add(
                Wanted(
                    task_id,
                    entry.spec.agent_id,
                    entry.spec.capability,
                    state.excluded,
                    state.not_before_ms,
                    now_ms,
                    self._settings.region,
                )
            )

    def _step(
        self,
        turn: _Turn,
        task_id: str,
        entry: Entry,
        fact: machine.Fact,
        payload: ReceiptPayload | None,
    ) -> None:
        before = entry.state
        done = machine.step(
            before, fact, retry=entry.spec.retry, deadline_ms=entry.spec.deadline_ms
        )
        for effect in done.effects:
            write = write_of(task_id, entry, effect, payload, turn.now_ms)
            if write is None:
                turn.effects.append((task_id, effect))
            else:
                turn.writes.append(write)
                turn.owners.append(task_id)
        if done.state == before:
            return
        turn.before.setdefault(task_id, before)
        ended = next((e.outcome for e in done.effects if isinstance(e, machine.RecordReopen)), None)
        turn.changes.append(Change(task_id, entry, before, done.state, ended))
        entry.state = done.state
        self._follow(task_id, entry, before, turn.now_ms)

    def _follow(self, task_id: str, entry: Entry, before: machine.State, now_ms: int) -> None:
        """Keep the dispatcher, the clock and the claims in step with a task's new state."""
        match before, entry.state:
            case machine.Leased(), machine.Open() | machine.Settled():
                claimer = self.dispatch.claimers.get(before.worker)
                if claimer is not None and claimer.in_flight > 0:
                    claimer.in_flight -= 1
            case machine.Open(), machine.Settled():
                self.dispatch.withdraw(task_id)
        match entry.state:
            case machine.Open():
                entry.progress = -1
                self._want(task_id, entry, now_ms)
            case machine.Leased(until_ms=until_ms):
                self._schedule(until_ms, task_id)

    def _step_settled(
        self, turn: _Turn, task_id: str, state: machine.Settled | None, fact: machine.Fact
    ) -> None:
        """A fact about a task that is over, or that never was ours."""
        if state is None:
            if isinstance(fact, machine.ReceiptCame):
                effect = machine.SendAck(fact.worker, fact.fence, "rejected", "no such task here")
                turn.effects.append((task_id, effect))
            elif isinstance(fact, machine.RenewAsked):
                turn.effects.append((task_id, machine.SendRenewed(fact.worker, fact.fence, 0)))
            return
        done = machine.step(state, fact, retry=_NO_RETRY, deadline_ms=0)
        turn.effects.extend((task_id, effect) for effect in done.effects)
        if isinstance(fact, machine.ReceiptCame):
            verdict = done.effects[0].verdict if done.effects else ""  # type: ignore[union-attr]
            log.info("late receipt answered", task=task_id, fence=fact.fence, verdict=verdict)

    async def _look_up_strangers(self) -> dict[str, machine.Settled | None]:
        """How tasks ended that receipts wait for, and that are not held here any more."""
        strangers: dict[str, None] = {}
        for task_id, fact, _ in self._facts:
            if task_id not in self.tasks and isinstance(fact, machine.ReceiptCame):
                strangers[task_id] = None
                if len(strangers) == LOOKUPS_MAX:
                    break  # full: the others are looked up in the next turns
        found: dict[str, machine.Settled | None] = {}
        for task_id in strangers:
            row = await self._ledger.task(task_id)
            found[task_id] = settled_state(row) if row is not None else None
        return found

    # -- after the commit --------------------------------------------------------------------------

    def _refuse(self, submissions: Iterable[_Submission], error: ZeroStateError) -> None:
        for submission in submissions:
            submission.result = error
            submission.done.set()

    def _undo(
        self,
        turn: _Turn,
        submissions: list[_Submission],
        facts: list[_Fact],
        error: Unavailable,
    ) -> None:
        """The ledger is away: forget this turn, keep its facts, refuse its submissions."""
        self._refuse(submissions, error)
        for submission in submissions:
            task_id = submission.write.row.spec.task_id
            turn.before.pop(task_id, None)
            self._forget(task_id)
        for task_id, before in turn.before.items():
            entry = self.tasks[task_id]
            entry.state = before
            if isinstance(before, machine.Leased):
                self.dispatch.withdraw(task_id)
                self._schedule(before.until_ms, task_id)
            else:
                self._want(task_id, entry, turn.now_ms)
        self._take_back(turn, {task_id for task_id, _ in turn.granted})
        self._recount()
        self._facts.extendleft(reversed(facts))

    def _reconcile(
        self,
        turn: _Turn,
        submissions: list[_Submission],
        facts: list[_Fact],
        results: Sequence[object],
    ) -> None:
        """Answer submissions; where the ledger refused a write, believe the ledger."""
        never_ours = set()
        for index, submission in enumerate(submissions):
            result = results[index]
            task_id = submission.write.row.spec.task_id
            submission.result = result
            submission.done.set()
            if isinstance(result, Refused) or result != task_id:
                # Refused, or this key opened another task before: ours never was.
                self._forget(task_id)
                never_ours.add(task_id)
                continue
            entry = self.tasks[task_id]
            self.submitted += 1
            self._hub.tell("task.open", task_id=task_id, agent_id=entry.spec.agent_id)
            log.info(
                "task accepted",
                task=task_id,
                agent=entry.spec.agent_id,
                trace=entry.spec.trace,
            )
        doubtful = set(never_ours)
        for index in range(len(submissions), len(results)):
            task_id, result = turn.owners[index], results[index]
            if isinstance(result, Refused) and task_id not in doubtful:
                doubtful.add(task_id)
                log.error(
                    "ledger refused a transition, reading the task again",
                    task=task_id,
                    why=str(result),
                )
                before = turn.before.get(task_id, self.tasks[task_id].state)
                about = tuple(fact for fact in facts if fact[0] == task_id)
                self._doubts[task_id] = _Doubt(before, about)
        if doubtful:
            turn.effects = [e for e in turn.effects if e[0] not in doubtful]
            turn.changes = [c for c in turn.changes if c.task_id not in doubtful]
            self._take_back(turn, doubtful)
            self._recount()
            self._wake.set()

    async def _reload(self, task_id: str) -> None:
        """Believe the ledger about a task, then look again at what led to the doubt."""
        row = await self._ledger.task(task_id)
        doubt = self._doubts.pop(task_id)
        entry = self.tasks.get(task_id)
        self._forget(task_id)
        again, first = doubt.facts, list[machine.Fact]()
        if row is None:
            again = ()
        elif (settled := settled_state(row)) is not None:
            if entry is not None:
                self.chronicle.tell(Change(task_id, entry, doubt.before, settled, None))
                self._forget(task_id)
        else:
            state = self._restore(row).state
            if isinstance(state, machine.Leased):
                first.append(self._resumed(row.spec))
                if state.fence == doubt.before.fence + 1:
                    # By a commit that we took for failed: the worker never got this lease.
                    back = machine.HandedBack(state.worker, state.fence, self._now_ms())
                    first.append(back)
            if type(state) is type(doubt.before) and state.fence == doubt.before.fence:
                again = ()  # the ledger has what we have, and refuses: asking again would not end
        self._facts.extendleft(reversed([*((task_id, fact, None) for fact in first), *again]))

    async def _perform(self, turn: _Turn) -> None:
        leases: dict[str, list[LeaseOut]] = {}
        for task_id, effect in turn.effects:
            worker = getattr(effect, "worker", "")
            outlet = self._outlets.get(worker)
            match effect:
                case machine.SendLease(_, attempt, fence, ttl_ms):
                    entry = self.tasks.get(task_id)
                    if entry is None:
                        continue
                    if outlet is None:
                        self.post(task_id, machine.WorkerLost(worker, turn.now_ms))
                        continue
                    try:
                        data = await self._input(entry)
                    except Unavailable as error:
                        log.warning(
                            "input not read, lease taken back", task=task_id, why=str(error)
                        )
                        self._take_back(turn, {task_id})
                        self.post(task_id, machine.HandedBack(worker, fence, turn.now_ms))
                        continue
                    leases.setdefault(worker, []).append(
                        LeaseOut(entry.spec, data, attempt, fence, ttl_ms)
                    )
                case machine.SendRenewed(_, fence, ttl_ms) if outlet is not None:
                    outlet.renewed(task_id, fence, ttl_ms)
                case machine.SendAck(_, fence, verdict, reason) if outlet is not None:
                    outlet.ack(task_id, fence, verdict, reason)
                case machine.SendCancel(_, fence, reason) if outlet is not None:
                    outlet.cancel(task_id, fence, reason)
        for worker, batch in leases.items():
            outlet = self._outlets.get(worker)
            if outlet is not None:
                outlet.lease(batch)
        for _, claimer in turn.granted:
            claimer.unsent -= 1
        for change in turn.changes:
            self.chronicle.tell(change)
            if isinstance(change.after, machine.Settled):
                self._forget(change.task_id)

    def _forget(self, task_id: str) -> None:
        entry = self.tasks.pop(task_id, None)
        if entry is not None:
            self._drop_inline(entry)
        self.dispatch.withdraw(task_id)

    def _drop_inline(self, entry: Entry) -> None:
        self._inline_bytes -= len(entry.input_inline or b"")
        entry.input_inline = None

    async def _input(self, entry: Entry) -> bytes | None:
        if entry.input_inline is not None:
            return entry.input_inline
        return await self._ledger.input_inline(entry.spec.task_id)

    def waiting_for(self, task_id: str) -> str:
        """Why a task is not running, in words; "" when it is or when it is over."""
        entry = self.tasks.get(task_id)
        if entry is None or not isinstance(entry.state, machine.Open):
            return ""
        claimers = self.dispatch.claimers.values()
        if not claimers:
            return "no worker is connected to this node"
        able = [c for c in claimers if c.serves_kind(entry.spec.agent_id, entry.spec.capability)]
        if not able:
            return "no connected worker takes this agent"
        if all(c.worker in entry.state.excluded for c in able):
            return "every connected worker failed it; one of them is tried again shortly"
        if entry.state.not_before_ms > self._now_ms():
            return "a pause before the next try"
        if not any(c.room > 0 for c in able):
            return "every worker that takes it is busy"
        return "about to be leased"


_NO_RETRY = RetryPolicy()
