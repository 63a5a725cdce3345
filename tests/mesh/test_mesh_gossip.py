from __future__ import annotations

import os

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from mesh_nodes import LOOPBACK, connected, make_mesh, start, until

import zerostate_node.mesh.gossip as gossip_module
from zerostate_node.mesh.mesh import Libp2pMesh
from zerostate_node.ports.mesh import Heard

TOPIC = "/zerostate/test/work/1/0"


def listen_to(nursery: trio.Nursery, mesh: Libp2pMesh, topic: str = TOPIC) -> list[Heard]:
    got: list[Heard] = []
    subscription = mesh.subscribe(topic)

    async def collect() -> None:
        async for heard in subscription:
            got.append(heard)

    nursery.start_soon(collect)
    return got


async def meshed(mesh: Libp2pMesh, others: int, topic: str = TOPIC) -> None:
    """Wait until gossip of a topic has somebody to go to."""

    def ready() -> bool:
        life = mesh._life
        return life is not None and len(life.pubsub.peer_topics.get(topic, ())) >= others

    await until(ready, f"{others} neighbours on {topic}")


async def grafted(mesh: Libp2pMesh, others: int, topic: str = TOPIC) -> None:
    """Wait until messages of a topic are passed on at once, and not with the next heartbeat."""

    def ready() -> bool:
        life = mesh._life
        return life is not None and len(life.router.mesh.get(topic, ())) >= others

    await until(ready, f"{others} grafted on {topic}")


async def test_gossip_reaches_all_of_five_nodes_once_and_not_its_author(
    nursery: trio.Nursery,
) -> None:
    hub = make_mesh(listen=LOOPBACK)
    await start(nursery, hub)
    meshes = [hub]
    for _ in range(4):
        # Each knows only the one before it, so that messages must be relayed.
        previous = meshes[-1].status().listen_addrs
        mesh = make_mesh(listen=LOOPBACK, bootstrap=previous, peers_target=1)
        await start(nursery, mesh)
        await connected(mesh, meshes[-1].peer)
        meshes.append(mesh)
    inboxes = [listen_to(nursery, mesh) for mesh in meshes]
    for mesh in meshes:
        await grafted(mesh, 1 if mesh in (meshes[0], meshes[-1]) else 2)
    for number, mesh in enumerate(meshes):
        assert await mesh.publish(TOPIC, b"from %d" % number)
    await until(lambda: all(len(inbox) >= 4 for inbox in inboxes), "everybody to hear")
    for number, inbox in enumerate(inboxes):
        expected = {b"from %d" % other for other in range(5) if other != number}
        assert {heard.data for heard in inbox} == expected
        assert len(inbox) == 4
    assert {heard.forwarder for heard in inboxes[0]} == {meshes[1].peer}


async def test_the_budget_for_publishing_is_kept(nursery: trio.Nursery) -> None:
    mesh = make_mesh(listen=LOOPBACK, gossip_per_s=2.0)
    await start(nursery, mesh)
    sent = [await mesh.publish(TOPIC, b"x%d" % n) for n in range(20)]
    assert sent[:4] == [True] * 4
    assert sent.count(True) <= 5
    assert mesh.status().gossip_dropped == sent.count(False)
    with pytest.raises(ValueError, match="at most"):
        await mesh.publish(TOPIC, b"x" * (gossip_module.PAYLOAD_BYTES_MAX + 1))


async def test_publishing_on_a_mesh_that_is_down_is_no_error() -> None:
    assert await make_mesh().publish(TOPIC, b"into the void") is False


async def test_a_node_that_restarts_within_seconds_of_publishing_is_heard(
    nursery: trio.Nursery,
) -> None:
    listener = make_mesh(listen=LOOPBACK)
    await start(nursery, listener)
    inbox = listen_to(nursery, listener)
    key = os.urandom(32)
    for life in range(2):
        author = make_mesh(key, bootstrap=listener.status().listen_addrs, gossip_per_s=100.0)
        stop = await start(nursery, author)
        await connected(author, listener.peer)
        await meshed(author, 1)
        for number in range(60):
            assert await author.publish(TOPIC, b"%d/%d" % (life, number))
        await until(lambda life=life: len(inbox) == 60 * (life + 1), f"life {life} to be heard")
        await stop()


async def test_a_slow_listener_loses_the_newest_and_it_is_counted(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip_module, "SUBSCRIBER_MESSAGES_MAX", 5)
    listener = make_mesh(listen=LOOPBACK)
    await start(nursery, listener)
    slow = listener.subscribe(TOPIC)
    author = make_mesh(bootstrap=listener.status().listen_addrs, gossip_per_s=100.0)
    await start(nursery, author)
    await meshed(author, 1)
    for number in range(20):
        await author.publish(TOPIC, b"%d" % number)
    await until(lambda: listener.status().gossip_heard == 20, "all to arrive")
    assert listener.status().gossip_dropped == 15
    first = [(await slow.__anext__()).data for _ in range(5)]
    assert set(first) <= {b"%d" % number for number in range(20)}
    await slow.aclose()
    assert [heard async for heard in slow] == []


async def hostile(nursery: trio.Nursery, victim: Libp2pMesh) -> Libp2pMesh:
    attacker = make_mesh(bootstrap=victim.status().listen_addrs, gossip_per_s=1000.0)
    await start(nursery, attacker)
    await connected(attacker, victim.peer)
    await meshed(attacker, 1)
    return attacker


async def test_forged_signatures_cost_their_forwarder_its_connection(
    nursery: trio.Nursery,
) -> None:
    victim = make_mesh(listen=LOOPBACK)
    await start(nursery, victim)
    inbox = listen_to(nursery, victim)
    attacker = await hostile(nursery, victim)
    assert attacker._life is not None
    author = make_mesh()
    for number in range(gossip_module.FORGED_MAX):
        message = rpc_pb2.Message(
            data=b"forged %d" % number,
            topicIDs=[TOPIC],
            from_id=author._key_pair.public_key.serialize(),
            seqno=number.to_bytes(8, "big"),
            signature=os.urandom(64),
        )
        rpc = rpc_pb2.RPC(publish=[message])
        await attacker._life.pubsub.message_all_peers(rpc.SerializeToString())
    await until(
        lambda: not any(p.connected for p in victim.peers() if p.peer == attacker.peer),
        "the forger to be dropped",
    )
    assert inbox == []
    assert victim.status().gossip_dropped == gossip_module.FORGED_MAX
    assert victim._book.banned(attacker.peer, now_ms=victim._now_ms())


async def test_a_flood_is_cut_to_its_rate_and_then_dropped(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip_module, "OVER_MAX", 100)
    victim = make_mesh(listen=LOOPBACK, gossip_forwarder_per_s=5.0)
    await start(nursery, victim)
    inbox = listen_to(nursery, victim)
    attacker = await hostile(nursery, victim)
    for number in range(300):
        await attacker.publish(TOPIC, b"flood %d" % number)
    await until(
        lambda: not any(p.connected for p in victim.peers() if p.peer == attacker.peer),
        "the flooder to be dropped",
    )
    assert len(inbox) < 50
    assert victim.status().gossip_dropped >= 100


async def test_a_peer_whose_old_connection_outlives_its_restart_is_not_left_deaf(
    nursery: trio.Nursery,
) -> None:
    listener = make_mesh(listen=LOOPBACK)
    await start(nursery, listener)
    inbox = listen_to(nursery, listener)
    key = os.urandom(32)
    # The old life hangs on while the new one is up already, as after a crash or a lost network.
    old = make_mesh(key, bootstrap=listener.status().listen_addrs)
    stop = await start(nursery, old)
    await meshed(old, 1)
    new = make_mesh(key, bootstrap=listener.status().listen_addrs)
    await start(nursery, new)
    await connected(new, listener.peer)
    await stop()
    received = listen_to(nursery, new)
    await meshed(new, 1)
    assert await new.publish(TOPIC, b"up")
    await until(lambda: [heard.data for heard in inbox] == [b"up"], "the new life to be heard")

    def known() -> bool:
        life = listener._life
        return life is not None and bool(life.pubsub.peer_topics.get(TOPIC))

    await until(known, "its subscription to be known")
    assert await listener.publish(TOPIC, b"down")
    await until(lambda: [heard.data for heard in received] == [b"down"], "it to hear")


async def test_a_gossip_stream_that_breaks_is_opened_again_and_nothing_forgotten(
    nursery: trio.Nursery,
) -> None:
    hearer = make_mesh(listen=LOOPBACK)
    await start(nursery, hearer)
    inbox = listen_to(nursery, hearer)
    author = make_mesh(bootstrap=hearer.status().listen_addrs)
    await start(nursery, author)
    await meshed(author, 1)
    life = author._life
    assert life is not None
    [broken] = life.pubsub.peers.values()
    await broken.reset()

    def reopened() -> bool:
        return all(not stream.is_closed for stream in life.pubsub.peers.values())

    await until(lambda: life.pubsub.peers and reopened(), "a new stream")
    await meshed(author, 1)
    assert await author.publish(TOPIC, b"again")
    await until(lambda: [heard.data for heard in inbox] == [b"again"], "it to be heard")
