"""
The worker's end: dial owners, claim, run, sign, deliver.

One `OwnerStream` per owner that is served; all share the node's slots. Runs do not hang on the
stream they came by: a stream that breaks is dialled again, and the receipt waits in the journal
until its owner has answered it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import ConductError, Unavailable, WireError, ZeroStateError
from zerostate_node.machines import claim as machine
from zerostate_node.machines.admission import Policy
from zerostate_node.ports.ledger import Journal, OwedReceipt
from zerostate_node.ports.mesh import Link
from zerostate_node.services.guestlog import GuestLog
from zerostate_node.services.outbox import Outbox, receive, say_bye
from zerostate_node.services.runner import Finished, Runner
from zerostate_node.units import PeerId
from zerostate_node.wire import codec, envelope, ids
from zerostate_node.wire.messages import (
    Ack,
    Bye,
    Cancel,
    Claim,
    Done,
    Hello,
    Lease,
    LeaseBatch,
    Leases,
    Log,
    Outcome,
    Release,
    Renew,
    Renewed,
    WorkMessage,
)

log = structlog.get_logger()

HELLO_S = 10.0
TICK_S = 0.25
PROGRESS_S_MIN = 0.1  # a guest that reports more often is told on with the next renewal
ANSWERS_WAIT_S = 0.05  # owners' answers are gathered for this long before they are journaled
LEASES_PER_OWNER_MAX = 2_048  # held or unanswered; an owner that gives more than we claimed is cut
UNCLAIMED_MAX = 64  # leases that an earlier stream's claim may still bring; more are handed back
UNANSWERED_MAX = 1_024  # receipts that an owner has not answered: it gets no more work done
FETCHES_PER_OWNER_MAX = 16  # at once, before a slot: what cannot be fetched holds up nobody's run
QUEUE_MS_MAX = 20_000  # runs that turn out slow are handed back where more than this waits
GATHER_S = 0.008  # receipts of short runs are gathered for this long, where
GATHER_QUEUED = 4  # so many more wait to run, each for
GATHER_RUN_MS_MAX = 20.0  # no longer than this
CLAIM_PART = 4  # a claim grows by this part of the room for leases, or waits
RUN_MS_SMOOTHING = 0.2  # weight of the newest run in the moving mean


@dataclasses.dataclass(slots=True)
class Held:
    """A lease held here."""

    owner: PeerId
    lease: Lease
    state: machine.State
    scope: trio.CancelScope | None = None  # of the run, while it runs
    stop_reason: str = ""
    finished: Finished | None = None
    kept: bool = False  # the receipt is in the journal
    log_seq: int = 0
    guest_log: GuestLog = dataclasses.field(default_factory=GuestLog)
    progress: int = -1
    progress_told_s: float = 0.0

    @property
    def key(self) -> _Key:
        """Owner, task and fence: what this lease is known by; owners may name tasks alike."""
        return self.owner, self.lease.spec.task_id, self.lease.fence


_Key = tuple[PeerId, str, int]


class OwnerStream:
    """The live stream to one owner."""

    def __init__(self, owner: PeerId) -> None:
        self.owner = owner
        self.outbox = Outbox()
        self.received = 0
        self.claimed = -1  # what the last claim said; -1 before the first
        self.received_at_claim = 0
        self.may_receive = UNCLAIMED_MAX  # leases in all on this stream; claims raise it
        self.fetching = 0
        self.fetches = trio.CapacityLimiter(FETCHES_PER_OWNER_MAX)
        self.leased_s = trio.current_time()  # when it last gave us work
        self.delivered: set[tuple[str, int]] = set()  # receipts sent here that wait for an ack

    def deliver(self, task_id: str, fence: int, receipt: bytes, output: bytes | None) -> None:
        """Queue a journaled receipt."""
        self.delivered.add((task_id, fence))
        self.outbox.put(Done(receipt=receipt, output=output))

    def worth_telling(self, credits: int, room: int) -> bool:
        """
        Whether a new claim changes enough. A frame for each finished run would make the owner
        commit each lease alone; a quarter of the room at a time keeps the rest queued here.
        """
        if self.claimed < 0:
            return True
        left = max(0, self.claimed - (self.received - self.received_at_claim))
        if credits > left:
            return CLAIM_PART * (credits - left) >= room
        return credits < left and 2 * credits <= left


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """Who this worker is on the wire."""

    peer: PeerId
    key: Ed25519PrivateKey
    network: str
    program: str
    region: str
    serves: tuple[str, ...]


class Worker:
    """Holds leases and runs them in the node's slots."""

    def __init__(
        self,
        *,
        me: WorkerIdentity,
        slots: int,
        runner: Runner,
        journal: Journal,
        policy: Callable[[], Policy],
        behaved: Callable[[str, str], None],
    ) -> None:
        self.me = me
        self.slots = slots
        self._runner = runner
        self._journal = journal
        self._policy = policy
        self._behaved = behaved
        self.held: dict[_Key, Held] = {}
        self.streams: dict[PeerId, OwnerStream] = {}
        self._queue: deque[_Key] = deque()
        self._nursery: trio.Nursery | None = None
        self._work = trio.Event()
        self._finished: deque[Held] = deque()
        self._journal_news = trio.Event()
        self._answers: list[tuple[str, int, str, bytes]] = []
        self._answer_news = trio.Event()
        self._closed = trio.Event()
        self.running = 0
        self.run_ms_mean = 20.0  # a guess that the first runs correct
        self.draining = False
        self.runs = 0

    # -- the service -------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Slots, journal and clock of this worker; streams are served by `serve_owner`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(self.slots):
                nursery.start_soon(self._slot)
            nursery.start_soon(self._keep_receipts)
            nursery.start_soon(self._forget_receipts)
            nursery.start_soon(self._tick)
            task_status.started()

    async def serve_owner(self, link: Link) -> str:
        """
        Work for one owner over one stream until it ends.

        Returns:
            Why it ended: the code of the owner's bye, or of the error.
        """
        owner = link.peer
        try:
            await self._greet(link)
        except (WireError, ConductError) as error:
            await link.aclose()
            return error.code
        except (Unavailable, trio.TooSlowError) as error:
            await link.aclose()
            return getattr(error, "code", "timeout")
        except _Goodbye as bye:
            log.warning("owner says no", owner=owner, code=bye.code, reason=bye.reason)
            await link.aclose()
            return bye.code

        stream = OwnerStream(owner)
        old = self.streams.get(owner)
        self.streams[owner] = stream
        if old is not None:
            old.outbox.end()
        log.info("serving owner", owner=owner, via_relay=link.limited)
        code = "closed"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, stream, link, nursery.cancel_scope)
                code = await self._serve(stream, link)
                nursery.cancel_scope.cancel()
        finally:
            if self.streams.get(owner) is stream:
                del self.streams[owner]
                self._leave_to_journal(owner)
            self._claim_all()
            log.info("owner stream ended", owner=owner, code=code)
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await link.aclose()
        return code

    async def drain(self, seconds: float) -> None:
        """Stop claiming, hand back what has not started, let runs end and receipts be answered."""
        self.draining = True
        for held in list(self.held.values()):
            self._step(held, machine.Draining())
        self._claim_all()
        with trio.move_on_after(seconds):
            while self.held:
                await self._closed.wait()
            with contextlib.suppress(Unavailable):
                await self._journal_answers()
        for stream in list(self.streams.values()):
            stream.outbox.put(Bye(code="draining", reason="this worker is shutting down"))
        await trio.sleep(0.05)

    # -- streams -----------------------------------------------------------------------------------

    async def _greet(self, link: Link) -> None:
        hello = Hello(
            network=self.me.network,
            program=self.me.program,
            region=self.me.region,
            slots=self.slots,
        )
        with trio.fail_after(HELLO_S):
            await link.send(codec.encode((hello,)))
            answer = (await receive(link))[0]
        if isinstance(answer, Bye):
            raise _Goodbye(answer.code, answer.reason)
        if not isinstance(answer, Hello) or answer.network != self.me.network:
            raise ConductError("the owner did not answer hello", code="no_hello")

    async def _pump(self, stream: OwnerStream, link: Link, scope: trio.CancelScope) -> None:
        try:
            await stream.outbox.pump(link)
        except Unavailable:
            scope.cancel()

    async def _serve(self, stream: OwnerStream, link: Link) -> str:
        self._renew_held(stream)
        try:
            await self._resend(stream)
        except Unavailable as error:
            log.error("journal does not say what is owed", owner=stream.owner, why=str(error))
            return error.code
        self._claim_all()
        return await self._read(stream, link)

    def _renew_held(self, stream: OwnerStream) -> None:
        """Say at once that we are back: the owner gives a lost stream less time than a lease."""
        for held in self.held.values():
            if held.owner == stream.owner and not isinstance(held.state, machine.Owing):
                _, task_id, fence = held.key
                stream.outbox.put(Renew(task_id=task_id, fence=fence, progress=held.progress))

    async def _resend(self, stream: OwnerStream) -> None:
        """What the journal still owes this owner."""
        for owed in await self._journal.owed(stream.owner):
            stream.deliver(owed.task_id, owed.fence, owed.envelope, owed.output_inline)

    async def _read(self, stream: OwnerStream, link: Link) -> str:
        while True:
            try:
                for message in await receive(link):
                    if isinstance(message, Bye):
                        log.info("owner says bye", owner=stream.owner, code=message.code)
                        return message.code
                    self._hear(stream, message)
            except Unavailable as error:
                return error.code
            except (WireError, ConductError) as error:
                weight = "bad_signature" if error.code == "bad_signature" else "malformed"
                self._behaved(stream.owner, weight)
                log.warning("owner broke the protocol", owner=stream.owner, why=str(error))
                await say_bye(link, error.code, str(error))
                return error.code

    def _hear(self, stream: OwnerStream, message: WorkMessage) -> None:
        now_ms = _mono_ms()
        match message:
            case Leases(envelope=data):
                self._take(stream, data)
            case Renewed(task_id=task_id, fence=fence, ttl_ms=ttl_ms):
                self._fact(stream, task_id, fence, machine.RenewedBy(ttl_ms, now_ms))
            case Cancel(task_id=task_id, fence=fence, reason=reason):
                self._fact(stream, task_id, fence, machine.CancelCame(reason))
            case Ack(task_id=task_id, fence=fence, verdict=verdict, voucher=voucher):
                if (task_id, fence) not in stream.delivered:
                    return  # of a receipt that is not owed to this owner, or answered already
                stream.delivered.discard((task_id, fence))
                if verdict != "settled":
                    log.warning(
                        "receipt not taken",
                        task=task_id,
                        fence=fence,
                        verdict=verdict,
                        reason=message.reason,
                    )
                self._answers.append((task_id, fence, verdict, voucher))
                self._answer_news.set()
                self._fact(stream, task_id, fence, machine.AckCame(verdict))
                if len(stream.delivered) == UNANSWERED_MAX // 2:
                    self._claim_all()  # it had been kept from more work
            case _:
                raise ConductError(
                    f"an owner does not send {type(message).__name__}", code="not_allowed"
                )

    def _take(self, stream: OwnerStream, data: bytes) -> None:
        opened = envelope.unseal(
            data,
            LeaseBatch,
            type="lease/1",
            network=self.me.network,
            now_ms=None,  # over this stream it is fresh; the lease itself says for how long
            bytes_max=ids.WORK_FRAME_BYTES_MAX,
        )
        if opened.sender != stream.owner:
            raise ConductError("leases signed by another peer", code="not_allowed")
        now_ms = _mono_ms()
        stream.leased_s = trio.current_time()
        theirs = len(stream.delivered) + sum(
            held.owner == stream.owner and not held.kept for held in self.held.values()
        )
        for lease in opened.value.leases:
            stream.received += 1
            held = Held(stream.owner, lease, machine.taken(lease.ttl_ms, now_ms))
            if held.key in self.held:
                continue
            theirs += 1
            unclaimed = stream.received - stream.may_receive
            if max(theirs, unclaimed) > LEASES_PER_OWNER_MAX:
                raise ConductError("far more leases than were claimed", code="not_allowed")
            self.held[held.key] = held
            if self.draining or unclaimed > 0:
                self._step(held, machine.Draining())
            elif self._nursery is None or self._runner.at_hand(lease):
                self._queue.append(held.key)
            else:
                stream.fetching += 1
                self._nursery.start_soon(self._fetch, stream, held)
            log.debug(
                "lease taken", task=lease.spec.task_id, fence=lease.fence, trace=lease.spec.trace
            )
        self._wake_slots()
        self._claim_all()

    def _wake_slots(self) -> None:
        self._work.set()
        self._work = trio.Event()

    async def _fetch(self, stream: OwnerStream, held: Held) -> None:
        """Bring what a run needs before it takes a slot."""
        failed: Finished | None = None
        try:
            async with stream.fetches:
                if isinstance(held.state, machine.Queued):
                    failed = await self._runner.fetch(held.lease, held.owner, self._policy())
        except (ZeroStateError, OSError) as error:
            log.error("nothing can be fetched", task=held.lease.spec.task_id, why=str(error))
            failed = self._runner.without_run(
                held.lease, Outcome.REFUSED, f"this worker failed: {error}", owner=held.owner
            )
        finally:
            stream.fetching -= 1
        # Meanwhile it may have been cancelled, and its receipt signed: that one stands.
        if self.held.get(held.key) is held and isinstance(held.state, machine.Queued):
            held.finished = failed
            self._queue.append(held.key)
            self._wake_slots()

    def _claim_all(self) -> None:
        """Tell every owner how much more we take, where that changed enough to matter."""
        held = len(self._queue) + self.running
        wanted = machine.credits_wanted(
            slots=self.slots,
            held=held,
            run_ms_mean=self.run_ms_mean,
            draining=self.draining,
        )
        owners = max(1, len(self.streams))
        fair, room = -(-wanted // owners), (held + wanted) // owners
        for stream in self.streams.values():
            # What one owner's leases wait for is no reason to take less from others.
            share = max(0, fair - stream.fetching)
            if len(stream.delivered) >= UNANSWERED_MAX:
                share = 0
            if not stream.worth_telling(share, room):
                continue
            stream.claimed = share
            stream.received_at_claim = stream.received
            stream.may_receive = max(stream.may_receive, stream.received + share + UNCLAIMED_MAX)
            stream.outbox.put(
                Claim(
                    credits=share,
                    serves=self.me.serves if share else (),
                    load=min(100, 100 * self.running // max(1, self.slots)),
                    seen=stream.received,
                )
            )

    # -- leases ------------------------------------------------------------------------------------

    def _fact(self, stream: OwnerStream, task_id: str, fence: int, fact: machine.Fact) -> None:
        held = self.held.get((stream.owner, task_id, fence))
        if held is not None:
            self._step(held, fact)

    def _step(self, held: Held, fact: machine.Fact) -> None:
        done = machine.step(held.state, fact)
        held.state = done.state
        for effect in done.effects:
            self._perform(held, effect)
        if isinstance(held.state, machine.Closed):
            self._let_go(held)

    def _let_go(self, held: Held) -> None:
        self.held.pop(held.key, None)
        self._closed.set()
        self._closed = trio.Event()

    def _leave_to_journal(self, owner: PeerId) -> None:
        """An owner that is gone may stay away: what it is owed is read again when it is back."""
        for held in list(self.held.values()):
            if held.owner == owner and held.kept:
                self._let_go(held)

    def _perform(self, held: Held, effect: machine.Effect) -> None:
        owner, task_id, fence = held.key
        stream = self.streams.get(owner)
        match effect:
            case machine.StopRun(reason):
                held.stop_reason = reason
                if held.scope is not None:
                    held.scope.cancel()
            case machine.SignReceipt(outcome, detail):
                if held.finished is None:
                    held.finished = self._runner.without_run(
                        held.lease, outcome, detail, owner=held.owner
                    )
                self._finished.append(held)
                self._journal_news.set()
            case machine.SendRenew() if stream is not None:
                stream.outbox.put(Renew(task_id=task_id, fence=fence, progress=held.progress))
            case machine.HandBack() if stream is not None:
                stream.outbox.put(Release(task_id=task_id, fence=fence))
            case machine.SendDone() if stream is not None and held.finished is not None:
                done = held.finished
                stream.deliver(task_id, fence, done.envelope, done.output_inline)

    async def _slot(self) -> None:
        while True:
            while not self._queue:
                await self._work.wait()
            held = self.held.get(self._queue.popleft())
            if held is None:
                continue
            self._step(held, machine.SlotFree(_mono_ms()))
            if isinstance(held.state, machine.Running):
                await self._run_held(held)

    async def _run_held(self, held: Held) -> None:
        if held.finished is not None:  # it could not be fetched, or is not for us
            return self._step(held, machine.RunEnded(held.finished.outcome))
        self.running += 1
        started = trio.current_time()
        try:
            with trio.CancelScope() as held.scope:
                held.finished = await self._runner.run(
                    held.lease, held.owner, self._policy(), lambda text: self._log(held, text)
                )
        except (ZeroStateError, OSError) as error:
            # A disk that is full, a blob that cannot be kept: this run's trouble, not the node's.
            log.error("run failed here", task=held.lease.spec.task_id, why=str(error))
            held.finished = self._runner.without_run(
                held.lease, Outcome.REFUSED, f"this worker failed: {error}", owner=held.owner
            )
        finally:
            self.running -= 1
        self._say(held, held.guest_log.end())
        if held.finished is None:
            held.finished = self._runner.without_run(
                held.lease, Outcome.CANCELLED, held.stop_reason, owner=held.owner
            )
        self.runs += 1
        took_ms = 1000 * (trio.current_time() - started)
        self.run_ms_mean += RUN_MS_SMOOTHING * (took_ms - self.run_ms_mean)
        self._step(held, machine.RunEnded(held.finished.outcome))
        self._hand_back()
        self._claim_all()

    def _hand_back(self) -> None:
        """What was claimed when runs were short and would now wait too long is for others."""
        most = max(self.slots, int(self.slots * QUEUE_MS_MAX / max(self.run_ms_mean, 1)))
        while len(self._queue) > most:
            held = self.held.get(self._queue.pop())
            if held is not None:
                self._step(held, machine.Draining())

    def _log(self, held: Held, text: str) -> None:
        shown, progress = held.guest_log.feed(text)
        if progress is not None and progress != held.progress:
            held.progress = progress
            if trio.current_time() - held.progress_told_s >= PROGRESS_S_MIN:
                held.progress_told_s = trio.current_time()
                self._perform(held, machine.SendRenew())
        self._say(held, shown)

    def _say(self, held: Held, text: str) -> None:
        stream = self.streams.get(held.owner)
        if stream is not None:
            _, task_id, fence = held.key
            for start in range(0, len(text), 8192):
                part = text[start : start + 8192]
                stream.outbox.put(Log(task_id=task_id, fence=fence, seq=held.log_seq, text=part))
                held.log_seq += 1

    async def _keep_receipts(self) -> None:
        """Journal finished receipts, many at a time, and send them once they are durable."""
        while True:
            while not self._finished:
                self._journal_news = trio.Event()
                await self._journal_news.wait()
            if len(self._queue) >= GATHER_QUEUED and self.run_ms_mean <= GATHER_RUN_MS_MAX:
                # Others finish within this pause: one commit and one frame for all of them.
                await trio.sleep(GATHER_S)
            batch = [self._finished.popleft() for _ in range(len(self._finished))]
            try:
                await self._journal.owe([_owed(held) for held in batch])
            except Unavailable as error:
                log.error("journal does not take receipts", why=str(error))
                self._finished.extendleft(reversed(batch))
                await trio.sleep(0.5)
                continue
            for held in batch:
                held.kept = True
                self._step(held, machine.ReceiptKept())
                if held.owner not in self.streams:
                    self._let_go(held)
            if any(len(s.delivered) >= UNANSWERED_MAX for s in self.streams.values()):
                self._claim_all()

    async def _forget_receipts(self) -> None:
        """
        Journal owners' answers, in lots: one that a crash loses is only asked for again.

        Waiting a little makes one commit of what would be many, each competing for the disk with
        the receipts that are still to be sent.
        """
        while True:
            await self._answer_news.wait()
            await trio.sleep(ANSWERS_WAIT_S)
            try:
                await self._journal_answers()
            except Unavailable as error:
                log.error("journal does not take answers", why=str(error))
                await trio.sleep(0.5)

    async def _journal_answers(self) -> None:
        answers, self._answers = self._answers, []
        self._answer_news = trio.Event()
        try:
            await self._journal.paid(answers)
        except BaseException:
            self._answers[:0] = answers
            self._answer_news.set()
            raise

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            now_ms = _mono_ms()
            for held in list(self.held.values()):
                self._step(held, machine.TimePassed(now_ms))


class _Goodbye(Exception):
    """The owner answered hello with bye."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason


def _owed(held: Held) -> OwedReceipt:
    done = held.finished
    assert done is not None
    return OwedReceipt(
        task_id=held.lease.spec.task_id,
        fence=held.lease.fence,
        owner=held.owner,
        envelope=done.envelope,
        output_inline=done.output_inline,
        finished_ms=done.finished_ms,
    )


def _mono_ms() -> int:
    return int(trio.current_time() * 1000)
