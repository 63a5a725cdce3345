"""
The owner's end of work streams: workers dial in, claim, and are leased work.

A frame is checked (shape, limits), a receipt's signature and contents too, before anything of it
becomes a fact for the driver. What a worker has no right to say costs it conduct and its stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import ConductError, NotFound, Refused, Unavailable, WireError
from zerostate_node.machines import task as machine
from zerostate_node.machines.admission import price_of
from zerostate_node.machines.dispatch import Claimer, first_window
from zerostate_node.ports.mesh import Link
from zerostate_node.services.driver import Driver
from zerostate_node.services.hub import Hub
from zerostate_node.services.outbox import Outbox, receive, say_bye
from zerostate_node.services.owned import Entry, LeaseOut, ReceiptPayload
from zerostate_node.units import DAY_MS, KIB, PeerId
from zerostate_node.wire import codec, envelope, ids
from zerostate_node.wire.messages import (
    Ack,
    BlobRef,
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
    Receipt,
    Release,
    Renew,
    Renewed,
    WorkMessage,
)

log = structlog.get_logger()

HELLO_S = 10.0
LEASES_PER_BATCH = 64  # under one signature; protocols/work/1
BATCH_BYTES_SOFT_MAX = 128 * KIB  # inline inputs of one batch
LOG_BYTES_PER_TASK_MAX = 256 * KIB  # what a guest's log may cost this node; the rest is dropped
WORKERS_MAX = 512
CHATTER_PER_S = 500.0  # messages that no receipt of a lease held pays for; then we read slowly
CHATTER_BURST = 4_096.0
RECEIPT_PAYS = 4  # messages: a claim, a renewal or two, and some
FACTS_WAITING_MAX = 20_000  # beyond it nobody is read until the driver has caught up
FETCH_S_MAX = 120.0  # for an output that does not fit its message; as long as a worker's own fetch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnerIdentity:
    """Who this owner is on the wire."""

    peer: PeerId
    key: Ed25519PrivateKey
    network: str
    program: str
    region: str
    new_id: Callable[[], str]


# Brings an output that is too large for the message: from this worker, into the blob store.
FetchOutput = Callable[[PeerId, BlobRef], Awaitable[None]]


class WorkerStream:
    """One worker's stream, as the driver's outlet."""

    def __init__(self, owner: Owner, peer: PeerId, hello: Hello) -> None:
        self._owner = owner
        self.peer = peer
        self.hello = hello
        self.outbox = Outbox()
        self.fetching: set[tuple[str, int]] = set()
        self._quiet_s = 0.0  # when the chatter so far would be within its rate
        self.sent = 0
        self.claimer = Claimer(peer, max(1, hello.slots), hello.region)

    async def pace(self, cost: int) -> None:
        """A peer that says more than it needs to is read more slowly: its own sends then wait."""
        now_s = trio.current_time()
        self._quiet_s = max(now_s, self._quiet_s + cost / CHATTER_PER_S)
        over_s = self._quiet_s - now_s - CHATTER_BURST / CHATTER_PER_S
        if over_s > 0:
            await trio.sleep(over_s)

    def lease(self, leases: Sequence[LeaseOut]) -> None:
        """Sign and queue leases, in batches under one signature each."""
        batch: list[Lease] = []
        size = 0
        for out in leases:
            batch.append(
                Lease(
                    attempt=out.attempt,
                    fence=out.fence,
                    ttl_ms=out.ttl_ms,
                    spec=out.spec,
                    input=out.input_inline,
                )
            )
            size += len(out.input_inline or b"") + 4 * sum(map(len, out.spec.args))
            if len(batch) == LEASES_PER_BATCH or size >= BATCH_BYTES_SOFT_MAX:
                self._seal(batch)
                batch, size = [], 0
        if batch:
            self._seal(batch)
        self.sent += len(leases)

    def _seal(self, batch: list[Lease]) -> None:
        me = self._owner.me
        data = envelope.seal(
            LeaseBatch(leases=tuple(batch)),
            type="lease/1",
            network=me.network,
            key=me.key,
            sender=me.peer,
            id=me.new_id(),
            now_ms=self._owner.now_ms(),
            ttl_ms=DAY_MS,
        )
        self.outbox.put(Leases(envelope=data))

    def renewed(self, task_id: str, fence: int, ttl_ms: int) -> None:
        """Queue the answer to a renewal."""
        self.outbox.put(Renewed(task_id=task_id, fence=fence, ttl_ms=ttl_ms))

    def ack(self, task_id: str, fence: int, verdict: str, reason: str) -> None:
        """Queue the answer to a receipt."""
        self.outbox.put(Ack(task_id=task_id, fence=fence, verdict=verdict, reason=reason[:512]))

    def cancel(self, task_id: str, fence: int, reason: str) -> None:
        """Queue a stop."""
        self.outbox.put(Cancel(task_id=task_id, fence=fence, reason=reason[:512]))


class Owner:
    """Serves the work protocol to workers."""

    def __init__(
        self,
        *,
        me: OwnerIdentity,
        driver: Driver,
        hub: Hub,
        fetch_output: FetchOutput,
        now_ms: Callable[[], int],
        lease_ttl_ms: int,
        score_of: Callable[[str], int],
        behaved: Callable[[str, str], None],
    ) -> None:
        self.me = me
        self.now_ms = now_ms
        self._driver = driver
        self._hub = hub
        self._fetch_output = fetch_output
        self._lease_ttl_ms = lease_ttl_ms
        self._score_of = score_of
        self._behaved = behaved
        self.streams: dict[str, WorkerStream] = {}
        self.draining = False

    async def serve(self, link: Link) -> None:
        """Handle one work stream from its first frame to its end. Never raises."""
        try:
            hello = await self._greet(link)
        except (WireError, ConductError) as error:
            self._behaved(link.peer, "malformed")
            log.warning("work stream refused", peer=link.peer, why=str(error))
            return await say_bye(link, error.code, str(error))
        except (Unavailable, trio.TooSlowError):
            return await link.aclose()
        if hello is None:
            return None

        stream = WorkerStream(self, link.peer, hello)
        old = self.streams.get(link.peer)
        self.streams[link.peer] = stream
        if old is not None:
            old.outbox.end()
        if link.peer != self.me.peer:
            stream.claimer.window = first_window(self._score_of(link.peer), hello.slots)
        self._driver.welcome(stream.claimer, stream)
        log.info("worker connected", worker=link.peer, slots=hello.slots, region=hello.region)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, stream, link, nursery.cancel_scope)
                await self._read(stream, link, nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._driver.worker_lost(link.peer, stream)
            if self.streams.get(link.peer) is stream:
                del self.streams[link.peer]
            log.info("worker gone", worker=link.peer)
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await link.aclose()
        return None

    async def _greet(self, link: Link) -> Hello | None:
        with trio.fail_after(HELLO_S):
            messages = await receive(link)
        hello = messages[0]
        if not isinstance(hello, Hello):
            raise ConductError("the first message must be hello", code="no_hello")
        if hello.network != self.me.network:
            await say_bye(
                link,
                "wrong_network",
                f"this node is on network {self.me.network!r}, you are on {hello.network!r}",
                retry_after_ms=DAY_MS,
            )
            return None
        if self.draining:
            await say_bye(link, "draining", "this node is shutting down", retry_after_ms=5_000)
            return None
        if len(self.streams) >= WORKERS_MAX and link.peer not in self.streams:
            await say_bye(link, "too_many", "this owner has all the workers it can serve")
            return None
        answer = Hello(network=self.me.network, program=self.me.program, region=self.me.region)
        with trio.fail_after(HELLO_S):
            await link.send(codec.encode((answer,)))
        return hello

    async def _pump(self, stream: WorkerStream, link: Link, scope: trio.CancelScope) -> None:
        try:
            await stream.outbox.pump(link)
        except Unavailable as error:
            log.info("work stream ended", worker=stream.peer, why=error.code)
            scope.cancel()

    async def _read(self, stream: WorkerStream, link: Link, nursery: trio.Nursery) -> None:
        while True:
            try:
                cost = 0
                for message in await receive(link):
                    cost += self._hear(stream, message, nursery)
                await stream.pace(cost)
                while self._driver.waiting > FACTS_WAITING_MAX:  # noqa: ASYNC110  (rare)
                    await trio.sleep(0.05)
            except Unavailable:
                return
            except (WireError, ConductError) as error:
                weight = "bad_signature" if error.code == "bad_signature" else "malformed"
                self._behaved(stream.peer, weight)
                log.warning("worker broke the protocol", worker=stream.peer, why=str(error))
                return await say_bye(link, error.code, str(error))

    def _hear(self, stream: WorkerStream, message: WorkMessage, nursery: trio.Nursery) -> int:
        """Take one message; what it counts as chatter."""
        worker, now_ms = stream.peer, self.now_ms()
        match message:
            case Claim(credits=credits, serves=serves, seen=seen):
                claimer = stream.claimer
                claimer.serves = frozenset(serves)
                on_their_way = max(0, stream.sent - seen) + claimer.unsent
                claimer.credits = max(0, credits - on_their_way)
                claimer.score = self._score_of(worker)
                self._driver.claims_changed()
            case Renew(task_id=task_id, fence=fence, progress=progress):
                entry = self._driver.tasks.get(task_id)
                if (
                    entry is not None
                    and _holds(entry, worker, fence)
                    and progress not in (-1, entry.progress)
                ):
                    entry.progress = progress
                    self._hub.tell("task.progress", task_id=task_id, progress=progress)
                self._driver.post(
                    task_id, machine.RenewAsked(worker, fence, self._lease_ttl_ms, now_ms)
                )
            case Log(task_id=task_id, fence=fence, text=text):
                return self._log_line(worker, task_id, fence, text)
            case Done():
                return self._done(stream, message, nursery)
            case Release(task_id=task_id, fence=fence):
                self._driver.post(task_id, machine.HandedBack(worker, fence, now_ms))
            case Bye(code=code, reason=reason):
                log.info("worker says bye", worker=worker, code=code, reason=reason)
                stream.claimer.credits = 0
            case _:
                raise ConductError(
                    f"a worker does not send {type(message).__name__}", code="not_allowed"
                )
        return 1

    def _log_line(self, worker: str, task_id: str, fence: int, text: str) -> int:
        entry = self._driver.tasks.get(task_id)
        if entry is None or not _holds(entry, worker, fence):
            return 1
        if entry.log_bytes >= LOG_BYTES_PER_TASK_MAX:
            return 1
        entry.log_bytes += max(64, len(text))  # an event costs, also an empty one
        self._hub.tell("task.log", task_id=task_id, text=text)
        return 0

    def _done(self, stream: WorkerStream, message: Done, nursery: trio.Nursery) -> int:
        opened = envelope.unseal(
            message.receipt, Receipt, type="receipt/1", network=self.me.network, now_ms=None
        )
        receipt: Receipt = opened.value
        if opened.sender != stream.peer:
            raise ConductError("the receipt is signed by another peer", code="not_allowed")
        entry = self._driver.tasks.get(receipt.task_id)
        fact = machine.ReceiptCame(
            stream.peer, receipt.fence, receipt.outcome, receipt.detail, self.now_ms()
        )
        if entry is None or not _holds(entry, stream.peer, receipt.fence):
            self._driver.post(receipt.task_id, fact)
            return 1
        lie = _contradiction(receipt, entry, self.me.peer, message.output)
        if lie:
            self._behaved(stream.peer, "lied")
            log.warning("receipt rejected", task=receipt.task_id, worker=stream.peer, why=lie)
            stream.ack(receipt.task_id, receipt.fence, "rejected", lie)
            failed = machine.ReceiptCame(
                stream.peer, receipt.fence, Outcome.LOST, f"bad receipt: {lie}", self.now_ms()
            )
            self._driver.post(receipt.task_id, failed)
            return 1
        payload = ReceiptPayload(
            envelope=message.receipt,
            output=receipt.output,
            output_inline=message.output,
            fuel_used=receipt.fuel_used,
            price_ucr=receipt.price_ucr,
        )
        key = (receipt.task_id, receipt.fence)
        if key in stream.fetching:
            return 1
        if message.output is None and receipt.output.size_bytes > 0:
            stream.fetching.add(key)
            nursery.start_soon(self._fetch_then_post, nursery, receipt, fact, payload, stream)
        else:
            self._driver.post(receipt.task_id, fact, payload)
        return -RECEIPT_PAYS

    async def _fetch_then_post(
        self,
        nursery: trio.Nursery,
        receipt: Receipt,
        fact: machine.ReceiptCame,
        payload: ReceiptPayload,
        stream: WorkerStream,
    ) -> None:
        """An output that is not in the message is brought here before the task settles."""
        worker = stream.peer
        holding = trio.CancelScope()
        nursery.start_soon(self._hold_lease, holding, receipt, worker)
        try:
            with trio.fail_after(FETCH_S_MAX):
                await self._fetch_output(worker, receipt.output)
        except (
            Unavailable, NotFound, Refused, ConductError, WireError, trio.TooSlowError
        ) as error:  # fmt: skip
            log.warning("output not fetched", task=receipt.task_id, why=str(error))
            if getattr(error, "code", "") in ("wrong_digest", "wrong_size"):
                self._behaved(worker, "lied")  # it signed for these bytes, and gave us others
            fact = dataclasses.replace(
                fact, outcome=Outcome.LOST, detail=f"its output could not be fetched: {error}"
            )
            self._driver.post(receipt.task_id, fact)
            return
        finally:
            holding.cancel()
            stream.fetching.discard((receipt.task_id, receipt.fence))
        self._driver.post(receipt.task_id, fact, payload)

    async def _hold_lease(self, scope: trio.CancelScope, receipt: Receipt, worker: PeerId) -> None:
        """The worker is done and renews no more: its lease must not lapse while we fetch."""
        with scope:
            while True:
                asked = machine.RenewAsked(worker, receipt.fence, self._lease_ttl_ms, self.now_ms())
                self._driver.post(receipt.task_id, asked)
                await trio.sleep(self._lease_ttl_ms / 3000)


def _holds(entry: Entry, worker: str, fence: int) -> bool:
    state = entry.state
    return isinstance(state, machine.Leased) and (state.worker, state.fence) == (worker, fence)


def _contradiction(receipt: Receipt, entry: Entry, owner: str, output: bytes | None) -> str:
    """What in a receipt does not fit the task it is for; "" when all of it does."""
    spec = entry.spec
    for name in (
        "agent_id", "agent_version", "module", "script", "args", "input", "limits"
    ):  # fmt: skip
        if getattr(receipt, name) != getattr(spec, name):
            return f"{name} is not the task's"
    if isinstance(entry.state, machine.Leased) and receipt.attempt != entry.state.attempt:
        return "attempt is not the lease's"
    if receipt.owner != owner:
        return "it is made out to another owner"
    if receipt.fuel_used > spec.limits.fuel_max:
        return "more fuel than the task allows"
    if receipt.output.size_bytes > spec.limits.stdout_bytes_max:
        return "more output than the task allows"
    if output is None and receipt.output.size_bytes == 0:
        output = b""
    if output is not None and ids.digest_of(output) != receipt.output.digest:
        return "the output does not have the digest that was signed"
    if output is not None and len(output) != receipt.output.size_bytes:
        return "the output does not have the length that was signed"
    owed = price_of(
        per_call_ucr=spec.price.per_call_ucr,
        per_mfuel_ucr=spec.price.per_mfuel_ucr,
        fuel_used=receipt.fuel_used,
        budget_ucr=spec.budget_ucr,
        completed=receipt.outcome is Outcome.COMPLETED,
    )
    if receipt.price_ucr != owed:
        return f"the price is {owed}, not {receipt.price_ucr}"
    return ""
