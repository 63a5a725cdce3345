"""One life of libp2p: a host, its pubsub, its relay service, from binding to whatever ends it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
import trio
from libp2p import new_host
from libp2p.abc import INotifee
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from zerostate_node.errors import Busy, Unavailable, WireError
from zerostate_node.mesh import hardening
from zerostate_node.mesh.addrs import parse_addr
from zerostate_node.mesh.budget import Backoff
from zerostate_node.mesh.gossip import BoundedPubsub, Gossip
from zerostate_node.mesh.link import StreamLink
from zerostate_node.mesh.relay import RelayService
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.ports.mesh import Handler
from zerostate_node.units import PeerId
from zerostate_node.wire.ids import public_key_of

log = structlog.get_logger()

OPEN_S_MAX = 10.0
CLOSE_S_MAX = 3.0
STREAMS_PER_PEER_MAX = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """A stream protocol that a service here answers."""

    protocol: str
    handler: Handler
    frame_bytes_max: int


@dataclasses.dataclass(slots=True)
class PeerState:
    """A peer that is connected now."""

    since_ms: int
    gone: trio.Event  # set when any connection to the peer ends
    repairs: Backoff = dataclasses.field(default_factory=lambda: Backoff(4.0, 120.0))
    repair_s: float = 0.0  # when to look again whether gossip has a stream to it


def is_relayed(conn: Any) -> bool:
    """Whether a connection goes through a relay."""
    return bool(conn.get_connection_type() == ConnectionType.RELAYED) or any(
        "/p2p-circuit" in str(addr) for addr in conn.get_transport_addresses()
    )


def peer_of(conn: Any) -> PeerId:
    """Who is at the other end of a connection."""
    return PeerId(conn.muxed_conn.peer_id.to_base58())


class Life:
    """Host, pubsub and relay service of one run. What goes wrong in it ends it, and only it."""

    def __init__(
        self,
        key_pair: KeyPair,
        settings: MeshSettings,
        gossip: Gossip,
        *,
        now_ms: Callable[[], int],
        serve: Callable[[Served, StreamLink], None],
        on_peer: Callable[[PeerId, bool, str | None], None],
        admit: Callable[[PeerId], bool],
        on_fault: Callable[[str, str, BaseException], None],
    ) -> None:
        self.up = False
        self.states: dict[PeerId, PeerState] = {}
        self.changed = trio.Event()  # set at every connect and disconnect, then replaced
        self.inbound_seen = False  # somebody dialled us directly
        self.bound: tuple[str, ...] = ()
        self._settings = settings
        self._now_ms = now_ms
        self._serve = serve
        self._on_peer = on_peer
        self._admit = admit
        self._links: dict[StreamLink, Any] = {}  # open links, and the connection each is on
        self._open: set[Any] = set()  # connections that are up
        self._dying = False
        self._nursery: trio.Nursery | None = None
        listen_ws = [Multiaddr(text) for text in settings.listen if parse_addr(text).ws]
        self.host: Any = new_host(
            key_pair=key_pair,
            sec_opt=hardening.noise_only(key_pair),
            muxer_opt={TProtocol(YAMUX_ID): Yamux},
            connection_config=hardening.connection_config(max_connections=settings.connections_max),
            listen_addrs=[Multiaddr(text) for text in settings.listen] if listen_ws else None,
            enable_websocket=not listen_ws,
            disable_identify_address_discovery=True,
        )
        self.network: Any = self.host.get_network()
        # Strangers may take most places, never all: our own dials to anchors need some.
        self._inbound_max = settings.connections_max - max(
            1, min(16, settings.connections_max // 4)
        )
        self.network._inbound_limiter.total_tokens = self._inbound_max
        # Nobody but us decides whom to dial: the library would dial what identify told it.
        self.network.dial_peer = _refuse_to_dial
        self.router: Any = hardening.make_gossip()
        self.pubsub = BoundedPubsub(self.host, self.router, gossip)
        hardening.fix_pubsub(self.pubsub, on_fault=on_fault)
        self.relay = RelayService(self.host, settings)
        self.relay.register()
        self.network.register_notifee(_Notices(self))
        hardening.guard_all(self.host, on_fault, streams_per_peer_max=STREAMS_PER_PEER_MAX)

    # -- running -----------------------------------------------------------------------------

    async def run(
        self,
        listen: Sequence[str],
        topics: Sequence[str],
        body: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Bind, start the services, run `body` until cancelled, and close everything.

        Raises:
            Busy: an address to listen on is taken.
            BaseExceptionGroup: whatever killed libp2p.
        """
        stop, over = trio.Event(), trio.Event()
        # Shielded from our caller: a cancellation that reached libp2p's tasks and ours at once
        # would leave sockets open, and peers believing that we are there.
        scope = trio.CancelScope(shield=True)

        async def live() -> None:
            try:
                with scope:
                    await self._live(listen, topics, body, stop)
            finally:
                over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            try:
                await over.wait()
            finally:
                stop.set()
                scope.deadline = trio.current_time() + 3 * CLOSE_S_MAX

    async def _live(
        self,
        listen: Sequence[str],
        topics: Sequence[str],
        body: Callable[[], Awaitable[None]],
        stop: trio.Event,
    ) -> None:
        async with self.host.run(listen_addrs=[Multiaddr(text) for text in listen]):
            try:
                self.bound = self._bound_addrs(listen)
                async with (
                    background_trio_service(self.router),
                    background_trio_service(self.pubsub),
                    background_trio_service(self.relay),
                    trio.open_nursery() as nursery,
                ):
                    try:
                        self._nursery = nursery
                        await self.pubsub.wait_until_ready()
                        for topic in topics:
                            await self.pubsub.subscribe(topic)
                        self.up = True
                        nursery.start_soon(self.tend)
                        nursery.start_soon(body)
                        await stop.wait()
                    finally:
                        self._down()
                        nursery.cancel_scope.cancel()  # our own tasks: nobody dials any more
                        await self._close_conns()
            finally:
                self._down()
                await self._close_conns()
                with trio.move_on_after(CLOSE_S_MAX, shield=True), contextlib.suppress(Exception):
                    await self.host.close()  # bulkhead: it is over either way

    def _bound_addrs(self, listen: Sequence[str]) -> tuple[str, ...]:
        listeners = self.network.listeners
        bound: list[str] = []
        for text in listen:
            listener = listeners.get(str(Multiaddr(text)))
            if listener is None:
                raise Busy(
                    f"cannot listen on {text}: the port is taken, or the address is not ours",
                    code="port_taken",
                    hint="stop the other program, or set another port in mesh.listen",
                )
            for addr in listener.get_addrs():
                got = str(addr).split("/p2p/")[0]
                bound.append(got + ("/ws" if text.endswith("/ws") and "/ws" not in got else ""))
        return tuple(dict.fromkeys(bound))

    async def _close_conns(self) -> None:
        with trio.move_on_after(CLOSE_S_MAX, shield=True), contextlib.suppress(Exception):
            # First the door: who comes now would be sent away after the handshake.
            for listener in tuple(self.network.listeners.values()):
                await listener.close()  # bulkhead: it is over either way
        # The library takes 0.2 s for each, one after the other: together instead.
        conns, self._open = self._open, set()
        with trio.move_on_after(CLOSE_S_MAX, shield=True):
            async with trio.open_nursery() as nursery:
                for conn in conns:
                    nursery.start_soon(_close_quietly, conn)
        for conn in conns:
            # A swarm that crashed marks connections closed and leaves their sockets open.
            with trio.move_on_after(0.2, shield=True), contextlib.suppress(Exception):
                await conn.muxed_conn.secured_conn.close()  # bulkhead, as above

    def _down(self) -> None:
        """Everyone is gone: links end, peers are told off. Sync, and only once."""
        self.up, self._dying = False, True
        self._nursery = None
        for link in tuple(self._links):
            link.end("libp2p restarts")
        for peer in tuple(self.states):
            self._gone(peer)

    # -- peers -------------------------------------------------------------------------------

    def conns(self, peer: PeerId) -> list[Any]:
        """Live connections to a peer."""
        return [c for c in self.network.get_connections(ID.from_base58(peer)) if not c.is_closed]

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a peer is connected now."""
        return self.up and bool(self.conns(peer))

    def _gone(self, peer: PeerId) -> None:
        state = self.states.pop(peer, None)
        if state is None:
            return
        state.gone.set()
        self._tell()
        self._on_peer(peer, False, None)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def connected(self, conn: Any) -> None:
        """A connection came up: admit the peer or close it."""
        peer = peer_of(conn)
        self._open.add(conn)
        if self._dying:
            return  # `_close_conns` takes it
        try:
            public_key_of(peer)
            admitted = self._admit(peer)
        except WireError:
            admitted = False  # a key of another kind has no place in this network
        inbound = conn.direction == Direction.INBOUND
        if inbound and len(self._open) > self._inbound_max:
            admitted = False  # those that come through relays pass by the limiter
        if not admitted:
            log.info("peer refused", peer=peer)
            if self._nursery is not None:
                self._nursery.start_soon(_close_quietly, conn)
            return
        if inbound and not is_relayed(conn):
            self.inbound_seen = True
        if peer not in self.states:
            self.states[peer] = PeerState(since_ms=self._now_ms(), gone=trio.Event())
            via = "relay" if is_relayed(conn) else "direct"
            log.info("peer connected", peer=peer, via=via, inbound=inbound)
            # The address that we dialled with success; an inbound one has a port of no use.
            dialled = None if inbound or is_relayed(conn) else conn.get_transport_addresses()[:1]
            self._on_peer(peer, True, str(dialled[0]) if dialled else None)
        self._tell()

    async def disconnected(self, conn: Any) -> None:
        """A connection went down: its links end, and the peer may be gone."""
        self._open.discard(conn)
        for link in [link for link, owner in self._links.items() if owner is conn]:
            link.end("the connection ended")
        peer = peer_of(conn)
        state = self.states.get(peer)
        if state is None:
            return
        if any(other is not conn for other in self.conns(peer)):
            state.gone.set()
            state.gone = trio.Event()
            self.pubsub.repair(conn.muxed_conn.peer_id, missing_too=False)
            self._tell()
            return
        log.info("peer gone", peer=peer)
        self._gone(peer)

    def identified(self) -> list[tuple[PeerId, list[str]]]:
        """Where connected peers say they listen, as identify told us; nothing is checked."""
        found = []
        store = self.host.get_peerstore()
        for peer in self.states:
            with contextlib.suppress(Exception):  # bulkhead: the store raises for unknown peers
                found.append((peer, [str(addr) for addr in store.addrs(ID.from_base58(peer))[:16]]))
        return found

    async def tend(self) -> None:
        """Keep gossip streams to all connected peers, as long as this life lasts."""
        while True:
            await trio.sleep(1.0)
            now_s = trio.current_time()
            for peer, state in tuple(self.states.items()):
                due = state.repair_s <= now_s
                if due:
                    first = state.repair_s == 0.0
                    state.repair_s = now_s + state.repairs.next_s()
                    due = not first
                self.pubsub.repair(ID.from_base58(peer), missing_too=due)

    async def close_peer(self, peer: PeerId) -> None:
        """Close every connection to a peer."""
        with trio.move_on_after(CLOSE_S_MAX, shield=True):
            async with trio.open_nursery() as nursery:
                for conn in self.conns(peer):
                    nursery.start_soon(_close_quietly, conn)

    def join(self, topic: str) -> None:
        """Take part in a gossip topic from now on."""
        if self._nursery is not None:
            self._nursery.start_soon(self.pubsub.subscribe, topic)

    # -- streams -----------------------------------------------------------------------------

    def serve(self, served: Served) -> None:
        """Answer a stream protocol from now on."""

        async def on_stream(stream: Any) -> None:
            link = self._link(stream, served.protocol, served.frame_bytes_max, self._forget)
            try:
                # The handler runs in the mesh's own nursery: nothing it does can reach libp2p.
                self._serve(served, link)
                await link.ended.wait()
                await link.linger()  # here, so that the stream still counts as the peer's
            finally:
                link.end("the connection ended")

        self.host.set_stream_handler(TProtocol(served.protocol), on_stream)

    def _link(
        self,
        stream: Any,
        protocol: str,
        frame_bytes_max: int,
        on_end: Callable[[StreamLink], None],
    ) -> StreamLink:
        conn = stream.swarm_conn
        link = StreamLink(
            stream,
            peer=peer_of(conn),
            protocol=protocol,
            limited=is_relayed(conn),
            frame_bytes_max=frame_bytes_max,
            on_end=on_end,
        )
        self._links[link] = conn
        return link

    def _forget(self, link: StreamLink) -> None:
        self._links.pop(link, None)

    def _let_go(self, link: StreamLink) -> None:
        self._forget(link)
        if self._nursery is not None:
            self._nursery.start_soon(link.linger)

    async def open(self, peer: PeerId, protocol: str, frame_bytes_max: int) -> StreamLink:
        """
        A stream to a connected peer.

        Raises:
            Unavailable: protocol not spoken (code=protocol), or the stream failed (unreachable).
        """
        pid = ID.from_base58(peer)
        try:
            with trio.fail_after(OPEN_S_MAX):
                stream = await self.host.new_stream(pid, [TProtocol(protocol)])
        except StreamFailure as error:
            if "not supported" in str(error.__cause__):
                raise Unavailable(
                    f"peer {peer} does not speak {protocol}", code="protocol"
                ) from error
            raise Unavailable(
                f"no stream to {peer}: {error.__cause__ or error}", code="unreachable"
            ) from error
        except Exception as error:
            # Bulkhead: a connection that dies under the library makes it raise anything.
            raise Unavailable(
                f"no stream to {peer}: {error or type(error).__name__}", code="unreachable"
            ) from error
        return self._link(stream, protocol, frame_bytes_max, self._let_go)


class _Notices(INotifee):  # type: ignore[misc]
    """What the swarm tells, passed on."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def connected(self, network: Any, conn: Any) -> None:
        await self._life.connected(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        await self._life.disconnected(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


async def _refuse_to_dial(peer_id: ID) -> Any:
    raise SwarmException(f"not connected to {peer_id}, and only the mesh dials")


async def _close_quietly(conn: Any) -> None:
    with trio.move_on_after(CLOSE_S_MAX, shield=True):
        try:
            await conn.close()
        except Exception as error:
            # Bulkhead: the connection is given up, and these tasks share libp2p's fate.
            log.debug("a connection did not close well", error=repr(error))
