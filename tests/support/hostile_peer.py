"""
A peer with a key of its own that speaks the node's protocols and lies.

It uses the real mesh and the real wire, so that whatever it can do a stranger can do too.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_nodes import LOOPBACK, connected, make_mesh, open_patiently, start

from zerostate_node.errors import Unavailable
from zerostate_node.mesh.mesh import Libp2pMesh
from zerostate_node.ports.mesh import Link
from zerostate_node.units import PeerId
from zerostate_node.wire import codec, envelope, ids
from zerostate_node.wire.messages import (
    Announcement,
    Bye,
    Claim,
    Done,
    Hello,
    Lease,
    LeaseBatch,
    Leases,
    NodeAdvert,
    OpenWork,
    Receipt,
    WorkFrame,
    WorkMessage,
)

NETWORK = "dev"
DAY_MS = 86_400_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Hostile:
    """One liar on the mesh."""

    def __init__(self, seed: bytes, mesh: Libp2pMesh) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.mesh = mesh
        self.peer: PeerId = mesh.peer
        self.did = ids.did_of(mesh.peer)

    def seal(self, value: Any, type: str, *, issued_ms: int = 0, ttl_ms: int = 60_000) -> bytes:
        """Sign anything as ourselves."""
        now_ms = issued_ms or wall_ms()
        return envelope.seal(
            value,
            type=type,
            network=NETWORK,
            key=self.key,
            sender=self.peer,
            id=ids.ulid(wall_ms(), os.urandom(10)),
            now_ms=now_ms,
            ttl_ms=ttl_ms,
        )

    @property
    def addrs(self) -> tuple[str, ...]:
        return self.mesh.status().listen_addrs

    async def gossip(self, kind: str, data: bytes) -> bool:
        """Publish any bytes on a topic of the network."""
        return await self.mesh.publish(ids.topic(NETWORK, kind), data)

    async def advertise(self, **more: Any) -> None:
        """Say that we own tasks."""
        advert = NodeAdvert(addrs=self.addrs, program="evil/0", owns=True, **more)
        await self.gossip("nodes", self.seal(advert, "node/1"))

    async def announce(self, agent_id: str) -> None:
        """Say that we own open work."""
        work = Announcement(kinds=(OpenWork(agent_id=agent_id, count=1),), addrs=self.addrs)
        for shard in range(16):
            data = self.seal(work, "announcement/1")
            await self.mesh.publish(ids.topic(NETWORK, "work", shard), data)

    async def work_for(self, owner: str, *, slots: int = 1, credits: int = 0) -> Worker:
        """A work stream to an owner, after hello and a first claim."""
        link = await open_patiently(self.mesh, PeerId(owner), ids.WORK)
        worker = Worker(self, link)
        await worker.say(Hello(network=NETWORK, program="evil/0", slots=slots))
        await worker.say(Claim(credits=credits))
        return worker

    def leases(self, *leases: Lease) -> Leases:
        """A signed batch, as an owner gives it."""
        return Leases(envelope=self.seal(LeaseBatch(leases=leases), "lease/1"))

    def done(self, lease: Lease, owner: str, stdout: bytes = b"done", **lies: Any) -> Done:
        """A receipt for a lease that nobody ran."""
        spec = lease.spec
        fields: dict[str, Any] = {
            "task_id": spec.task_id,
            "attempt": lease.attempt,
            "fence": lease.fence,
            "owner": owner,
            "agent_id": spec.agent_id,
            "agent_version": spec.agent_version,
            "module": spec.module,
            "args": spec.args,
            "input": spec.input,
            "limits": spec.limits,
            "outcome": "completed",
            "output": {"digest": ids.digest_of(stdout), "size_bytes": len(stdout)},
            "fuel_used": 5,
            "memory_peak_bytes": 1,
            "wall_us": 1,
            "started_ms": wall_ms(),
            "finished_ms": wall_ms(),
            "price_ucr": 0,
            "engine": "none",
        }
        receipt = codec.convert({**fields, **lies}, Receipt)
        return Done(receipt=self.seal(receipt, "receipt/1", ttl_ms=DAY_MS), output=stdout)


class Worker:
    """Our end of a work stream, whichever side we play."""

    def __init__(self, hostile: Hostile, link: Link) -> None:
        self.hostile = hostile
        self.link = link
        self.leases: list[Lease] = []
        self.heard: list[WorkMessage] = []

    async def say(self, *messages: WorkMessage) -> None:
        """One frame."""
        await self.link.send(codec.encode(messages))

    async def listen(self) -> str:
        """Take everything until the end of the stream; the code of the other side's bye."""
        code = ""
        while True:
            try:
                frame = await self.link.receive()
            except Unavailable:
                return code
            for message in codec.decode(frame, WorkFrame, bytes_max=ids.WORK_FRAME_BYTES_MAX):
                self.heard.append(message)
                if isinstance(message, Leases):
                    batch = envelope.unseal(
                        message.envelope,
                        LeaseBatch,
                        type="lease/1",
                        network=NETWORK,
                        now_ms=None,
                        bytes_max=ids.WORK_FRAME_BYTES_MAX,
                    )
                    self.leases += batch.value.leases
                elif isinstance(message, Bye):
                    code = message.code


@asynccontextmanager
async def hostile(
    bootstrap: str, prepare: Callable[[Hostile], None] = lambda liar: None, **settings: Any
) -> AsyncIterator[Hostile]:
    """A liar with a fresh key, connected to one node; `prepare` is called before it connects."""
    seed = os.urandom(32)
    async with trio.open_nursery() as nursery:
        mesh = make_mesh(
            seed,
            listen=LOOPBACK,
            bootstrap=(bootstrap,),
            network=NETWORK,
            relay_use="never",
            gossip_per_s=500.0,
            **settings,
        )
        liar = Hostile(seed, mesh)
        prepare(liar)
        await start(nursery, mesh)
        await connected(mesh, PeerId(bootstrap.rsplit("/", 1)[1]))
        yield liar
        nursery.cancel_scope.cancel()
