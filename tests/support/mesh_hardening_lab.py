"""
Real libp2p hosts on loopback for the hardening tests, and tools for being a hostile one.

MESH_TEST_WITHOUT=name leaves one remedy out (a patch function's name, or guard_all, fix_pubsub,
noise_only, make_gossip, connection_config, dial_all): the tests for it must fail then.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.crypto.keys import KeyPair
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.stream_muxer.yamux import yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from zerostate_node.errors import Unavailable
from zerostate_node.mesh import hardening
from zerostate_node.mesh.hardening import patches

WITHOUT = os.environ.get("MESH_TEST_WITHOUT", "")

patches.PATCHES = tuple(patch for patch in patches.PATCHES if patch.__name__ != WITHOUT)
hardening.install()

if WITHOUT == "dial_all":

    async def connect(host: Any, peer_id: ID, addrs: Sequence[str], *, timeout_s: float) -> None:
        try:
            with trio.fail_after(timeout_s):
                await host.connect(PeerInfo(peer_id, [Multiaddr(addr) for addr in addrs]))
        except Exception as error:
            raise Unavailable(str(error), code="unreachable") from error

    hardening.dial_all = connect

MESHSUB = "/meshsub/1.1.0"


@dataclasses.dataclass
class Node:
    """A running host and what it said about its peers."""

    host: Any
    pubsub: Any
    key: KeyPair
    faults: list[tuple[str, str, BaseException]]
    forgers: list[str]

    @property
    def peer(self) -> ID:
        return ID.from_pubkey(self.key.public_key)

    @property
    def addr(self) -> str:
        return str(self.host.get_addrs()[0])

    @property
    def port(self) -> int:
        return int(self.host.get_addrs()[0].value_for_protocol("tcp"))

    @property
    def network(self) -> Any:
        return self.host.get_network()

    def connections(self, other: Node) -> list[Any]:
        return [c for c in self.network.get_connections(other.peer) if not c.is_closed]

    async def dial(self, other: Node) -> None:
        await hardening.dial_all(self.host, other.peer, [other.addr], timeout_s=10)

    async def ping(self, other: Node) -> None:
        """Prove that the other host answers on a new stream."""
        with trio.fail_after(10):
            stream = await self.host.new_stream(other.peer, ["/ipfs/ping/1.0.0"])
            payload = os.urandom(32)
            await stream.write(payload)
            answer = b""
            while len(answer) < 32:
                answer += await stream.read(32)
            assert answer == payload
            await hardening.close_stream(stream)


def build(
    *,
    key: KeyPair | None = None,
    config: ConnectionConfig | None = None,
    listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
    gossip: bool = False,
    fixed: bool = True,
    hardened: bool = True,
    sec_opt: Any = None,
    streams_per_peer_max: int = 64,
    on_fault: Callable[..., None] | None = None,
) -> Node:
    key = key or generate_new_ed25519_identity()
    faults: list[tuple[str, str, BaseException]] = []
    forgers: list[str] = []
    if sec_opt is None and WITHOUT != "noise_only":
        sec_opt = hardening.noise_only(key)
    if WITHOUT == "connection_config":
        config = None
    elif config is None:
        config = hardening.connection_config(max_connections=64)
    host = new_host(
        key_pair=key,
        sec_opt=sec_opt,
        connection_config=config,
        listen_addrs=[Multiaddr(addr) for addr in listen],
    )
    report = on_fault or (lambda *fault: faults.append(fault))
    if hardened and WITHOUT != "guard_all":
        hardening.guard_all(host, report, streams_per_peer_max=streams_per_peer_max)
    pubsub = None
    if gossip:
        if WITHOUT == "make_gossip":
            router = GossipSub([hardening.make_gossip().protocols[0]], 6, 4, 12)
        else:
            router = hardening.make_gossip()
        pubsub = Pubsub(host, router, strict_signing=True)
        if hardened and fixed and WITHOUT != "fix_pubsub":
            hardening.fix_pubsub(pubsub, on_forged=forgers.append, on_fault=report)
    return Node(host, pubsub, key, faults, forgers)


@asynccontextmanager
async def running(
    *, listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",), **settings: Any
) -> AsyncIterator[Node]:
    """Run one node until the block ends."""
    node = build(listen=listen, **settings)
    async with node.host.run([Multiaddr(addr) for addr in listen]):
        try:
            if node.pubsub is None:
                yield node
            else:
                async with (
                    background_trio_service(node.pubsub.router),
                    background_trio_service(node.pubsub),
                ):
                    await node.pubsub.wait_until_ready()
                    yield node
        finally:
            with trio.move_on_after(5) as scope:
                scope.shield = True
                await node.host.close()


async def until(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - of state inside libp2p there is no event
            await trio.sleep(0.01)


async def drain(stream: trio.SocketStream, *, timeout_s: float) -> bool:
    """Read a socket to its end; say whether it ended in time."""
    with trio.move_on_after(timeout_s):
        while True:
            try:
                if not await stream.receive_some(65536):
                    return True
            except trio.BrokenResourceError:
                return True
    return False


def reset_on_close(stream: trio.SocketStream) -> None:
    """Let a socket end with RST instead of FIN."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    """Pack one Yamux frame, whatever sense it makes."""
    return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length) + body


def rpc(message: bytes) -> bytes:
    """Prefix bytes with their length as a varint, as Pubsub frames an RPC."""
    length, prefix = len(message), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(prefix) + bytes([length]) + message
