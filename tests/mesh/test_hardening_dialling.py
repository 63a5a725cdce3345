from __future__ import annotations

import mesh_hardening_lab as lab
import pytest
import trio
from libp2p import generate_new_ed25519_identity
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from zerostate_node.errors import Unavailable
from zerostate_node.mesh import hardening

DEAD = "/ip4/127.0.0.1/tcp/1"


async def test_a_live_address_behind_dead_ones_is_found_quickly() -> None:
    async with lab.running() as alice, lab.running() as bob:
        black_hole = "/ip4/127.0.0.1/tcp/{}".format
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, never_answers, 0)
            silent = black_hole(listeners[0].socket.getsockname()[1])
            started = trio.current_time()
            await hardening.dial_all(
                alice.host, bob.peer, [DEAD, silent, f"{DEAD}/ws", bob.addr], timeout_s=10
            )
            took_s = trio.current_time() - started
            nursery.cancel_scope.cancel()
        assert took_s < 2
        await alice.ping(bob)


async def never_answers(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_a_failed_dial_names_each_address_and_its_reason() -> None:
    async with lab.running() as alice, lab.running() as bob:
        stranger = lab.build(listen=())
        other = f"{DEAD}/p2p/{bob.peer}"
        plain = bob.addr.partition("/p2p/")[0]
        relayed = f"{bob.addr}/p2p-circuit/p2p/{stranger.peer}"
        with pytest.raises(Unavailable) as raised:
            await hardening.dial_all(
                alice.host, stranger.peer, [DEAD, other, plain, relayed, "rubbish"], timeout_s=5
            )
        message = str(raised.value)
        assert raised.value.code == "unreachable"
        for addr, why in (
            (DEAD, "refused"),
            (other, "names another peer"),
            (plain, "peer id"),
            (relayed, "relay"),
            ("rubbish", ""),
        ):
            assert f"{addr}: " in message
            assert why in message.partition(f"{addr}: ")[2].partition(";")[0]
        with pytest.raises(Unavailable, match="no addresses"):
            await hardening.dial_all(alice.host, stranger.peer, [], timeout_s=5)


async def test_a_failed_dial_is_not_held_against_the_peer() -> None:
    async with lab.running() as alice:
        key = generate_new_ed25519_identity()
        peer = ID.from_pubkey(key.public_key)
        with pytest.raises(Unavailable):
            await hardening.dial_all(alice.host, peer, [DEAD], timeout_s=5)
        alice.network._negative_peer_cache.mark_failed(str(peer))
        async with lab.running(key=key) as bob:
            await alice.dial(bob)
            assert not alice.network._negative_peer_cache.is_blocked(str(peer))


async def test_a_dial_ends_in_time_when_nothing_answers() -> None:
    async with lab.running() as alice, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, never_answers, 0)
        silent = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
        stranger = lab.build(listen=())
        with trio.fail_after(3), pytest.raises(Unavailable, match="no answer in 1 s"):
            await hardening.dial_all(alice.host, stranger.peer, [silent], timeout_s=1)
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_there_is_not_dialled_again() -> None:
    async with lab.running() as alice, lab.running() as bob:
        await alice.dial(bob)
        before = alice.connections(bob)
        await hardening.dial_all(alice.host, bob.peer, [DEAD], timeout_s=5)
        assert alice.connections(bob) == before


async def test_a_denied_network_is_not_dialled() -> None:
    config = hardening.connection_config(max_connections=8, deny_cidrs=["127.0.0.0/8"])
    async with lab.running(config=config) as alice, lab.running() as bob:
        with pytest.raises(Unavailable, match="deny list"):
            await alice.dial(bob)


async def test_a_dial_takes_no_quarter_of_a_second() -> None:
    async with lab.running() as alice, lab.running() as bob:
        alice.host.get_peerstore().add_addrs(bob.peer, [Multiaddr(bob.addr)], 60)
        times_s = []
        for _ in range(3):  # libp2p dials by itself when a stream is opened
            started = trio.current_time()
            await alice.network.dial_peer(bob.peer)
            times_s.append(trio.current_time() - started)
            await alice.network.close_peer(bob.peer)
            await lab.until(lambda: not bob.connections(alice))
        assert min(times_s) < 0.2


async def test_a_peer_that_froze_is_noticed() -> None:
    config = hardening.connection_config(
        max_connections=8, health_interval_s=0.5, health_timeout_s=1.0
    )
    async with lab.running(config=config) as alice, lab.running() as bob:
        await alice.dial(bob)
        conn = bob.connections(alice)[0].muxed_conn
        async with conn.secured_conn.conn.conn.stream.read_lock:  # reads no more, says nothing
            await lab.until(lambda: not alice.connections(bob), timeout_s=8)


async def test_a_host_dials_nobody_by_itself() -> None:
    config = hardening.connection_config()
    assert (config.min_connections, config.low_watermark) == (0, 0)
    assert config.inbound_upgrade_timeout == config.outbound_upgrade_timeout == 4
    assert config.enable_health_monitoring
    assert config.abort_connection_on_ping_failure
