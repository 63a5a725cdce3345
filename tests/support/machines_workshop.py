"""An owner and workers, each of real parts, with links in memory between them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing
from fake_sandbox import FakeSandbox, OnLog
from ledger_samples import ref, row
from machines_owning import T0, TTL, WAIT_S, Clock, House, house
from wire_samples import key_of, peer_of

from zerostate_node.blobs.folder import FolderBlobs
from zerostate_node.errors import NotFound, Unavailable
from zerostate_node.ledger.journal import SqliteJournal
from zerostate_node.machines.admission import Policy
from zerostate_node.ports.mesh import Link
from zerostate_node.services.courier import Courier
from zerostate_node.services.loopback import loop
from zerostate_node.services.owner import Owner, OwnerIdentity
from zerostate_node.services.runner import Runner, Signer
from zerostate_node.services.worker import Worker, WorkerIdentity
from zerostate_node.units import MIB, PeerId
from zerostate_node.wire import codec, envelope, ids
from zerostate_node.wire.messages import (
    BlobRef,
    Bye,
    Claim,
    Done,
    Hello,
    LeaseBatch,
    Leases,
    Limits,
    Outcome,
    Receipt,
    WorkFrame,
    WorkMessage,
)

NETWORK = "test"
MODULE = b"a module that shouts"
LIMITS = Limits()
OWNER = peer_of("owner")


def new_id() -> str:
    return ids.ulid(T0, os.urandom(10))


async def shout(stdin: bytes, on_log: OnLog) -> bytes:
    on_log("shouting\n")
    await trio.lowlevel.checkpoint()
    return stdin.upper()


class Owning:
    """The owner's side."""

    def __init__(self, here: House) -> None:
        self.here = here
        self.conduct: list[tuple[str, str]] = []
        self.outputs: dict[str, FolderBlobs] = {}  # by worker
        self.fetched: list[str] = []
        self.owner = Owner(
            me=OwnerIdentity(
                peer=OWNER,
                key=key_of("owner"),
                network=NETWORK,
                program="test/0",
                region="eu",
                new_id=new_id,
            ),
            driver=here.driver,
            hub=here.hub,
            fetch_output=self._fetch,
            now_ms=here.clock,
            lease_ttl_ms=TTL,
            score_of=lambda peer: 0,
            behaved=lambda peer, what: self.conduct.append((peer, what)),
        )

    async def _fetch(self, peer: PeerId, ref: BlobRef) -> None:
        if peer not in self.outputs:
            raise NotFound("no such blob", code="not_found")
        await self.outputs[peer].get(ref.digest, bytes_max=ref.size_bytes)
        self.fetched.append(ref.digest)

    async def submit(self, text: bytes = b"hello", **changes: Any) -> str:
        fields: dict[str, Any] = {
            "module": ref(MODULE),
            "input": ref(text),
            "deadline_ms": T0 + 600_000,
        }
        opened = row(0, **(fields | changes))
        write = dataclasses.replace(self.here.opening(), row=opened, input_inline=text)
        return await self.here.driver.submit(write)


@dataclasses.dataclass
class Working:
    """A worker's side."""

    name: str
    peer: PeerId
    worker: Worker
    sandbox: FakeSandbox
    blobs: FolderBlobs
    journal: SqliteJournal
    conduct: list[tuple[str, str]]


@asynccontextmanager
async def owning(folder: Path, clock: Clock | None = None) -> AsyncIterator[Owning]:
    async with house(folder / "ledger.sqlite", clock) as here:
        yield Owning(here)


@asynccontextmanager
async def working(
    folder: Path, name: str = "bob", *, slots: int = 2, network: str = NETWORK
) -> AsyncIterator[Working]:
    """A worker with a disk of its own; the same folder and name is the same worker again."""
    async with AsyncExitStack() as stack:
        blobs = await stack.enter_async_context(FolderBlobs(folder / name, bytes_max=64 * MIB))
        journal = await stack.enter_async_context(SqliteJournal(folder / f"{name}.sqlite"))
        peer, conduct = peer_of(name), list[tuple[str, str]]()
        sandbox = FakeSandbox(slots)
        module = await blobs.put(MODULE)
        sandbox.guests[module.digest] = shout

        async def nowhere(peer: PeerId, ref: BlobRef) -> None:
            raise Unavailable("no network here")

        courier = Courier(
            me=peer, blobs=blobs, fetch=nowhere, more_peers=list, behaved=lambda p, w: None
        )
        signer = Signer(
            peer=peer, key=key_of(name), network=network, new_id=new_id, now_ms=lambda: T0
        )
        worker = Worker(
            me=WorkerIdentity(
                peer=peer,
                key=key_of(name),
                network=network,
                program="test/0",
                region="eu",
                serves=("*",),
            ),
            slots=slots,
            runner=Runner(signer=signer, sandbox=sandbox, blobs=blobs, courier=courier),
            journal=journal,
            policy=lambda: Policy(
                limits_max=LIMITS,
                module_bytes_max=MIB,
                publishers=frozenset({"*"}),
                price_floor_ucr=0,
            ),
            behaved=lambda p, what: conduct.append((p, what)),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            yield Working(name, peer, worker, sandbox, blobs, journal, conduct)
            nursery.cancel_scope.cancel()


def link_of(worker: PeerId, owner: PeerId = OWNER) -> tuple[Link, Link]:
    """The worker's end and the owner's end."""
    ours, theirs = loop(owner)
    theirs.peer = worker
    return ours, theirs


@asynccontextmanager
async def joined(office: Owning, hand: Working) -> AsyncIterator[Link]:
    """The worker serves the owner over one stream, for as long as this lasts."""
    ours, theirs = link_of(hand.peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(office.owner.serve, theirs)
        nursery.start_soon(hand.worker.serve_owner, ours)
        with trio.fail_after(WAIT_S):
            while hand.peer not in office.owner.streams or OWNER not in hand.worker.streams:
                await trio.testing.wait_all_tasks_blocked()
        yield ours
        nursery.cancel_scope.cancel()


class Stranger:
    """A worker written out by hand: it says whatever a test wants it to say."""

    def __init__(self, link: Link, name: str = "mallory") -> None:
        self.link = link
        self.name = name
        self.leases = 0

    async def say(self, *messages: WorkMessage) -> None:
        await self.link.send(codec.encode(messages))

    async def hear(self) -> tuple[WorkMessage, ...]:
        with trio.fail_after(WAIT_S):
            heard: tuple[WorkMessage, ...] = codec.decode(
                await self.link.receive(), WorkFrame, bytes_max=ids.WORK_FRAME_BYTES_MAX
            )
        return heard

    async def hear_one(self, kind: type[Any]) -> Any:
        """The next message of this kind; others are passed over."""
        while True:
            for message in await self.hear():
                if isinstance(message, kind):
                    return message

    async def greet(self, network: str = NETWORK, credits: int = 1) -> WorkMessage:
        await self.say(Hello(network=network, program="evil/0", slots=1))
        answer = (await self.hear())[0]
        if isinstance(answer, Hello):
            await self.say(Claim(credits=credits))
        return answer

    async def lease(self) -> Any:
        """The next lease, of a batch of one."""
        message = await self.hear_one(Leases)
        batch = envelope.unseal(
            message.envelope,
            LeaseBatch,
            type="lease/1",
            network=NETWORK,
            now_ms=None,
            bytes_max=ids.WORK_FRAME_BYTES_MAX,
        )
        self.leases += 1
        return batch.value.leases[0]

    async def ended(self) -> str:
        """Wait until the other side ends the stream; the code of its bye."""
        code = ""
        try:
            while True:
                for message in await self.hear():
                    if isinstance(message, Bye):
                        code = message.code
        except Unavailable:
            return code


def done(lease: Any, *, by: str = "mallory", stdout: bytes = b"HELLO", **lies: Any) -> Done:
    """The receipt that a lease deserves, with lies in it."""
    spec = lease.spec
    fields: dict[str, Any] = {
        "task_id": spec.task_id,
        "attempt": lease.attempt,
        "fence": lease.fence,
        "owner": OWNER,
        "agent_id": spec.agent_id,
        "agent_version": spec.agent_version,
        "module": spec.module,
        "args": spec.args,
        "input": spec.input,
        "limits": spec.limits,
        "outcome": Outcome.COMPLETED,
        "output": BlobRef(digest=ids.digest_of(stdout), size_bytes=len(stdout)),
        "fuel_used": 5,
        "memory_peak_bytes": 1,
        "wall_us": 1,
        "started_ms": T0,
        "finished_ms": T0,
        "price_ucr": 0,
        "engine": "fake",
    }
    sealed = envelope.seal(
        Receipt(**(fields | lies)),
        type="receipt/1",
        network=NETWORK,
        key=key_of(by),
        sender=peer_of(by),
        id=new_id(),
        now_ms=T0,
        ttl_ms=1_000,
    )
    return Done(receipt=sealed, output=stdout)


@asynccontextmanager
async def stranger(office: Owning, name: str = "mallory") -> AsyncIterator[Stranger]:
    ours, theirs = link_of(peer_of(name))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(office.owner.serve, theirs)
        yield Stranger(ours, name)
        nursery.cancel_scope.cancel()
