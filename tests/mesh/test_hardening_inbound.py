from __future__ import annotations

import functools
import os

import mesh_hardening_lab as lab
import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from zerostate_node.mesh import hardening

WS = "/ip4/127.0.0.1/tcp/0/ws"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HELLO = b"\x13/multistream/1.0.0\n"
RAW = [
    b"",
    b"\x00" * 64,
    os.urandom(512),
    b"GET / HTTP/1.1\r\n\r\n",
    HELLO,
    HELLO + b"\x03\xff\xfe\n",
    HELLO + b"\x07/noise\n" + b"\x00\x00",
    HELLO + b"\x07/noise\n" + b"\xff\xff" + os.urandom(70_000),
    HELLO + b"\x07/noise\n" + b"\x00\x20" + os.urandom(32) + b"\x00\x60" + os.urandom(96),
    HELLO + b"\x00",
    b"\xff" * 11,
]
WEB = [
    b"\x00" * 50,
    os.urandom(300),
    b"GET / HTTP/1.1\r\n\r\n",
    UPGRADE[:40],
    UPGRADE + b"\x82\xff" + b"\xff" * 8,
    UPGRADE + b"\x81\x85\0\0\0\0hello",
    UPGRADE + b"\x88\x80\0\0\0\0",
    UPGRADE + b"\x82\x94\0\0\0\0" + HELLO + b"\x82\x87\0\0\0\0\x06/noise",
    b"A" * 70_000,
]


def gone(hub: lab.Node, guest: lab.Node) -> bool:
    return not hub.connections(guest)


async def throw(port: int, payload: bytes, ending: str) -> None:
    """Say something to a port, then leave in one of three ways."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        await stream.send_all(payload)
        if ending == "wait":
            with trio.move_on_after(0.1):
                await stream.receive_some(1000)
        if ending == "reset":
            lab.reset_on_close(stream)
    except (trio.BrokenResourceError, OSError):
        pass
    await stream.aclose()


async def test_forty_peers_pass_through_a_node_with_twelve_slots() -> None:
    config = hardening.connection_config(max_connections=12)
    async with lab.running(config=config) as hub:
        for _ in range(40):
            async with lab.running(listen=()) as guest:
                await guest.dial(hub)
                await guest.ping(hub)
            await lab.until(functools.partial(gone, hub, guest))
        await lab.until(lambda: hub.network._inbound_limiter.borrowed_tokens == 0)


async def test_silent_connections_neither_fill_a_node_nor_stay() -> None:
    config = hardening.connection_config(max_connections=12, upgrade_timeout_s=1.5)
    async with lab.running(config=config) as hub, lab.running(listen=()) as guest:
        silent = [await trio.open_tcp_stream("127.0.0.1", hub.port) for _ in range(40)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(1.2):  # while the silent ones are within their time
            await guest.dial(hub)
        await guest.ping(hub)
        for stream in silent:
            assert await lab.drain(stream, timeout_s=4)
            await stream.aclose()
        await lab.until(lambda: hub.network._inbound_limiter.borrowed_tokens == 1)


async def test_garbage_at_the_port_leaves_the_host_answering() -> None:
    async with lab.running() as hub, lab.running(listen=()) as guest:
        await guest.dial(hub)
        async with trio.open_nursery() as nursery:
            for payload in RAW:
                for ending in ("close", "reset", "wait"):
                    nursery.start_soon(throw, hub.port, payload, ending)
        await guest.ping(hub)
        async with lab.running(listen=()) as another:
            await another.dial(hub)
            await another.ping(hub)


async def test_a_huge_length_before_the_handshake_is_refused_at_once() -> None:
    async with lab.running() as hub:
        stream = await trio.open_tcp_stream("127.0.0.1", hub.port)
        await stream.send_all(HELLO + b"\xff\xff\xff\x07" + bytes(4096))
        assert await lab.drain(stream, timeout_s=2)  # the handshake alone would have 4 s
        await stream.aclose()


async def test_garbage_at_a_websocket_ends_neither_process_nor_host() -> None:
    async with lab.running(listen=[WS]) as hub, lab.running(listen=[WS]) as guest:
        async with trio.open_nursery() as nursery:
            for payload in WEB:
                for ending in ("close", "reset", "wait"):
                    nursery.start_soon(throw, hub.port, payload, ending)
        await guest.dial(hub)
        await guest.ping(hub)


async def test_a_silent_websocket_is_freed_and_one_that_never_says_goodbye_too() -> None:
    async with lab.running(listen=[WS]) as hub:
        silent = await trio.open_tcp_stream("127.0.0.1", hub.port)
        rude = await trio.open_tcp_stream("127.0.0.1", hub.port)
        await rude.send_all(UPGRADE)
        assert await lab.drain(silent, timeout_s=6)
        assert await lab.drain(rude, timeout_s=9)
        await silent.aclose()
        await rude.aclose()


async def test_a_port_in_use_is_not_shared_in_silence() -> None:
    async with lab.running() as first:
        taken = f"/ip4/127.0.0.1/tcp/{first.port}"
        second = lab.build(listen=[taken])
        async with second.host.run([Multiaddr(taken)]):
            assert not second.host.get_addrs()
            await second.host.close()
        async with lab.running(listen=()) as guest:
            await guest.dial(first)


@pytest.mark.parametrize("first_bytes", [1, 2])
async def test_a_shared_port_waits_for_the_bytes_that_tell_tcp_from_websocket(
    first_bytes: int,
) -> None:
    async with lab.running() as spare:
        port = spare.port
    shared = [f"/ip4/127.0.0.1/tcp/{port}", f"/ip4/127.0.0.1/tcp/{port}/ws"]
    async with lab.running(listen=shared):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HELLO[:first_bytes])
        await trio.sleep(0.1)
        await stream.send_all(HELLO[first_bytes:])
        with trio.fail_after(3):
            assert (await stream.receive_some(100)).startswith(HELLO)
        await stream.aclose()
