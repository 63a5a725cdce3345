"""
Meshes in memory that know each other, honouring `ports.mesh`: links, peers, drops. No gossip is
lost here and no address is needed; a peer that was dropped with a ban cannot be opened again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ports.mesh import Handler, Heard, Link, MeshStatus, PeerInfo
from zerostate_node.services.loopback import loop
from zerostate_node.units import PeerId

GOSSIP_MAX = 256  # full: the newest are dropped, as the port says


class Air:
    """What the meshes of one test share: who exists, and the nursery their handlers run in."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.meshes: dict[PeerId, FakeMesh] = {}


class FakeMesh:
    """One node's view of the air."""

    def __init__(self, air: Air, peer: PeerId) -> None:
        self.peer = peer
        self.banned: dict[PeerId, float] = {}
        self.opened = 0
        self._air = air
        self._handlers: dict[str, Handler] = {}
        self._callbacks: list[Callable[[PeerId, bool], None]] = []
        self._topics: dict[str, list[trio.MemorySendChannel[Heard]]] = {}
        air.meshes[peer] = self

    async def publish(self, topic: str, data: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        for mesh in self._neighbours():
            for channel in mesh._topics.get(topic, ()):
                try:
                    channel.send_nowait(Heard(topic, self.peer, data))
                except trio.WouldBlock:
                    continue
        return True

    async def subscribe(self, topic: str) -> AsyncIterator[Heard]:
        send, receive = trio.open_memory_channel[Heard](GOSSIP_MAX)
        self._topics.setdefault(topic, []).append(send)
        async with receive:
            async for heard in receive:
                yield heard

    def handle(self, protocol: str, handler: Handler, *, frame_bytes_max: int) -> None:
        self._handlers[protocol] = handler

    async def open(self, peer: PeerId, protocol: str, *, frame_bytes_max: int) -> Link:
        await trio.lowlevel.checkpoint()
        other = self._air.meshes.get(peer)
        if other is None or peer in self.banned or self.peer in other.banned:
            raise Unavailable(f"no way to {peer}", code="unreachable")
        if protocol not in other._handlers:
            raise Unavailable(f"{peer} does not speak {protocol}", code="protocol")
        ours, theirs = loop(peer)
        theirs.peer = self.peer
        self.opened += 1
        self._air.nursery.start_soon(other._handlers[protocol], theirs)
        return ours

    def learn(self, peer: PeerId, addrs: Sequence[str], *, source: str) -> None:
        """Nothing to learn: everybody is in the same air."""

    def peers(self) -> Sequence[PeerInfo]:
        return [
            PeerInfo(peer=mesh.peer, connected=True, addrs=(), via="direct", since_ms=0)
            for mesh in self._neighbours()
        ]

    def status(self) -> MeshStatus:
        return MeshStatus(
            up=True,
            restarts=0,
            last_error="",
            listen_addrs=(),
            announce_addrs=(),
            relays=(),
            anchors_connected=0,
            peers_connected=len(self._neighbours()),
        )

    async def drop(self, peer: PeerId, *, ban_s: float = 0.0, why: str = "") -> None:
        await trio.lowlevel.checkpoint()
        if ban_s:
            self.banned[peer] = ban_s
        for callback in self._callbacks:
            callback(peer, False)

    def on_peer(self, callback: Callable[[PeerId, bool], None]) -> None:
        self._callbacks.append(callback)

    def meet(self, peer: PeerId) -> None:
        """This peer just connected."""
        for callback in self._callbacks:
            callback(peer, True)

    def _neighbours(self) -> list[FakeMesh]:
        return [
            mesh
            for mesh in self._air.meshes.values()
            if mesh is not self and mesh.peer not in self.banned and self.peer not in mesh.banned
        ]
