from __future__ import annotations

import os

import pytest
import trio
from mesh_nodes import ECHO, FRAME_MAX, LOOPBACK, make_mesh, open_patiently, pair, start, until

import zerostate_node.mesh.link as link_module
from zerostate_node.errors import Unavailable
from zerostate_node.ports.mesh import Link
from zerostate_node.units import MIB


async def test_frames_cross_both_ways_whole_and_in_order(nursery: trio.Nursery) -> None:
    _, client = await pair(nursery)
    link = await open_patiently(client, _.peer)
    assert not link.limited
    sizes = [0, 1, 100, 65_535, 65_536, 300_000, 4 * MIB]
    frames = [os.urandom(size) for size in sizes]
    got: list[bytes] = []

    async def collect() -> None:
        while len(got) < len(frames):
            got.append(await link.receive())

    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            inner.start_soon(collect)
            for frame in frames:
                await link.send(frame)
    assert got == frames


async def test_frames_of_many_senders_are_never_interleaved(nursery: trio.Nursery) -> None:
    server, client = await pair(nursery)
    link = await open_patiently(client, server.peer)
    frames = [bytes([sender]) * (200 + 900 * sender) for sender in range(30)]
    got: list[bytes] = []

    async def send(frame: bytes) -> None:
        for _ in range(10):
            await link.send(frame)

    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            for frame in frames:
                inner.start_soon(send, frame)
            while len(got) < 300:
                got.append(await link.receive())
    assert sorted(got) == sorted(frames * 10)


async def test_a_frame_over_the_limit_is_refused_here_and_ends_the_link_there(
    nursery: trio.Nursery,
) -> None:
    server, client = await pair(nursery)
    ends: list[str] = []

    async def small(link: Link) -> None:
        try:
            await link.receive()
        except Unavailable as error:
            ends.append(error.code)
            raise

    server.handle("/test/small/1", small, frame_bytes_max=1000)
    honest = await client.open(server.peer, "/test/small/1", frame_bytes_max=1000)
    with pytest.raises(ValueError, match="1001 bytes"):
        await honest.send(b"x" * 1001)
    liar = await client.open(server.peer, "/test/small/1", frame_bytes_max=FRAME_MAX)
    await liar.send(b"x" * 1001)
    with trio.fail_after(10), pytest.raises(Unavailable) as caught:
        await liar.receive()
    assert caught.value.code == "closed"
    await until(lambda: ends == ["closed"], "the handler to hear of it")
    await honest.send(b"x" * 1000)


async def test_a_cancelled_receive_loses_nothing(nursery: trio.Nursery) -> None:
    server, client = await pair(nursery)
    link = await open_patiently(client, server.peer)
    frames = [os.urandom(20_000) for _ in range(100)]
    got: list[bytes] = []

    async def feed() -> None:
        for frame in frames:
            await link.send(frame)

    with trio.fail_after(30):
        async with trio.open_nursery() as inner:
            inner.start_soon(feed)
            while len(got) < len(frames):
                with trio.move_on_after(0.001):
                    got.append(await link.receive())
    assert got == frames


async def test_a_cancelled_send_leaves_whole_frames_behind(nursery: trio.Nursery) -> None:
    server, client = await pair(nursery)
    link = await open_patiently(client, server.peer)
    big = os.urandom(2 * MIB)

    async def drain(seen: list[bytes]) -> None:
        while True:
            seen.append(await link.receive())
            if seen[-1] == b"end":
                return

    seen: list[bytes] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as inner:
            inner.start_soon(drain, seen)
            for delay_s in (0.0, 0.001, 0.003, 0.01):
                with trio.move_on_after(delay_s):
                    await link.send(big)
            await link.send(b"end")
    assert seen[-1] == b"end"
    assert all(frame == big for frame in seen[:-1])


async def test_a_frame_sent_just_before_the_end_still_arrives(nursery: trio.Nursery) -> None:
    server, client = await pair(nursery)

    async def farewell(link: Link) -> None:
        await link.receive()
        for number in range(50):
            await link.send(b"last words %d" % number)

    server.handle("/test/farewell/1", farewell, frame_bytes_max=1000)
    link = await client.open(server.peer, "/test/farewell/1", frame_bytes_max=1000)
    await link.send(b"go")
    got = []
    with trio.fail_after(10):
        with pytest.raises(Unavailable):  # noqa: PT012
            while True:
                got.append(await link.receive())
    assert got == [b"last words %d" % number for number in range(50)]


async def test_an_exception_in_a_handler_ends_that_link_and_nothing_else(
    nursery: trio.Nursery,
) -> None:
    server, client = await pair(nursery)

    async def broken(link: Link) -> None:
        raise RuntimeError("a defect of a service")

    server.handle("/test/broken/1", broken, frame_bytes_max=1000)
    healthy = await open_patiently(client, server.peer)
    link = await client.open(server.peer, "/test/broken/1", frame_bytes_max=1000)
    with trio.fail_after(10), pytest.raises(Unavailable):
        await link.receive()
    await healthy.send(b"still here")
    with trio.fail_after(10):
        assert await healthy.receive() == b"still here"
    assert server.status().restarts == 0


async def test_what_a_peer_does_not_speak_is_named(nursery: trio.Nursery) -> None:
    server, client = await pair(nursery)
    with pytest.raises(Unavailable) as caught:
        await client.open(server.peer, "/test/unknown/1", frame_bytes_max=1000)
    assert caught.value.code == "protocol"
    assert "/test/unknown/1" in caught.value.message


async def test_a_peer_without_addresses_is_unreachable(nursery: trio.Nursery) -> None:
    mesh = make_mesh(listen=LOOPBACK)
    await start(nursery, mesh)
    with pytest.raises(Unavailable) as caught:
        await mesh.open(make_mesh().peer, ECHO, frame_bytes_max=1000)
    assert caught.value.code == "unreachable"


async def test_a_peer_that_does_not_read_ends_the_link_not_the_sender(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "SEND_S_MAX", 1.0)
    server, client = await pair(nursery)

    async def deaf(link: Link) -> None:
        await trio.sleep_forever()

    server.handle("/test/deaf/1", deaf, frame_bytes_max=FRAME_MAX)
    deaf_link = await client.open(server.peer, "/test/deaf/1", frame_bytes_max=FRAME_MAX)
    with trio.fail_after(20), pytest.raises(Unavailable) as caught:  # noqa: PT012
        while True:
            await deaf_link.send(b"x" * MIB)
    assert "did not read" in caught.value.message
    other = await open_patiently(client, server.peer)
    await other.send(b"fine")
    with trio.fail_after(10):
        assert await other.receive() == b"fine"


async def test_closing_a_link_frees_both_sides(nursery: trio.Nursery) -> None:
    server, client = await pair(nursery)
    ended = trio.Event()

    async def wait_for_end(link: Link) -> None:
        try:
            await link.receive()
        finally:
            ended.set()

    server.handle("/test/wait/1", wait_for_end, frame_bytes_max=1000)
    link = await client.open(server.peer, "/test/wait/1", frame_bytes_max=1000)
    receiving = trio.Event()

    async def receive() -> None:
        receiving.set()
        with pytest.raises(Unavailable):
            await link.receive()

    with trio.fail_after(10):
        async with trio.open_nursery() as inner:
            inner.start_soon(receive)
            await receiving.wait()
            await link.aclose()
            await link.aclose()
        await ended.wait()
    with pytest.raises(Unavailable):
        await link.send(b"too late")
