from __future__ import annotations

import contextlib
import os
from typing import Any

import mesh_hardening_lab as lab
import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.stream.exceptions import StreamError
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol

from zerostate_node.errors import ConductError
from zerostate_node.mesh.hardening import guard

BREAKS = "/zs/test/breaks"
ENDINGS = ("close", "reset", "leave")
PAYLOADS = (
    b"",
    b"\x00",
    b"\xff" * 10,
    b"\xff" * 11,
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x05\x0a\xff\xff\xff\x7f",
    b"\x04\x12\x02\xff\xfe",
    lab.rpc(os.urandom(300)),
    os.urandom(2_000),
)


async def test_an_exception_that_leaves_a_handler_ends_one_stream_and_is_told() -> None:
    async with lab.running() as victim, lab.running() as evil:

        async def breaks(stream: Any) -> None:
            await stream.read(1)
            async with trio.open_nursery():
                raise ValueError("what a peer sent")

        victim.host.set_stream_handler(BREAKS, breaks)  # after guard_all: future handlers too
        await evil.dial(victim)
        for _ in range(3):
            stream = await evil.host.new_stream(victim.peer, [BREAKS])
            await stream.write(b"x")
            with pytest.raises(StreamError), trio.fail_after(5):
                await stream.read(1)
        await evil.ping(victim)
        assert [(peer, protocol) for peer, protocol, _ in victim.faults] == [
            (str(evil.peer), BREAKS)
        ] * 3
        assert all(isinstance(error, ValueError) for _, _, error in victim.faults)


async def test_a_fault_callback_that_raises_ends_nothing() -> None:
    def broken(*_fault: object) -> None:
        raise RuntimeError("in the callback")

    async def breaks(stream: Any) -> None:
        await stream.read(1)
        raise ValueError("what a peer sent")

    async with lab.running(on_fault=broken) as victim, lab.running() as evil:
        victim.host.set_stream_handler(BREAKS, breaks)
        await evil.dial(victim)
        stream = await evil.host.new_stream(victim.peer, [BREAKS])
        await stream.write(b"x")
        await evil.ping(victim)


async def test_a_peer_that_leaves_in_mid_sentence_is_no_fault() -> None:
    async with lab.running() as victim:
        started = trio.Event()

        async def listens(stream: Any) -> None:
            started.set()
            await stream.read(1)

        victim.host.set_stream_handler(BREAKS, listens)
        async with lab.running(listen=()) as guest:
            await guest.dial(victim)
            await guest.host.new_stream(victim.peer, [BREAKS])
            await started.wait()
        await lab.until(lambda: not victim.network.get_connections(guest.peer))
        assert victim.faults == []


async def test_a_guarded_handler_can_be_cancelled() -> None:
    async with lab.running() as node, lab.running() as other:
        await node.dial(other)
        stream = await node.host.new_stream(other.peer, ["/ipfs/ping/1.0.0"])

        async def waits(_stream: Any) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("on the way out")

        faults: list[BaseException] = []
        guarded = guard(waits, lambda _peer, _protocol, error: faults.append(error))
        with trio.move_on_after(0.05) as scope:
            await guarded(stream)
        assert scope.cancelled_caught
        assert [type(error) for error in faults] == [ValueError]


async def test_bytes_that_are_no_text_in_a_negotiation_end_nothing() -> None:
    async with lab.running() as victim, lab.running() as evil:
        await evil.dial(victim)
        for line in (b"\xff\xfe\n", b"\n", b"no end", b"x" * 5_000 + b"\n", b"ls\n"):
            stream = await evil.network.new_stream(victim.peer)
            await stream.write(lab.rpc(b"/multistream/1.0.0\n") + lab.rpc(line))
        await evil.ping(victim)


async def test_a_negotiation_line_has_a_bound() -> None:
    async with lab.running() as victim, lab.running() as evil:
        await evil.dial(victim)
        stream = await evil.network.new_stream(victim.peer)
        await stream.write(lab.rpc(b"/multistream/1.0.0\n") + b"\xff\xff\xff\x7f" + bytes(4_000))
        with trio.fail_after(3), pytest.raises(StreamError):  # noqa: PT012
            while True:  # the stream is reset well before the negotiation's time is over
                await stream.read(100)


@pytest.mark.parametrize("way", ["answered", "pushed"])
@pytest.mark.parametrize(("count", "taken"), [(10, True), (20_000, False)])
async def test_what_a_peer_says_about_itself_has_a_bound(way: str, count: int, taken: bool) -> None:
    message = Identify(protocols=[f"/zs/test/{n}" for n in range(count)]).SerializeToString()
    assert (len(message) < 32_000) == taken
    async with lab.running() as victim, lab.running(hardened=False) as evil:

        async def boast(stream: Any) -> None:
            with contextlib.suppress(StreamError):
                await stream.write(lab.rpc(message))
                await stream.close()

        def known() -> list[str]:
            store = victim.host.get_peerstore()
            return list(store.get_protocols(evil.peer)) if store.has_peer(evil.peer) else []

        if way == "answered":
            evil.host.get_mux().add_handler("/ipfs/id/1.0.0", boast)
            await evil.dial(victim)
        else:
            await evil.dial(victim)
            await lab.until(lambda: evil.peer in victim.host._identified_peers)
            stream = await evil.host.new_stream(victim.peer, ["/ipfs/id/push/1.0.0"])
            await boast(stream)
        if taken:
            await lab.until(lambda: "/zs/test/9" in known())
        else:
            await victim.ping(evil)
            await lab.until(lambda: not victim.host._identify_inflight)
            await trio.sleep(0.3)
            assert len(known()) < 100


async def test_streams_above_the_cap_are_named_as_misconduct() -> None:
    async with lab.running(streams_per_peer_max=2) as victim, lab.running() as evil:
        await evil.dial(victim)
        for _ in range(6):
            await evil.network.new_stream(victim.peer)  # never says what it wants
        await lab.until(lambda: len(victim.faults) >= 4)
        assert all(isinstance(error, ConductError) for _, _, error in victim.faults)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed_pubsub", "guards_alone"])
async def test_garbage_on_every_built_in_protocol_leaves_the_host_answering(fixed: bool) -> None:
    async with (
        lab.running(gossip=True, fixed=fixed) as victim,
        lab.running() as evil,
        lab.running() as friend,
    ):
        relay = CircuitV2Protocol(victim.host, allow_hop=True)
        for protocol, handler in (
            ("/libp2p/circuit/relay/0.2.0/hop", relay._handle_hop_stream),
            ("/libp2p/circuit/relay/0.2.0/stop", relay._handle_stop_stream),
        ):
            victim.host.set_stream_handler(protocol, handler)
        await victim.pubsub.subscribe("zs/test")
        await evil.dial(victim)
        await friend.dial(victim)
        protocols = [str(p) for p in victim.host.get_mux().get_protocols()]
        assert len(protocols) >= 6
        gate = trio.CapacityLimiter(8)

        async def case(protocol: str, payload: bytes, ending: str) -> None:
            async with gate:
                with trio.move_on_after(3):
                    try:
                        stream = await evil.host.new_stream(victim.peer, [protocol])
                        await stream.write(payload)
                        if ending != "leave":
                            await getattr(stream, ending)()
                    except Exception:
                        return  # refused: as good

        async with trio.open_nursery() as nursery:
            for protocol in protocols:
                for number, payload in enumerate(PAYLOADS):
                    for ending in (ENDINGS[number % 3], ENDINGS[(number + 1) % 3]):
                        nursery.start_soon(case, protocol, payload, ending)
        await friend.ping(victim)
        assert victim.pubsub.manager.is_running
