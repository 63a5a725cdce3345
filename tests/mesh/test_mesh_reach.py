from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio
from libp2p.peer.id import ID
from mesh_nodes import (
    ECHO,
    LOOPBACK,
    PATIENCE_S,
    connected,
    echo,
    make_mesh,
    open_patiently,
    start,
    until,
    wall_ms,
)
from multiaddr import Multiaddr

from zerostate_node.errors import Unavailable
from zerostate_node.mesh.book_sqlite import SqliteBook


def bare(addr: str) -> str:
    return addr.split("/p2p/")[0]


async def free_addr(nursery: trio.Nursery, key: bytes) -> str:
    """An address that was ours a moment ago, so that nobody else has it."""
    mesh = make_mesh(key, listen=LOOPBACK)
    stop = await start(nursery, mesh)
    addr = mesh.status().listen_addrs[0]
    await stop()
    return addr


async def test_a_bootstrap_peer_that_starts_later_is_joined(nursery: trio.Nursery) -> None:
    key = os.urandom(32)
    addr = await free_addr(nursery, key)
    early = make_mesh(bootstrap=(addr,))
    with trio.fail_after(5):
        await start(nursery, early)  # a dead bootstrap peer does not hold up the start
    await trio.sleep(2)  # long enough for the first dials to fail and back off
    late = make_mesh(key, listen=(bare(addr),))
    await start(nursery, late)
    with trio.fail_after(10):
        await connected(early, late.peer)
    assert early.status().anchors_connected == 1


async def test_an_anchor_that_restarts_is_joined_again(nursery: trio.Nursery) -> None:
    key = os.urandom(32)
    anchor = make_mesh(key, listen=LOOPBACK)
    stop = await start(nursery, anchor)
    addr = anchor.status().listen_addrs[0]
    mesh = make_mesh(bootstrap=(addr,))
    await start(nursery, mesh)
    await connected(mesh, anchor.peer)
    await stop()
    await until(lambda: mesh.status().peers_connected == 0, "the loss to be noticed")
    again = make_mesh(key, listen=(bare(addr),))
    await start(nursery, again)
    await connected(mesh, anchor.peer)


async def test_peers_learned_are_dialled_without_being_asked(nursery: trio.Nursery) -> None:
    other = make_mesh(listen=LOOPBACK)
    await start(nursery, other)
    mesh = make_mesh()
    await start(nursery, mesh)
    mesh.learn(other.peer, other.status().announce_addrs, source="advert")
    await connected(mesh, other.peer)
    info = next(p for p in mesh.peers() if p.peer == other.peer)
    assert info.via == "direct"
    assert bare(other.status().listen_addrs[0]) in {bare(addr) for addr in info.addrs}


async def test_the_book_finds_old_friends_after_a_restart_without_bootstrap(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    other = make_mesh(listen=LOOPBACK)
    await start(nursery, other)
    book = SqliteBook(tmp_path / "peers.sqlite", now_ms=wall_ms())
    first = make_mesh(bootstrap=other.status().listen_addrs, book=book)
    stop = await start(nursery, first)
    await connected(first, other.peer)
    await stop()
    book.close()
    reopened = SqliteBook(tmp_path / "peers.sqlite", now_ms=wall_ms())
    second = make_mesh(book=reopened)
    await start(nursery, second)
    await connected(second, other.peer)
    reopened.close()


async def test_a_strangers_word_does_not_make_us_dial_private_addresses(
    nursery: trio.Nursery,
) -> None:
    knocks: list[trio.SocketStream] = []

    async def knocked(stream: trio.SocketStream) -> None:
        knocks.append(stream)

    [bait] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), knocked, 0)
    port = bait.socket.getsockname()[1]
    mesh = make_mesh(dial_private=False)
    await start(nursery, mesh)
    stranger = make_mesh().peer
    mesh.learn(
        stranger,
        [
            f"/ip4/127.0.0.1/tcp/{port}",
            f"/ip6/::1/tcp/{port}",
            f"/ip6/::ffff:127.0.0.1/tcp/{port}",
            f"/dns4/localhost/tcp/{port}",
            f"/ip4/127.0.0.1/tcp/{port}/p2p/{make_mesh().peer}/p2p-circuit/p2p/{stranger}",
        ],
        source="advert",
    )
    with pytest.raises(Unavailable) as caught:
        await mesh.open(stranger, ECHO, frame_bytes_max=1000)
    assert caught.value.code == "unreachable"
    await trio.sleep(3)  # two rounds of the loop that dials known peers
    assert knocks == []
    # The same address from the operator is dialled: the policy is about strangers.
    trusting = make_mesh(
        dial_private=False, bootstrap=(f"/ip4/127.0.0.1/tcp/{port}/p2p/{stranger}",)
    )
    await start(nursery, trusting)
    await until(lambda: knocks, "the bootstrap address to be dialled")


async def test_an_inbound_peer_cannot_steer_our_dials_through_identify(
    nursery: trio.Nursery,
) -> None:
    knocks: list[trio.SocketStream] = []

    async def knocked(stream: trio.SocketStream) -> None:
        knocks.append(stream)

    [bait] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), knocked, 0)
    port = bait.socket.getsockname()[1]
    victim = make_mesh(listen=LOOPBACK, dial_private=False)
    await start(nursery, victim)
    attacker = make_mesh(bootstrap=victim.status().listen_addrs)
    stop = await start(nursery, attacker)
    await connected(victim, attacker.peer)
    assert victim._life is not None
    store = victim._life.host.get_peerstore()
    # What identify would have stored of a hostile answer.
    pid = ID.from_base58(attacker.peer)
    store.add_addrs(pid, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")], 3600)
    await stop()
    await until(lambda: victim.status().peers_connected == 0, "the attacker to be gone")
    with pytest.raises(Unavailable):
        await victim.open(attacker.peer, ECHO, frame_bytes_max=1000)
    with pytest.raises(Exception, match="only the mesh dials"):
        await victim._life.host.new_stream(pid, ["/test/echo/1"])
    assert knocks == []


async def test_a_banned_peer_is_refused_until_the_ban_ends(nursery: trio.Nursery) -> None:
    clock = {"ms": wall_ms()}
    server = make_mesh(listen=LOOPBACK, now_ms=lambda: clock["ms"])
    server.handle(ECHO, echo, frame_bytes_max=1000)
    await start(nursery, server)
    client = make_mesh(bootstrap=server.status().listen_addrs)
    await start(nursery, client)
    await connected(server, client.peer)
    await server.drop(client.peer, ban_s=3600, why="test")
    await until(lambda: server.status().peers_connected == 0, "the drop")
    with pytest.raises(Unavailable, match="banned"):
        await server.open(client.peer, ECHO, frame_bytes_max=1000)
    with trio.move_on_after(3):
        while True:
            assert server.status().peers_connected == 0
            await trio.sleep(0.02)
    clock["ms"] += 3_601_000
    await connected(server, client.peer)
    link = await open_patiently(client, server.peer)
    await link.send(b"forgiven")
    with trio.fail_after(PATIENCE_S):
        assert await link.receive() == b"forgiven"


async def test_dials_to_dead_peers_are_spaced_out(nursery: trio.Nursery) -> None:
    addr = await free_addr(nursery, os.urandom(32))
    mesh = make_mesh(peers_target=0)
    await start(nursery, mesh)
    dead = make_mesh().peer
    mesh.learn(dead, [bare(addr)], source="advert")
    with pytest.raises(Unavailable, match="refused"):
        await mesh.open(dead, ECHO, frame_bytes_max=1000)
    with pytest.raises(Unavailable, match="just now") as caught:
        await mesh.open(dead, ECHO, frame_bytes_max=1000)
    assert 0 < caught.value.retry_after_s <= 15
    # Somewhere new to try ends the wait.
    mesh.learn(dead, ["/ip4/127.0.0.1/tcp/9"], source="advert")
    with pytest.raises(Unavailable, match="refused"):
        await mesh.open(dead, ECHO, frame_bytes_max=1000)


async def test_a_name_is_resolved_and_dialled(nursery: trio.Nursery) -> None:
    other = make_mesh(listen=LOOPBACK)
    await start(nursery, other)
    port = other.status().listen_addrs[0].split("/")[4]
    mesh = make_mesh(bootstrap=(f"/dns4/localhost/tcp/{port}/p2p/{other.peer}",))
    await start(nursery, mesh)
    await connected(mesh, other.peer)


async def test_websocket_is_spoken_too(nursery: trio.Nursery) -> None:
    server = make_mesh(listen=("/ip4/127.0.0.1/tcp/0/ws",))
    server.handle(ECHO, echo, frame_bytes_max=100_000)
    await start(nursery, server)
    assert server.status().listen_addrs[0].split("/p2p/")[0].endswith("/ws")
    client = make_mesh(bootstrap=server.status().listen_addrs)
    await start(nursery, client)
    link = await open_patiently(client, server.peer)
    await link.send(b"w" * 100_000)
    with trio.fail_after(PATIENCE_S):
        assert await link.receive() == b"w" * 100_000


async def test_strangers_cannot_take_the_places_our_anchors_need(nursery: trio.Nursery) -> None:
    anchor_key = os.urandom(32)
    anchor_addr = await free_addr(nursery, anchor_key)
    victim = make_mesh(listen=LOOPBACK, connections_max=8, bootstrap=(anchor_addr,))
    await start(nursery, victim)
    for _ in range(12):
        stranger = make_mesh(bootstrap=victim.status().listen_addrs, relay_use="never")
        await start(nursery, stranger)

    def crowded() -> bool:
        life = victim._life
        return life is not None and victim.status().peers_connected >= life._inbound_max

    await until(crowded, "the strangers to crowd in")
    anchor = make_mesh(anchor_key, listen=(bare(anchor_addr),))
    await start(nursery, anchor)
    await connected(victim, anchor.peer)
    assert victim.status().peers_connected <= 8
