from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mesh_hardening_lab as lab
import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.stream_muxer.yamux import yamux

from zerostate_node.mesh.hardening import close_stream, streams
from zerostate_node.units import KIB, MIB

SINK = "/zs/test/sink"


@asynccontextmanager
async def pair(**settings: Any) -> AsyncIterator[tuple[lab.Node, lab.Node, list[int]]]:
    """Two connected nodes; the second counts what it is sent on SINK, stream by stream."""
    sizes: list[int] = []

    async def sink(stream: Any) -> None:
        index = len(sizes)
        sizes.append(0)
        try:
            while True:
                sizes[index] += len(await stream.read(64 * KIB))
        except StreamEOF:
            await stream.close()

    async with lab.running() as alice, lab.running(**settings) as bob:
        bob.host.set_stream_handler(SINK, sink)
        await alice.dial(bob)
        yield alice, bob, sizes


async def test_a_cancelled_write_does_not_tear_the_connection() -> None:
    async with pair() as (alice, bob, _):
        before = alice.connections(bob)
        for n in range(16):
            stream = await alice.host.new_stream(bob.peer, [SINK])
            with trio.move_on_after(0.004 + n * 0.003):
                await stream.write(bytes(8 * MIB))
            await close_stream(stream)
        await alice.ping(bob)
        await bob.ping(alice)
        assert alice.connections(bob) == before


async def test_a_cancelled_read_loses_no_bytes() -> None:
    async with pair() as (alice, bob, _):
        received = bytearray()

        async def source(stream: Any) -> None:
            await stream.write(b"0123456789" * 20_000)
            await stream.close()

        bob.host.set_stream_handler("/zs/test/source", source)
        stream = await alice.host.new_stream(bob.peer, ["/zs/test/source"])
        conn = alice.connections(bob)[0].muxed_conn
        ended = False
        with trio.fail_after(20):
            while not ended:
                async with trio.open_nursery() as nursery:
                    await nursery.start(hold, conn._write_lock, 0.02)
                    try:
                        with trio.move_on_after(0.01):  # the window update of the read has to wait
                            received += await stream.read(16 * KIB)
                    except StreamEOF:
                        ended = True
        assert bytes(received) == b"0123456789" * 20_000


async def hold(lock: trio.Lock, for_s: float, *, task_status: Any) -> None:
    async with lock:
        task_status.started()
        await trio.sleep(for_s)


async def test_a_stream_closed_from_a_cancelled_scope_is_closed_for_the_peer_too() -> None:
    async with pair() as (alice, bob, _):
        ended = trio.Event()

        async def wait_for_end(stream: Any) -> None:
            try:
                await stream.read(1)
            except StreamEOF:
                ended.set()

        bob.host.set_stream_handler("/zs/test/end", wait_for_end)
        stream = await alice.host.new_stream(bob.peer, ["/zs/test/end"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.close()
        with trio.fail_after(3):
            await ended.wait()
        await lab.until(lambda: stream not in alice.connections(bob)[0].streams)
        muxed = alice.connections(bob)[0].muxed_conn
        streams_open = muxed.stream_backlog_limit - muxed.stream_backlog_semaphore.value
        assert streams_open <= 1  # identify may be under way


async def test_a_peer_that_takes_no_bytes_costs_its_connection_not_our_writer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "FRAME_WRITE_CAP_S", 1.0)
    async with pair() as (alice, bob, _):
        conn = alice.connections(bob)[0].muxed_conn
        # Bob's end reads no more: as a process that is stopped.
        stream = await conn.open_stream()
        async with bob.connections(alice)[0].muxed_conn.secured_conn.conn.conn.stream.read_lock:
            stream.send_window = 1 << 40
            with pytest.raises(ConnectionClosedError, match="taken in time"), trio.fail_after(10):
                await stream.write(bytes(64 * MIB))
            await lab.until(lambda: not alice.connections(bob))


async def test_a_peer_that_ignores_its_window_is_cut() -> None:
    async with pair() as (alice, bob, _):
        kept = trio.Event()

        async def never_read(stream: Any) -> None:
            kept.set()
            await trio.sleep_forever()

        bob.host.set_stream_handler("/zs/test/never", never_read)
        stream = await alice.host.new_stream(bob.peer, ["/zs/test/never"])
        await kept.wait()
        muxed = stream.muxed_stream
        sent, body = 0, bytes(32 * KIB)
        with trio.fail_after(20), contextlib.suppress(ConnectionClosedError, RawConnError):
            while sent < 16 * MIB and alice.connections(bob):
                await muxed.conn._write_frame(
                    lab.frame(yamux.TYPE_DATA, 0, muxed.stream_id, len(body), body)
                )
                sent += len(body)
        await lab.until(lambda: not bob.connections(alice), timeout_s=3)


async def test_a_reader_of_an_overrun_stream_does_not_pay_the_peers_debt() -> None:
    async with pair() as (alice, bob, _):
        held: list[int] = []

        async def sip(stream: Any) -> None:
            while True:
                await stream.read(1 * KIB)
                held.append(
                    len(stream.muxed_conn.stream_buffers.get(stream.muxed_stream.stream_id, b""))
                )
                await trio.sleep(0.002)

        bob.host.set_stream_handler("/zs/test/sip", sip)
        stream = await alice.host.new_stream(bob.peer, ["/zs/test/sip"])
        muxed = stream.muxed_stream
        body = bytes(16 * KIB)
        with trio.move_on_after(10), contextlib.suppress(ConnectionClosedError):
            while alice.connections(bob):
                await muxed.conn._write_frame(
                    lab.frame(yamux.TYPE_DATA, 0, muxed.stream_id, len(body), body)
                )
        await lab.until(lambda: not bob.connections(alice), timeout_s=2)
        assert max(held) <= streams.WINDOW_BYTES_MAX + streams.OVERRUN_BYTES_MAX + 64 * KIB


async def test_an_honest_upload_is_not_cut() -> None:
    async with pair() as (alice, bob, sizes):
        before = alice.connections(bob)
        stream = await alice.host.new_stream(bob.peer, [SINK])
        with trio.fail_after(30):
            for _ in range(50):
                await stream.write(bytes(1 * MIB))
            await stream.close()
            await lab.until(lambda: sizes[0] == 50 * MIB, timeout_s=30)
        assert alice.connections(bob) == before
        window = max(
            (s.target_recv_window for s in before[0].muxed_conn.streams.values()), default=0
        )
        assert window <= 1 * MIB


async def test_mplex_is_not_spoken() -> None:
    node = lab.build(listen=())
    offered = node.network.upgrader.muxer_multistream.transports
    assert [str(protocol) for protocol in offered] == ["/yamux/1.0.0"]


async def test_streams_above_the_cap_are_reset_and_the_rest_still_served() -> None:
    async with (
        lab.running() as evil,
        lab.running() as friend,
        lab.running(streams_per_peer_max=8) as victim,
    ):
        open_now: set[int] = set()
        most = 0

        async def hold(stream: Any) -> None:
            nonlocal most
            open_now.add(id(stream))
            most = max(most, len(open_now))
            try:
                await stream.read(1)
            except StreamError:
                pass
            finally:
                open_now.discard(id(stream))

        victim.host.set_stream_handler("/zs/test/hold", hold)
        await evil.dial(victim)
        await friend.dial(victim)
        held, refused = [], 0
        for _ in range(40):
            try:
                with trio.fail_after(5):
                    held.append(await evil.host.new_stream(victim.peer, ["/zs/test/hold"]))
            except Exception:
                refused += 1
        assert most <= 8
        assert refused >= 32
        assert len(victim.faults) >= 32
        await friend.ping(victim)
        for stream in held:
            await close_stream(stream)
        await lab.until(lambda: not open_now)
        await evil.ping(victim)
