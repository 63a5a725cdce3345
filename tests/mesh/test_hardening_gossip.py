from __future__ import annotations

import os
from typing import Any

import mesh_hardening_lab as lab
import trio
from libp2p import generate_new_ed25519_identity
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from multiaddr import Multiaddr

from zerostate_node.mesh.hardening.gossip import (
    CONTROL_IDS_MAX,
    SEEN_IDS_MAX,
    SeenIds,
    trim_control,
)

TOPIC = "zs/test"


async def subscribed(*nodes: lab.Node) -> list[Any]:
    """Subscribe all nodes to the topic and wait until each knows it of its neighbours."""
    subscriptions = [await node.pubsub.subscribe(TOPIC) for node in nodes]
    for node in nodes:
        for other in nodes:
            if other is not node and node.connections(other):
                await node.pubsub.wait_for_subscription(other.peer, TOPIC)
                await node.pubsub.wait_for_mesh(other.peer, TOPIC)
    return subscriptions


async def heard(subscription: Any, count: int, *, timeout_s: float = 10.0) -> set[bytes]:
    """Gather up to `count` different messages within the time."""
    got: set[bytes] = set()
    with trio.move_on_after(timeout_s):
        while len(got) < count:
            got.add((await subscription.get()).data)
    return got


def signed(key: Any, data: bytes, *, topics: tuple[str, ...] = (TOPIC,), seqno: int = 1) -> Any:
    from libp2p.peer.id import ID

    message = rpc_pb2.Message(
        data=data,
        topicIDs=list(topics),
        from_id=ID.from_pubkey(key.public_key).to_bytes(),
        seqno=seqno.to_bytes(8, "big"),
    )
    message.signature = key.private_key.sign(
        PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    )
    message.key = key.public_key.serialize()
    return message


async def send_rpc(evil: lab.Node, victim: lab.Node, *messages: bytes) -> None:
    stream = await evil.host.new_stream(victim.peer, [lab.MESHSUB])
    for message in messages:
        await stream.write(lab.rpc(message))


async def test_a_malformed_rpc_ends_neither_host_nor_pubsub_and_is_told() -> None:
    async with (
        lab.running(gossip=True) as victim,
        lab.running(gossip=True) as friend,
        lab.running() as evil,
    ):
        await evil.dial(victim)
        for garbage in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\x7f", b"\x12\x05ab", os.urandom(200)):
            await send_rpc(evil, victim, garbage)
        await lab.until(lambda: len(victim.faults) >= 2)
        assert {peer for peer, _, _ in victim.faults} == {str(evil.peer)}
        await friend.dial(victim)
        _, ours = await subscribed(friend, victim)
        await friend.pubsub.publish(TOPIC, b"still here")
        assert await heard(ours, 1) == {b"still here"}


async def test_a_key_that_does_not_parse_ends_nothing_and_counts_as_forged() -> None:
    async with lab.running(gossip=True) as victim, lab.running() as evil:
        await evil.dial(victim)
        await victim.pubsub.subscribe(TOPIC)
        message = signed(generate_new_ed25519_identity(), b"x")
        message.from_id = b"\x12\x20" + os.urandom(32)  # a digest: the key must come from `key`
        message.key = b"\xff" * 40
        await send_rpc(evil, victim, rpc_pb2.RPC(publish=[message]).SerializeToString())
        await lab.until(lambda: victim.forgers)
        assert victim.forgers == [str(evil.peer)]
        await evil.ping(victim)
        assert victim.pubsub.manager.is_running


async def test_forged_signatures_are_counted_against_the_forwarder() -> None:
    async with lab.running(gossip=True) as victim, lab.running() as evil:
        await evil.dial(victim)
        subscription = await victim.pubsub.subscribe(TOPIC)
        author = generate_new_ed25519_identity()
        messages = [signed(author, b"%d" % n, seqno=n) for n in range(20)]
        for message in messages:
            message.data += b" forged"
        messages.append(signed(author, b"genuine", seqno=99))
        await send_rpc(evil, victim, rpc_pb2.RPC(publish=messages).SerializeToString())
        assert await heard(subscription, 1) == {b"genuine"}
        await lab.until(lambda: len(victim.forgers) >= 20)
        assert victim.forgers == [str(evil.peer)] * 20


async def test_a_validator_that_raises_rejects_and_ends_nothing() -> None:
    async with lab.running(gossip=True) as victim, lab.running(gossip=True) as friend:

        def picky(_peer: Any, message: Any) -> bool:
            return bool(int(message.data) % 2)

        victim.pubsub.set_topic_validator(TOPIC, picky, False)
        await friend.dial(victim)
        _, ours = await subscribed(friend, victim)
        for data in (b"not a number", b"2", b"3"):
            await friend.pubsub.publish(TOPIC, data)
        assert await heard(ours, 2, timeout_s=1.5) == {b"3"}


async def test_a_burst_of_200_messages_arrives_whole_over_two_hops() -> None:
    async with (
        lab.running(gossip=True) as alice,
        lab.running(gossip=True) as bob,
        lab.running(gossip=True) as carol,
    ):
        await alice.dial(bob)
        await bob.dial(carol)
        *_, ours = await subscribed(alice, bob, carol)
        messages = {b"%d" % n for n in range(200)}
        for message in messages:
            await alice.pubsub.publish(TOPIC, message)
        assert await heard(ours, 200, timeout_s=15) == messages


async def test_a_node_that_restarts_is_heard_at_once() -> None:
    key = generate_new_ed25519_identity()
    async with lab.running(gossip=True) as bob:
        ours = await bob.pubsub.subscribe(TOPIC)
        for life in range(2):
            async with lab.running(gossip=True, key=key) as alice:
                await alice.dial(bob)
                await subscribed(alice, bob)
                messages = {b"life %d message %d" % (life, n) for n in range(30)}
                for message in messages:
                    await alice.pubsub.publish(TOPIC, message)
                assert await heard(ours, 30, timeout_s=4) == messages
            await lab.until(lambda: not bob.network.get_connections(alice.peer))


async def test_prune_makes_us_dial_nobody() -> None:
    async with lab.running(gossip=True) as victim, lab.running() as evil:
        dialled: list[trio.SocketStream] = []

        async def trap(stream: trio.SocketStream) -> None:
            dialled.append(stream)

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, trap, 0)
            port = listeners[0].socket.getsockname()[1]
            bait = lab.build(listen=())
            victim.host.get_peerstore().add_addrs(
                bait.peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")], 600
            )
            await evil.dial(victim)
            await victim.pubsub.subscribe(TOPIC)
            message = rpc_pb2.RPC()
            prune = message.control.prune.add(topicID=TOPIC, backoff=1)
            prune.peers.add(peerID=bait.peer.to_bytes())
            await send_rpc(evil, victim, message.SerializeToString())
            router = victim.pubsub.router
            await lab.until(lambda: evil.peer in router.back_off.get(TOPIC, {}))
            await trio.sleep(0.3)
            assert dialled == []
            nursery.cancel_scope.cancel()


async def test_topics_that_are_not_ours_leave_no_trace() -> None:
    async with lab.running(gossip=True) as victim, lab.running() as evil:
        await evil.dial(victim)
        subscription = await victim.pubsub.subscribe(TOPIC)
        author = generate_new_ed25519_identity()
        message = rpc_pb2.RPC(
            publish=[
                signed(author, b"many", topics=(TOPIC, *(f"t{n}" for n in range(500))), seqno=1),
                signed(author, b"one", seqno=2),
            ]
        )
        for n in range(500):
            message.control.prune.add(topicID=f"p{n}", backoff=2**60)
            message.control.graft.add(topicID=f"g{n}")
            message.control.ihave.add(topicID=f"i{n}").messageIDs.append(bytes(20))
        await send_rpc(evil, victim, message.SerializeToString())
        assert await heard(subscription, 1) == {b"one"}
        router = victim.pubsub.router
        await trio.sleep(0.3)
        tables = (router.back_off, router.time_since_last_publish, router.fanout)
        assert all(len(table) <= 1 for table in tables)
        assert sum(map(len, router.ihave_message_limits.values())) <= 1
        assert sum(map(len, router.graft_flood_tracking.values())) <= 1
        assert sum(map(len, router.recent_message_deliveries.values())) == 0


def test_control_messages_are_trimmed_to_our_topics_and_bounds() -> None:
    message = rpc_pb2.RPC()
    for n in range(3):
        ihave = message.control.ihave.add(topicID=TOPIC if n else "other")
        ihave.messageIDs.extend(b"%08x" % n for n in range(CONTROL_IDS_MAX))
    for _ in range(3_000):
        message.control.iwant.add().messageIDs.append(b"id")
    message.control.graft.add(topicID=TOPIC)
    message.control.prune.add(topicID="other")
    trim_control(message.control, {TOPIC})
    assert [ihave.topicID for ihave in message.control.ihave] == [TOPIC, TOPIC]
    assert [len(ihave.messageIDs) for ihave in message.control.ihave] == [CONTROL_IDS_MAX, 0]
    assert len(message.control.iwant) == 256
    assert [graft.topicID for graft in message.control.graft] == [TOPIC]
    assert not message.control.prune


def test_the_seen_cache_is_bounded_and_forgets_the_oldest_first() -> None:
    seen = SeenIds(ids_max=100)
    assert all(seen.add(b"%d" % n) for n in range(250))
    assert not seen.add(b"249")
    assert seen.length() == 100
    assert not seen.has(b"149")
    assert seen.has(b"150")
    assert SeenIds(ttl_s=-1).add(b"x")


async def test_the_seen_cache_in_use_is_the_bounded_one() -> None:
    node = lab.build(gossip=True, listen=())
    for n in range(SEEN_IDS_MAX + 1_000):
        node.pubsub.seen_messages.add(b"%d" % n)
    assert node.pubsub.seen_messages.length() == SEEN_IDS_MAX
