"""Dial every address of a peer, and the connection settings of a host of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from zerostate_node.errors import Unavailable

STAGGER_S = 0.1  # how long an address has before the next one is tried beside it
ADDRS_MAX = 32  # peers tell us addresses: more than this are not tried
REASON_CHARS_MAX = 160


async def dial_all(
    host: Any, peer_id: ID, addrs: Sequence[Multiaddr | str], *, timeout_s: float
) -> None:
    """
    Connect to a peer by whichever of its addresses answers first; return when connected.

    `host.connect` tries one address per transport and then refuses the peer for 60 s. Here every
    address is tried, each with a small head start over the next, and no failure is remembered.

    Raises:
        Unavailable: (code=unreachable) no address worked; the message names each and why.
    """
    network = host.get_network()
    network.unblock_peer(peer_id)
    if _connected(network, peer_id):
        return
    reasons: dict[str, str] = {}
    won: list[Any] = []
    with trio.move_on_after(timeout_s) as scope:
        async with trio.open_nursery() as nursery:
            for addr in list(dict.fromkeys(str(addr) for addr in addrs))[:ADDRS_MAX]:
                done = trio.Event()
                reasons[addr] = f"no answer in {timeout_s:g} s"
                nursery.start_soon(
                    _dial_one, network, peer_id, addr, reasons, won, done, nursery.cancel_scope
                )
                with trio.move_on_after(STAGGER_S):
                    await done.wait()
    network.unblock_peer(peer_id)
    if won or _connected(network, peer_id):
        return
    tried = "; ".join(f"{addr}: {why}" for addr, why in reasons.items()) or "no addresses"
    late = " (timed out)" if scope.cancelled_caught else ""
    raise Unavailable(f"peer {peer_id} cannot be reached{late}: {tried}", code="unreachable")


def connection_config(
    *,
    max_connections: int = 256,
    upgrade_timeout_s: float = 4.0,
    dial_timeout_s: float = 5.0,
    negotiation_timeout_s: float = 5.0,
    health_interval_s: float = 10.0,
    health_timeout_s: float = 8.0,
    allow_cidrs: Sequence[str] = (),
    deny_cidrs: Sequence[str] = (),
) -> ConnectionConfig:
    """
    Give the connection settings of a host: no dialling of its own, short handshakes, dead peers.

    `max_connections` counts both directions. A peer that vanished without a word is noticed after
    about `health_interval_s + health_timeout_s`; libp2p's default never notices.
    """
    return ConnectionConfig(
        max_connections=max_connections,
        min_connections=0,  # more than 0 takes inbound slots and dials whoever is known
        low_watermark=0,
        high_watermark=max_connections,
        max_connections_per_peer=4,
        dial_timeout=dial_timeout_s,
        inbound_upgrade_timeout=upgrade_timeout_s,
        outbound_upgrade_timeout=upgrade_timeout_s,
        inbound_stream_protocol_negotiation_timeout=negotiation_timeout_s,
        outbound_stream_protocol_negotiation_timeout=negotiation_timeout_s,
        allow_list=list(allow_cidrs),
        deny_list=list(deny_cidrs),
        enable_health_monitoring=True,
        health_initial_delay=health_interval_s,
        health_warmup_window=health_interval_s / 2,
        health_check_interval=health_interval_s,
        ping_timeout=health_timeout_s,
        abort_connection_on_ping_failure=True,
        # Only a dead connection is closed. Scores would also "replace" slow ones, which for a
        # relayed connection means to lose it.
        min_health_threshold=0.0,
        critical_health_threshold=0.0,
        min_ping_success_rate=0.0,
        max_ping_latency=1e9,
        max_failed_streams=1_000_000_000,
    )


async def _dial_one(
    network: Any,
    peer_id: ID,
    addr: str,
    reasons: dict[str, str],
    won: list[Any],
    done: trio.Event,
    others: trio.CancelScope,
) -> None:
    try:
        target = _target(addr, peer_id)
        if not await network.connection_gate.is_allowed(target):
            raise ValueError("refused by the deny list")
        # Not dial_addr: it tries a dead address four times, and it is ours to say when to redial.
        connection = await network._dial_addr_single_attempt(target, peer_id)
    except Exception as error:  # a bulkhead: one address; libp2p raises all kinds here
        reasons[addr] = _reason(error)
        done.set()
        return
    won.append(connection)
    others.cancel()


def _target(addr: str, peer_id: ID) -> Multiaddr:
    if len(addr) > 512:
        raise ValueError("too long for an address")
    target = Multiaddr(addr)
    if "/p2p-circuit" in addr:
        raise ValueError("a relay address: dial it through the circuit transport")
    named = None
    with contextlib.suppress(Exception):  # multiaddr raises when there is no such part
        named = target.value_for_protocol("p2p")
    if named is not None and named != str(peer_id):
        raise ValueError("names another peer")
    return target


def _connected(network: Any, peer_id: ID) -> bool:
    return any(not conn.is_closed for conn in network.get_connections(peer_id))


def _reason(error: BaseException) -> str:
    """Say why, from the innermost cause: the outer ones say "fail to open connection"."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:REASON_CHARS_MAX]
