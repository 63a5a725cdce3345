from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeerId
from mesh_nodes import (
    ECHO,
    FRAME_MAX,
    LOOPBACK,
    PATIENCE_S,
    connected,
    echo,
    make_mesh,
    open_patiently,
    start,
    until,
)

import zerostate_node.mesh.relay as relay_module
from zerostate_node.errors import Unavailable
from zerostate_node.mesh.mesh import Libp2pMesh
from zerostate_node.ports.mesh import Link
from zerostate_node.units import KIB, MIB


async def hidden(nursery: trio.Nursery, relay: Libp2pMesh, key: bytes | None = None) -> Libp2pMesh:
    """A node that nobody can dial, with a place at the relay, serving echo."""
    mesh = make_mesh(key, relays=relay.status().listen_addrs)
    mesh.handle(ECHO, echo, frame_bytes_max=FRAME_MAX)
    await start(nursery, mesh)
    await until(lambda: mesh.status().relays == (relay.peer,), "the reservation")
    return mesh


async def visitor(nursery: trio.Nursery, relay: Libp2pMesh) -> Libp2pMesh:
    mesh = make_mesh(relays=relay.status().listen_addrs, relay_use="never", peers_target=0)
    await start(nursery, mesh)
    return mesh


async def serving(nursery: trio.Nursery, **settings: Any) -> Libp2pMesh:
    relay = make_mesh(listen=LOOPBACK, relay_serve=True, **settings)
    await start(nursery, relay)
    return relay


async def says(link: Link, word: bytes) -> bytes:
    with trio.fail_after(PATIENCE_S):
        await link.send(word)
        return await link.receive()


async def test_a_node_nobody_can_dial_is_reached_through_a_relay(nursery: trio.Nursery) -> None:
    relay = await serving(nursery)
    owner = await hidden(nursery, relay)
    [announced] = owner.status().announce_addrs
    assert announced == f"{relay.status().listen_addrs[0]}/p2p-circuit/p2p/{owner.peer}"

    # The third node knows the address alone: no relay is configured there.
    worker = make_mesh(peers_target=0)
    await start(nursery, worker)
    worker.learn(owner.peer, owner.status().announce_addrs, source="advert")
    link = await open_patiently(worker, owner.peer)
    assert link.limited
    assert await says(link, b"hello") == b"hello"
    big = os.urandom(4 * MIB)
    assert await says(link, big) == big
    for mesh, other in ((worker, owner), (owner, worker)):
        info = next(p for p in mesh.peers() if p.peer == other.peer)
        assert info.connected
        assert info.via == f"relay:{relay.peer}"


async def test_a_relay_that_dies_and_comes_back_is_reserved_and_used_again(
    nursery: trio.Nursery,
) -> None:
    key = os.urandom(32)
    relay = make_mesh(key, listen=LOOPBACK, relay_serve=True)
    stop = await start(nursery, relay)
    addrs = relay.status().listen_addrs
    owner = await hidden(nursery, relay)
    worker = await visitor(nursery, relay)
    link = await open_patiently(worker, owner.peer)
    assert await says(link, b"before") == b"before"

    await stop()
    with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable):
        await link.receive()
    await until(lambda: owner.status().relays == (), "the loss to be noticed")
    assert owner.status().announce_addrs == ()

    again = make_mesh(key, listen=(addrs[0].split("/p2p/")[0],), relay_serve=True)
    await start(nursery, again)
    await until(lambda: owner.status().relays == (again.peer,), "the new reservation", within_s=10)
    link = await open_patiently(worker, owner.peer)
    assert await says(link, b"after") == b"after"


async def test_circuits_of_one_node_end_alone(nursery: trio.Nursery) -> None:
    relay = await serving(nursery)
    owner = await hidden(nursery, relay)
    first, second = await visitor(nursery, relay), await visitor(nursery, relay)
    kept = await open_patiently(first, owner.peer)
    dropped = await open_patiently(second, owner.peer)
    assert await says(kept, b"one") == b"one"
    assert await says(dropped, b"two") == b"two"
    await second.drop(owner.peer)
    await until(
        lambda: not any(p.connected for p in owner.peers() if p.peer == second.peer),
        "the second circuit to end",
    )
    assert await says(kept, b"still") == b"still"


async def test_gossip_crosses_a_relay(nursery: trio.Nursery) -> None:
    topic = "/zerostate/test/work/1/0"
    relay = await serving(nursery)
    owner = await hidden(nursery, relay)
    subscription = owner.subscribe(topic)
    worker = await visitor(nursery, relay)
    await open_patiently(worker, owner.peer)

    def ready() -> bool:
        life = worker._life
        return life is not None and bool(life.pubsub.peer_topics.get(topic))

    await until(ready, "the subscription to be known")
    assert await worker.publish(topic, b"through the relay")
    with trio.fail_after(PATIENCE_S):
        heard = await subscription.__anext__()
    assert (heard.data, heard.forwarder) == (b"through the relay", worker.peer)


async def reserve_as(mesh: Libp2pMesh, relay: Libp2pMesh, name: bytes | None) -> int:
    assert mesh._life is not None
    request = HopMessage(type=HopMessage.RESERVE)
    if name is not None:
        request.peer.CopyFrom(CircuitPeerId(id=name))
    stream = await mesh._life.host.new_stream(ID.from_base58(relay.peer), [relay_module.HOP])
    await relay_module.write_delimited_msg(stream, request)
    answer = await relay_module.read_delimited_msg(stream, HopMessage)
    await stream.reset()
    return int(answer.status)


async def test_a_reservation_in_anothers_name_is_refused(nursery: trio.Nursery) -> None:
    relay = await serving(nursery)
    attacker = await visitor(nursery, relay)
    await attacker._reach.connect(attacker._up(), relay.peer, insist=True)
    made_up = ID.from_base58(make_mesh().peer).to_bytes()
    assert await reserve_as(attacker, relay, made_up) != 100
    assert await reserve_as(attacker, relay, None) == 100
    assert relay._life is not None
    assert len(relay._life.relay.resource_manager._reservations) == 1


async def test_reservations_past_the_cap_are_refused(nursery: trio.Nursery) -> None:
    relay = await serving(nursery, relay_reservations_max=2)
    await hidden(nursery, relay)
    await hidden(nursery, relay)
    late = await visitor(nursery, relay)
    await late._reach.connect(late._up(), relay.peer, insist=True)
    assert await reserve_as(late, relay, None) != 100


async def test_a_circuit_ends_at_its_byte_limit(nursery: trio.Nursery) -> None:
    relay = await serving(nursery, relay_circuit_bytes_max=256 * KIB)
    owner = await hidden(nursery, relay)
    worker = await visitor(nursery, relay)
    link = await open_patiently(worker, owner.peer)
    with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable):  # noqa: PT012
        while True:
            await link.send(b"x" * 32 * KIB)
            await link.receive()
    # Not for ever: the next circuit is a new one.
    again = await open_patiently(worker, owner.peer)
    assert await says(again, b"new circuit") == b"new circuit"


async def test_a_node_that_does_not_relay_gives_no_reservations(nursery: trio.Nursery) -> None:
    plain = make_mesh(listen=LOOPBACK)
    await start(nursery, plain)
    mesh = make_mesh(relays=plain.status().listen_addrs)
    await start(nursery, mesh)
    await connected(mesh, plain.peer)
    with pytest.raises(Unavailable) as caught:
        await relay_module.reserve(mesh._up().host, ID.from_base58(plain.peer))
    assert caught.value.code == "relay"
    assert mesh.status().relays == ()


async def test_a_node_that_can_be_dialled_does_not_take_a_place_at_a_relay(
    nursery: trio.Nursery,
) -> None:
    relay = await serving(nursery)
    open_node = make_mesh(
        listen=LOOPBACK, announce=("/ip4/8.8.8.8/tcp/4001",), relays=relay.status().listen_addrs
    )
    told = make_mesh(listen=LOOPBACK, relay_use="always", relays=relay.status().listen_addrs)
    await start(nursery, open_node)
    await start(nursery, told)
    await until(lambda: told.status().relays == (relay.peer,), "the one told always to reserve")
    assert open_node.status().relays == ()
    assert open_node.status().announce_addrs == (f"/ip4/8.8.8.8/tcp/4001/p2p/{open_node.peer}",)
