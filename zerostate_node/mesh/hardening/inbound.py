"""Connections that come in: slots given back, silent ones few, ports not shared by accident."""

from __future__ import annotations

import collections
from typing import Any

import libp2p.network.swarm as swarm
import libp2p.transport.cmux as cmux
import libp2p.transport.tcp.tcp as tcp
import trio
from libp2p.abc import IMuxedConn
from libp2p.network.connection.raw_connection import RawConnection

HAPPY_EYEBALLS_DELAY_S = 0.02

SIGNATURES = {
    "libp2p.network.swarm:Swarm._do_handle_inbound_connection": (
        "self,read_write_closer,maddr,failure_event"
    ),
    "libp2p.network.swarm:Swarm._handle_inbound_connection": "self,read_write_closer,maddr",
    "libp2p.network.swarm:Swarm.upgrade_inbound_raw_conn": "self,raw_conn,maddr",
    "libp2p.network.swarm:Swarm._build_remote_multiaddr": "self,read_write_closer",
    "libp2p.network.swarm:Swarm._dial_addr_single_attempt": "self,addr,peer_id,source",
    "libp2p.network.swarm:Swarm.unblock_peer": "self,peer_id",
    "libp2p.network.swarm:_HAPPY_EYEBALLS_DELAY": "0.25",
    "libp2p.transport.cmux:PeekableStream.receive_some": "self,max_bytes",
    "libp2p.transport.cmux:_PEEK_SIZE": "3",
    "libp2p.transport.tcp.tcp:_open_reuseport_listeners": "host,port",
}


def give_slots_back() -> None:
    """
    Hold an inbound slot for as long as its connection lives, not as long as the host.

    The handler waited for the swarm to finish: a node refused every inbound connection after the
    first `max_connections - min_connections` of its life, and kept a task for each.
    """

    async def handle(self: Any, read_write_closer: Any, maddr: Any, failure_event: Any) -> None:
        try:
            if isinstance(read_write_closer, IMuxedConn):
                return  # QUIC and the like: we do not speak them
            remote = self._build_remote_multiaddr(read_write_closer)
            if remote is not None and not await self.connection_gate.is_allowed(remote):
                return
            conn = None
            with _Upgrading(self, remote):
                raw_conn = RawConnection(read_write_closer, False)
                conn = await self.upgrade_inbound_raw_conn(raw_conn, maddr)
            if conn is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_then_cancel, self.manager.wait_finished, nursery.cancel_scope)
                await conn.event_closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await read_write_closer.close()

    swarm.Swarm._do_handle_inbound_connection = handle


def dial_soon() -> None:
    """Start the second address after 20 ms: even a dial that succeeded waited out 250 ms."""
    swarm._HAPPY_EYEBALLS_DELAY = HAPPY_EYEBALLS_DELAY_S


def peek_three_bytes() -> None:
    """
    Wait for all three bytes that tell TCP from WebSocket on a shared port.

    js-libp2p writes the length byte as a segment of its own; one read of "up to three" saw that
    byte alone and closed four of five connections.
    """

    class Peeking(cmux.PeekableStream):  # type: ignore[misc]
        _peeked = False

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            data: bytes = await super().receive_some(max_bytes)
            if self._peeked:
                return data
            self._peeked = True  # the first read is the one that classifies, under its timeout
            while data and len(data) < int(cmux._PEEK_SIZE):
                more: bytes = await self.stream.receive_some(cmux._PEEK_SIZE - len(data))
                if not more:
                    break
                data += more
            return data

    cmux.PeekableStream = Peeking


def refuse_a_taken_port() -> None:
    """
    Fail to listen on a port that another process listens on.

    The listener sets SO_REUSEPORT, so a second node on the same port started without an error and
    the kernel dealt connections to both at random.
    """
    original = tcp._open_reuseport_listeners

    async def open_listeners(host: str | None, port: int) -> Any:
        if port and host:
            family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
            with trio.socket.socket(family, trio.socket.SOCK_STREAM) as probe:
                probe.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
                await probe.bind((host, port))
        return await original(host, port)

    tcp._open_reuseport_listeners = open_listeners


class _Upgrading:
    """
    The connections of one swarm that have not shown who they are yet.

    Full means: this one took the last inbound slot. Then the oldest handshake of the address that
    has most of them is given up: an honest one takes some 30 ms, a silent one its whole time. So
    silent connections never fill the node, nor keep out a peer behind the same address.
    """

    def __init__(self, owner: Any, remote: Any) -> None:
        self._pending: list[_Upgrading] = owner.__dict__.setdefault("_zerostate_upgrading", [])
        self._full = owner._inbound_limiter.available_tokens < 1
        self._ip = str(remote).rpartition("/tcp/")[0]
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        if self._full and self._pending:
            heaviest, _ = collections.Counter(one._ip for one in self._pending).most_common(1)[0]
            oldest = next(one for one in self._pending if one._ip == heaviest)
            self._pending.remove(oldest)
            oldest._scope.cancel()
        self._pending.append(self)
        self._scope.__enter__()

    def __exit__(self, *exc_info: Any) -> bool | None:
        if self in self._pending:
            self._pending.remove(self)
        return self._scope.__exit__(*exc_info)


async def _then_cancel(wait: Any, scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


PATCHES = (give_slots_back, dial_soon, peek_three_bytes, refuse_a_taken_port)
