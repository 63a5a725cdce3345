"""
Circuit relay v2: serving circuits to others, holding a reservation, dialling through one.

The library's client reserves on every dial, writes circuit addresses that never expire into its
peerstore, and refreshes in a busy loop when refreshing fails. The three exchanges are short, so
they are made here, on the library's messages; the service is the library's with four defects
closed: a peer reserving in another's name, circuits of one peer closing each other's streams,
streams left half open, and inbound circuits labelled with the wrong relay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import Any

import structlog
import trio
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeerId
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import STOP_PROTOCOL_ID as STOP
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.protocol_buffer import StatusCode, to_proto_status
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from zerostate_node.errors import Unavailable
from zerostate_node.mesh.link import SEND_S_MAX, STREAM_ERRORS, write_patiently
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.units import KIB, PeerId

log = structlog.get_logger()

HOP_PROTOCOL = str(HOP)
EXCHANGE_S_MAX = 15.0
CIRCUITS_PER_RESERVATION_MAX = 128
RESERVATION_TTL_S = 3600
RESERVATION_REFRESH_S_MIN = 20.0
RESERVATION_REFRESH_S_MAX = 1800.0
_PUMP_BYTES = 64 * KIB
PUMP_ERRORS: tuple[type[Exception], ...] = (trio.TooSlowError, *STREAM_ERRORS)


@dataclasses.dataclass(frozen=True, slots=True)
class Reservation:
    """A relay that keeps a place for us: for how long, and where it says it is."""

    relay: PeerId
    ttl_s: float
    addrs: tuple[str, ...]


def circuit_addr(relay: ID, dest: ID) -> Multiaddr:
    """How a connection through `relay` to `dest` is written."""
    return Multiaddr(f"/p2p/{relay.to_base58()}/p2p-circuit/p2p/{dest.to_base58()}")


async def _exchange(host: Any, relay: ID, request: Any) -> tuple[Any, Any]:
    """Ask a connected relay one thing; its stream and its answer, or Unavailable."""
    stream = None
    try:
        with trio.fail_after(EXCHANGE_S_MAX):
            stream = await host.new_stream(relay, [HOP])
            await write_delimited_msg(stream, request)
            answer = await read_delimited_msg(stream, HopMessage)
    except BaseException as error:
        # Not only Exception: a cancelled dial must not leave the stream open at the relay.
        if stream is not None:
            await _reset(stream)
        if isinstance(error, Exception):
            # Bulkhead: the answer is bytes that the relay chose, and the library raises anything.
            raise Unavailable(
                f"relay {relay.to_base58()}: {error or type(error).__name__}", code="relay"
            ) from error
        raise
    if answer.type != HopMessage.STATUS or answer.status != to_proto_status(StatusCode.OK):
        await _reset(stream)
        raise Unavailable(
            f"relay {relay.to_base58()} answered status {answer.status}", code="relay"
        )
    return stream, answer


async def _reset(stream: Any) -> None:
    with trio.move_on_after(2, shield=True), contextlib.suppress(*STREAM_ERRORS):
        await stream.reset()


async def reserve(host: Any, relay: ID) -> Reservation:
    """
    Ask a connected relay to keep a place for us.

    Raises:
        Unavailable: it does not relay, is full, or did not answer. code=relay.
    """
    request = HopMessage(type=HopMessage.RESERVE)
    stream, answer = await _exchange(host, relay, request)
    await _reset(stream)
    addrs = []
    for raw in answer.reservation.addrs[:8]:
        with contextlib.suppress(Exception):  # bytes that the relay chose; only a hint
            addrs.append(str(Multiaddr(bytes(raw[:512]))))
    # Its clock may be off from ours by anything; the bounds hold whatever it says.
    ttl_s = min(max(float(answer.reservation.expire) - time.time(), 60.0), 24 * 3600.0)
    return Reservation(relay=PeerId(relay.to_base58()), ttl_s=ttl_s, addrs=tuple(addrs))


async def dial_through(host: Any, relay: ID, dest: ID) -> Any:
    """
    Connect to `dest` through a connected relay; end to end it is Noise as everywhere.

    Raises:
        Unavailable: no reservation there, limits, or nobody answered. code=relay.
    """
    request = HopMessage(type=HopMessage.CONNECT, peer=CircuitPeerId(id=dest.to_bytes()))
    stream, _answer = await _exchange(host, relay, request)
    addr = circuit_addr(relay, dest)
    raw = RawConnection(
        stream=stream,
        initiator=True,
        connection_type=ConnectionType.RELAYED,
        addresses=[addr],
    )
    try:
        with trio.fail_after(EXCHANGE_S_MAX):
            conn = await host.upgrade_outbound_connection(raw, dest)
    except BaseException as error:
        await _reset(stream)
        if isinstance(error, Exception):
            raise Unavailable(
                f"circuit to {dest.to_base58()} through {relay.to_base58()}:"
                f" {error or type(error).__name__}",
                code="relay",
            ) from error
        raise
    conn.set_transport_info([addr], ConnectionType.RELAYED)
    return conn


class RelayService(CircuitV2Protocol):  # type: ignore[misc]
    """Accepts circuits for this node, and serves as a relay when the settings say so."""

    def __init__(self, host: Any, settings: MeshSettings) -> None:
        limits = RelayLimits(
            duration=settings.relay_circuit_s_max,
            data=settings.relay_circuit_bytes_max,
            max_circuit_conns=CIRCUITS_PER_RESERVATION_MAX,
            max_reservations=settings.relay_reservations_max,
            reservation_ttl=RESERVATION_TTL_S,
        )
        super().__init__(host, limits=limits, allow_hop=settings.relay_serve)

    def register(self) -> None:
        """Set the handlers now, so that they can be guarded before the first peer connects."""
        if self.allow_hop:
            self.host.set_stream_handler(HOP, self._handle_hop_stream)
        self.host.set_stream_handler(STOP, self._handle_stop_stream)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Live until stopped. The handlers are set by `register` and die with the host."""
        self.event_started.set()
        task_status.started()
        await self.manager.wait_finished()

    async def _handle_hop_stream(self, stream: Any) -> None:
        """Answer one request; a stream carries one, as with go and rust."""
        caller: ID = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(EXCHANGE_S_MAX):
                request = await read_delimited_msg(stream, HopMessage)
            if "/p2p-circuit" in str(stream.muxed_conn.get_transport_addresses()):
                # A relay behind a relay would hide who asks, and chain circuits.
                await self._send_status(stream, StatusCode.PERMISSION_DENIED, "over a relay")
            elif request.type == HopMessage.RESERVE:
                await self._handle_reserve(stream, request)
            elif request.type == HopMessage.CONNECT:
                await self._handle_connect(stream, request)
            else:
                await self._send_status(stream, StatusCode.MALFORMED_MESSAGE, "")
            # The answer must not be overtaken by a reset: wait until the caller has read it.
            with trio.move_on_after(2.0), contextlib.suppress(*STREAM_ERRORS):
                await stream.close()
                while await stream.read(KIB):
                    pass
        except STREAM_ERRORS as error:
            log.debug("relay request not answered", peer=str(caller), error=repr(error))
        except trio.TooSlowError:
            log.debug("relay request not answered", peer=str(caller), error="no request in time")
        finally:
            await _reset(stream)

    async def _handle_reserve(self, stream: Any, msg: Any) -> None:
        caller: ID = stream.muxed_conn.peer_id
        if msg.HasField("peer") and msg.peer.id and ID(msg.peer.id) != caller:
            # One peer could fill every place with names it made up.
            log.warning("reservation in another's name refused", peer=caller.to_base58())
            await self._send_status(stream, StatusCode.PERMISSION_DENIED, "not your peer id")
            return
        await super()._handle_reserve(stream, msg)

    async def handle_incoming_connection(self, stream: Any, remote_peer_id: bytes) -> None:
        """Take in a circuit that a relay brought; its address names that relay."""
        relay: ID = stream.muxed_conn.peer_id
        addr = circuit_addr(relay, ID(remote_peer_id))
        raw = RawConnection(
            stream=stream,
            initiator=False,
            connection_type=ConnectionType.RELAYED,
            addresses=[addr],
        )
        muxed = await self.host.upgrade_inbound_connection(raw, addr)
        # The relay named the caller, Noise proved it: look it up under the proven name.
        for conn in self.host.get_network().get_connections(muxed.peer_id):
            if getattr(conn, "muxed_conn", None) is muxed:
                conn.set_transport_info([addr], ConnectionType.RELAYED)

    async def _handle_stop_stream(self, stream: Any) -> None:
        try:
            with trio.fail_after(EXCHANGE_S_MAX):
                request = await read_delimited_msg(stream, StopMessage)
            if request.type != StopMessage.CONNECT:
                raise ValueError("not a CONNECT")
            await self._send_stop_status(stream, StatusCode.OK, "")
            await self.handle_incoming_connection(stream, request.peer.id)
        except Exception as error:
            # Bulkhead: relay and caller chose these bytes.
            log.debug("circuit not taken in", error=repr(error))
            await _reset(stream)

    async def _relay_data(
        self,
        src_stream: Any,
        dst_stream: Any,
        peer_id: ID,
        deadline: float | None = None,
        circuit_data_limit: list[int] | None = None,
    ) -> None:
        """Pump one direction until an end, a limit or an error; then both streams are reset."""
        left_s = math.inf if deadline is None else deadline - time.monotonic()
        try:
            with trio.move_on_after(left_s):
                while data := await src_stream.read(_PUMP_BYTES):
                    if circuit_data_limit is not None:
                        circuit_data_limit[0] -= len(data)
                        if circuit_data_limit[0] < 0:
                            log.info("relay circuit used up its bytes", peer=peer_id.to_base58())
                            break
                    with trio.fail_after(SEND_S_MAX):
                        await write_patiently(dst_stream.muxed_stream, data, lambda: False)
        except PUMP_ERRORS as error:
            log.debug("relay circuit ended", peer=peer_id.to_base58(), error=repr(error))
        finally:
            await _reset(src_stream)
            await _reset(dst_stream)
