"""Meshes on loopback, and waiting for them without sleeping blindly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import trio

from zerostate_node.errors import Unavailable
from zerostate_node.mesh.book import MemoryBook, PeerBook
from zerostate_node.mesh.link import StreamLink
from zerostate_node.mesh.mesh import Libp2pMesh
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.ports.mesh import Link
from zerostate_node.units import MIB, PeerId

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
FRAME_MAX = 4 * MIB
ECHO = "/test/echo/1"
PATIENCE_S = 20.0  # a loaded machine is slow, a hung test is a failure


def wall_ms() -> int:
    return int(time.time() * 1000)


def make_mesh(
    key: bytes | None = None,
    *,
    book: PeerBook | None = None,
    now_ms: Callable[[], int] = wall_ms,
    **settings: Any,
) -> Libp2pMesh:
    settings = {"network": "test", "dial_private": True, **settings}
    return Libp2pMesh(
        key or os.urandom(32), MeshSettings(**settings), book=book or MemoryBook(), now_ms=now_ms
    )


async def start(nursery: trio.Nursery, mesh: Libp2pMesh) -> Callable[[], Any]:
    """Run a mesh; awaiting what is returned stops it and waits until it is down."""
    scope = trio.CancelScope()
    stopped = trio.Event()

    async def run(*, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with scope:
                await mesh.run(task_status=task_status)
        finally:
            stopped.set()

    await nursery.start(run)

    async def stop() -> None:
        scope.cancel()
        await stopped.wait()

    return stop


async def until(
    condition: Callable[[], Any], what: str = "the condition", *, within_s: float = PATIENCE_S
) -> None:
    with trio.move_on_after(within_s):
        while not condition():  # noqa: ASYNC110  (any condition, not one of ours)
            await trio.sleep(0.01)
        return
    raise AssertionError(f"{what} did not come true within {within_s} s")


async def connected(mesh: Libp2pMesh, peer: PeerId) -> None:
    await until(
        lambda: any(p.peer == peer and p.connected for p in mesh.peers()), f"connection to {peer}"
    )


async def echo(link: Link) -> None:
    while True:
        await link.send(await link.receive())


async def open_patiently(
    mesh: Libp2pMesh, peer: PeerId, protocol: str = ECHO, *, within_s: float = PATIENCE_S
) -> StreamLink:
    """Open a link, trying again while the peer is out of reach."""
    with trio.move_on_after(within_s):
        while True:
            try:
                return await mesh.open(peer, protocol, frame_bytes_max=FRAME_MAX)
            except Unavailable as error:
                await trio.sleep(min(0.1, error.retry_after_s))
    raise AssertionError(f"{peer} was not reached within {within_s} s")


async def pair(nursery: trio.Nursery, **settings: Any) -> tuple[Libp2pMesh, Libp2pMesh]:
    """A mesh that listens and serves echo, and one that is connected to it."""
    server = make_mesh(listen=LOOPBACK, **settings)
    server.handle(ECHO, echo, frame_bytes_max=FRAME_MAX)
    await start(nursery, server)
    client = make_mesh(bootstrap=server.status().listen_addrs, relay_use="never", **settings)
    await start(nursery, client)
    await connected(client, server.peer)
    return server, client
