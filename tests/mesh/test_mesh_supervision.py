from __future__ import annotations

import os

import pytest
import trio
from mesh_nodes import (
    ECHO,
    FRAME_MAX,
    LOOPBACK,
    connected,
    echo,
    make_mesh,
    open_patiently,
    start,
    until,
)

from zerostate_node.errors import Busy, ConfigError, Unavailable
from zerostate_node.mesh.mesh import Libp2pMesh
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.ports.mesh import Heard
from zerostate_node.units import PeerId

TOPIC = "/zerostate/test/nodes/1/0"


async def crash() -> None:
    raise RuntimeError("a defect of libp2p")


def kill_libp2p(mesh: Libp2pMesh) -> None:
    """What a bug in one of the library's services does: an exception in its own nursery."""
    assert mesh._life is not None
    mesh._life.pubsub.manager.run_task(crash)


async def test_libp2p_dies_and_the_mesh_comes_back_as_it_was(nursery: trio.Nursery) -> None:
    server = make_mesh(listen=LOOPBACK)
    server.handle(ECHO, echo, frame_bytes_max=FRAME_MAX)
    heard: list[Heard] = []
    told: list[tuple[PeerId, bool]] = []
    server.on_peer(lambda peer, up: told.append((peer, up)))

    async def collect() -> None:
        async for message in server.subscribe(TOPIC):
            heard.append(message)

    nursery.start_soon(collect)
    await start(nursery, server)
    before = server.status()
    client = make_mesh(bootstrap=before.listen_addrs)
    await start(nursery, client)
    await connected(client, server.peer)
    link = await open_patiently(client, server.peer)
    served_here = await open_patiently(client, server.peer)
    await link.send(b"before")
    assert await link.receive() == b"before"

    kill_libp2p(server)
    with trio.fail_after(10), pytest.raises(Unavailable) as caught:
        await link.receive()
    assert caught.value.code == "closed"
    with trio.fail_after(10), pytest.raises(Unavailable):
        await served_here.receive()

    await until(lambda: server.status().restarts == 1 and server.status().up, "the restart")
    after = server.status()
    assert after.listen_addrs == before.listen_addrs
    assert "a defect of libp2p" in after.last_error
    again = await open_patiently(client, server.peer)
    await again.send(b"after")
    with trio.fail_after(10):
        assert await again.receive() == b"after"
    assert told == [(client.peer, True), (client.peer, False), (client.peer, True)]

    def subscribed() -> bool:
        life = client._life
        return life is not None and bool(life.pubsub.peer_topics.get(TOPIC))

    await until(subscribed, "the subscription to be told again")
    await client.publish(TOPIC, b"after")
    await until(lambda: [message.data for message in heard] == [b"after"], "gossip after it")


async def test_a_mesh_that_crashes_again_and_again_does_not_take_the_node_down(
    nursery: trio.Nursery,
) -> None:
    mesh = make_mesh(listen=LOOPBACK)
    await start(nursery, mesh)
    for restarts in range(1, 4):
        await until(lambda: mesh.status().up, "the mesh to be up")
        kill_libp2p(mesh)
        await until(lambda n=restarts: mesh.status().restarts == n, f"restart {restarts}")
    await until(lambda: mesh.status().up, "the mesh to be up")


async def test_a_taken_port_at_the_first_start_is_named(nursery: trio.Nursery) -> None:
    first = make_mesh(listen=LOOPBACK)
    await start(nursery, first)
    taken = first.status().listen_addrs[0].split("/p2p/")[0]
    with pytest.raises(Busy) as caught:
        await make_mesh(listen=(taken,)).run()
    assert caught.value.code == "port_taken"
    assert taken in caught.value.message
    assert caught.value.hint
    assert first.status().up


async def test_a_stopped_mesh_frees_its_port_at_once(nursery: trio.Nursery) -> None:
    key = os.urandom(32)
    listen = LOOPBACK
    for _ in range(3):
        mesh = make_mesh(key, listen=listen)
        stop = await start(nursery, mesh)
        listen = (mesh.status().listen_addrs[0].split("/p2p/")[0],)
        await stop()


async def test_the_peer_id_is_that_of_the_key_and_stays(nursery: trio.Nursery) -> None:
    key = os.urandom(32)
    assert make_mesh(key).peer == make_mesh(key).peer
    assert make_mesh(key).peer.startswith("12D3KooW")


@pytest.mark.parametrize(
    "wrong",
    [
        {"listen": ("/ip4/300.0.0.1/tcp/1",)},
        {"listen": ("/dns4/example.org/tcp/1",)},
        {"bootstrap": ("/ip4/127.0.0.1/tcp/4001",)},
        {"relays": ("/ip4/127.0.0.1/udp/4001/quic-v1",)},
        {"announce": ("nonsense",)},
        {"network": "Not A Name"},
        {"relay_use": "sometimes"},
        {"connections_max": 0},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        MeshSettings(**wrong)  # type: ignore[arg-type]
    value = next(iter(wrong.values()))
    shown = value[0] if isinstance(value, tuple) else value
    assert str(shown) in caught.value.message


async def test_a_node_without_listen_address_starts(nursery: trio.Nursery) -> None:
    mesh = make_mesh()
    await start(nursery, mesh)
    status = mesh.status()
    assert status.up
    assert status.listen_addrs == ()
