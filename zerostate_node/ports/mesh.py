"""The libp2p network as services see it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from zerostate_node.units import PeerId


class Link(Protocol):
    """
    One framed, ordered, two-way stream to a peer; dead ends raise `Unavailable`.

    A frame is bytes, length-prefixed on the wire by 4 bytes big-endian; one longer than the limit
    given when the link was opened or handled ends the link before it is read.
    """

    peer: PeerId
    limited: bool  # goes through a relay that counts bytes: no module bytes here

    async def send(self, frame: bytes) -> None:
        """Write one frame. Never cancelled half way: a deadline ends the link instead."""

    async def receive(self) -> bytes:
        """The next frame. Safe to cancel. Raises Unavailable(code=closed) at the end."""

    async def aclose(self) -> None:
        """End the link, at once and for both sides. Idempotent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """
    One gossip message: its topic, who handed it to us, the bytes. Nothing of them is checked yet.

    `author` signed the message as gossip; whoever forwards it did not look into it.
    """

    topic: str
    forwarder: PeerId
    data: bytes
    author: PeerId | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """What the mesh knows of a peer that it is connected to, or remembers."""

    peer: PeerId
    connected: bool
    addrs: tuple[str, ...]
    via: str  # "direct", "relay:<peer>", "" when not connected
    since_ms: int
    rtt_ms: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeshStatus:
    """How the mesh stands, for `/ready`, `doctor` and the console."""

    up: bool
    restarts: int
    last_error: str
    listen_addrs: tuple[str, ...]
    announce_addrs: tuple[str, ...]  # what others should dial: announced, listening, circuit
    relays: tuple[PeerId, ...]  # that hold a reservation for us
    anchors_connected: int
    peers_connected: int
    gossip_sent: int = 0
    gossip_heard: int = 0
    gossip_dropped: int = 0


Handler = Callable[[Link], Awaitable[None]]


class Mesh(Protocol):
    """The libp2p network as services see it. When libp2p dies links end; this does not."""

    peer: PeerId

    async def publish(self, topic: str, data: bytes) -> bool:
        """Gossip bytes; False when the budget is spent or the mesh is down (it was a hint)."""

    def subscribe(self, topic: str) -> AsyncIterator[Heard]:
        """Messages of a topic from now on; survives restarts. Bounded: the newest are dropped."""

    def handle(self, protocol: str, handler: Handler, *, frame_bytes_max: int) -> None:
        """Serve a stream protocol. An exception in the handler ends that link and nothing else."""

    async def open(self, peer: PeerId, protocol: str, *, frame_bytes_max: int) -> Link:
        """
        A new stream to a peer, dialling it by every address known, relays last.

        Raises:
            Unavailable: no address works (code=unreachable), protocol not spoken (code=protocol).
        """

    def learn(self, peer: PeerId, addrs: Sequence[str], *, source: str) -> None:
        """Remember addresses (checked against the dial policy) in the peer book."""

    def peers(self) -> Sequence[PeerInfo]:
        """Peers connected now, and remembered ones."""

    def status(self) -> MeshStatus:
        """How the mesh stands."""

    async def drop(self, peer: PeerId, *, ban_s: float = 0.0, why: str = "") -> None:
        """Close every connection to a peer, and refuse it for `ban_s`."""

    def on_peer(self, callback: Callable[[PeerId, bool], None]) -> None:
        """Call back when a peer connects (True) or is gone (False)."""
