"""`Libp2pMesh`: the mesh port over py-libp2p, supervised so that the node outlives the library."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Sequence

import structlog
import trio
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair

from zerostate_node.errors import Busy, ConductError, ConfigError, Unavailable, ZeroStateError
from zerostate_node.mesh import hardening
from zerostate_node.mesh.addrs import parse_addr
from zerostate_node.mesh.book import PeerBook
from zerostate_node.mesh.budget import Backoff, Bucket
from zerostate_node.mesh.gossip import (
    OFFENDER_BAN_S,
    PAYLOAD_BYTES_MAX,
    Gossip,
    GossipSubscription,
)
from zerostate_node.mesh.life import Life, Served, is_relayed
from zerostate_node.mesh.link import StreamLink
from zerostate_node.mesh.reach import Reach
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.ports.mesh import Handler, MeshStatus, PeerInfo
from zerostate_node.units import PeerId
from zerostate_node.wire.ids import peer_id_of

log = structlog.get_logger()

RESTART_FIRST_S = 0.2
RESTART_LAST_S = 10.0
STABLE_S = 30.0  # a life this long clears the restart backoff
FLUSH_EVERY_S = 5.0
FAULTS_PER_MIN_MAX = 30  # malformed things from one peer before it is dropped
FAULTERS_MAX = 4096


# Modules that log an ERROR for each dial, stream or circuit that fails: we say it ourselves.
_SAID_BY_US = (
    "libp2p.host.basic_host",
    "libp2p.network.swarm",
    "libp2p.relay.circuit_v2.protocol",
    "libp2p.transport.tcp.tcp",
)


class Libp2pMesh:
    """
    The libp2p network as services see it; see `ports.mesh.Mesh` for what each method promises.

    `key` is the raw 32-byte Ed25519 seed. Everything of libp2p lives in one `Life` at a time; a
    life that dies is followed by another with the same key, port, subscriptions and handlers.
    """

    def __init__(
        self,
        key: bytes,
        settings: MeshSettings,
        *,
        book: PeerBook,
        now_ms: Callable[[], int],
    ) -> None:
        private = Ed25519PrivateKey.from_bytes(key)
        public = private.get_public_key()
        self.peer: PeerId = peer_id_of(public.to_bytes())
        self._key_pair = KeyPair(private, public)
        self._settings = settings
        self._book = book
        self._now_ms = now_ms
        self._gossip = Gossip(
            publish_per_s=settings.gossip_per_s,
            forwarder_per_s=settings.gossip_forwarder_per_s,
            on_offence=self._on_offence,
        )
        self._reach = Reach(self.peer, settings, book, now_ms)
        self._served: dict[str, Served] = {}
        self._callbacks: list[Callable[[PeerId, bool], None]] = []
        self._faults: dict[str, Bucket] = {}
        self._nursery: trio.Nursery | None = None
        self._life: Life | None = None
        self._bound: tuple[str, ...] = ()
        self._restarts = 0
        self._last_error = ""
        self._fatal: ZeroStateError | None = None

    # -- supervision -------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """
        Live until cancelled; started as soon as the first host listens.

        Raises:
            Busy: an address to listen on is taken at the first start. code=port_taken.
            ConfigError: this is not the libp2p that the hardening was written for.
        """
        hardening.install()
        for name in _SAID_BY_US:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._flush_book)
                await self._supervise(task_status)
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                await self._book.flush()
        if self._fatal is not None:
            raise self._fatal

    async def _supervise(self, task_status: trio.TaskStatus[None]) -> None:
        backoff = Backoff(RESTART_FIRST_S, RESTART_LAST_S)
        status: trio.TaskStatus[None] | None = task_status
        while self._fatal is None:
            started_s = trio.current_time()
            error: BaseException | None = None
            try:
                await self._run_once(status)
            except* Exception as group:
                # The bulkhead of the whole library: whatever died in it, the node goes on.
                error = _leaf(group)
            if self._bound or not self._settings.listen:
                status = None  # it was up once
            if isinstance(error, Busy | ConfigError) and status is not None:
                self._fatal = error
                return
            self._restarts += 1
            self._last_error = where(error) if error is not None else "libp2p ended by itself"
            if trio.current_time() - started_s > STABLE_S:
                backoff.reset()
            delay_s = backoff.next_s()
            log.error(
                "mesh restarts",
                error=self._last_error,
                restarts=self._restarts,
                delay_s=round(delay_s, 2),
            )
            await trio.sleep(delay_s)

    async def _run_once(self, status: trio.TaskStatus[None] | None) -> None:
        life = Life(
            self._key_pair,
            self._settings,
            self._gossip,
            now_ms=self._now_ms,
            serve=self._serve,
            on_peer=self._tell,
            admit=self._admit,
            on_fault=self._on_fault,
        )
        for served in self._served.values():
            life.serve(served)

        async def body() -> None:
            self._bound = life.bound
            self._life = life
            log.info("mesh up", peer=self.peer, listen=list(life.bound))
            if status is not None:
                status.started()
            await self._reach.run(life, self._settings.peers_target)

        try:
            await life.run(self._bound or self._settings.listen, self._gossip.topics, body)
        finally:
            self._life = None
            self._reach.reservations.clear()

    async def _flush_book(self) -> None:
        while True:
            await trio.sleep(FLUSH_EVERY_S)
            life = self._life
            if life is not None:
                for peer, addrs in life.identified():
                    self._reach.learn(peer, addrs, source="identify")
            await self._book.flush()

    # -- what libp2p tells us: sync, never raises, runs inside its tasks -----------------------

    def _admit(self, peer: PeerId) -> bool:
        return not self._book.banned(peer, now_ms=self._now_ms())

    def _tell(self, peer: PeerId, connected: bool, addr: str | None) -> None:
        if connected:
            self._book.reached(peer, addr, now_ms=self._now_ms())
        for callback in tuple(self._callbacks):
            try:
                callback(peer, connected)
            except Exception as error:
                # Bulkhead: a service's callback must not take libp2p down.
                log.error("a peer callback failed", peer=peer, error=where(error))

    def _on_fault(self, peer: str, protocol: str, error: BaseException) -> None:
        log.debug("peer at fault", peer=peer, protocol=protocol, error=repr(error)[:200])
        now_s = trio.current_time()
        # An honest peer may want more streams than it gets: that is refused, and far from a fault.
        busy = isinstance(error, ConductError) and error.code == "too_many_streams"
        name, per_min = (f"{peer} busy", 1200) if busy else (peer, FAULTS_PER_MIN_MAX)
        bucket = self._faults.get(name)
        if bucket is None:
            if len(self._faults) >= FAULTERS_MAX:
                del self._faults[next(iter(self._faults))]
            bucket = self._faults[name] = Bucket(per_min / 60, per_min, now_s)
        if not bucket.take(now_s):
            self._on_offence(PeerId(peer), "too many faults")

    def _on_offence(self, peer: PeerId, why: str) -> None:
        if self._nursery is not None and self._admit(peer):
            self._book.ban(
                peer, until_ms=self._now_ms() + int(OFFENDER_BAN_S * 1000)
            )  # now: the next message of it is already on its way
            self._nursery.start_soon(self._drop, peer, why)

    async def _drop(self, peer: PeerId, why: str) -> None:
        log.warning("peer dropped", peer=peer, why=why)
        life = self._life
        if life is not None:
            with contextlib.suppress(ValueError):
                await life.close_peer(peer)

    # -- links -------------------------------------------------------------------------------

    def _serve(self, served: Served, link: StreamLink) -> None:
        if self._nursery is None:
            link.end("the mesh stops")
        else:
            self._nursery.start_soon(self._handle, served, link)

    async def _handle(self, served: Served, link: StreamLink) -> None:
        try:
            await served.handler(link)
        except Unavailable as error:
            log.debug("link ended", peer=link.peer, protocol=link.protocol, error=str(error))
        except Exception as error:
            # Bulkhead: an exception in a handler ends its link and nothing else.
            log.error(
                "a link handler failed",
                peer=link.peer,
                protocol=link.protocol,
                error=where(error),
            )
        finally:
            await link.aclose()

    def handle(self, protocol: str, handler: Handler, *, frame_bytes_max: int) -> None:
        """Serve a stream protocol. An exception in the handler ends that link and nothing else."""
        served = Served(protocol=protocol, handler=handler, frame_bytes_max=frame_bytes_max)
        self._served[protocol] = served
        if self._life is not None:
            self._life.serve(served)

    async def open(self, peer: PeerId, protocol: str, *, frame_bytes_max: int) -> StreamLink:
        """A new stream to a peer, dialling it by every address known, relays last."""
        life = self._up()
        if peer == self.peer:
            raise Unavailable("that is this node itself", code="unreachable")
        await self._reach.connect(life, peer)
        return await life.open(peer, protocol, frame_bytes_max)

    def _up(self) -> Life:
        if self._life is None or not self._life.up:
            raise Unavailable("the mesh is down just now", code="unreachable")
        return self._life

    # -- gossip ------------------------------------------------------------------------------

    async def publish(self, topic: str, data: bytes) -> bool:
        """Gossip bytes; False when the budget is spent or the mesh is down (it was a hint)."""
        if len(data) > PAYLOAD_BYTES_MAX:
            raise ValueError(
                f"{len(data)} bytes of gossip; at most {PAYLOAD_BYTES_MAX} are carried"
            )
        life = self._life
        if life is None or not life.up or not self._gossip.may_publish(trio.current_time()):
            self._gossip.dropped += 1
            await trio.lowlevel.checkpoint()
            return False
        try:
            await life.pubsub.publish(topic, data)
        except Exception as error:
            # Bulkhead: libp2p dying under a hint is the supervisor's business.
            log.debug("gossip not published", topic=topic, error=repr(error))
            self._gossip.dropped += 1
            return False
        self._gossip.sent += 1
        return True

    def subscribe(self, topic: str) -> GossipSubscription:
        """Messages of a topic from now on; survives restarts. Bounded: the newest are dropped."""
        known = topic in self._gossip.topics
        subscription = self._gossip.subscribe(topic)
        if not known and self._life is not None:
            self._life.join(topic)
        return subscription

    # -- peers -------------------------------------------------------------------------------

    def learn(self, peer: PeerId, addrs: Sequence[str], *, source: str) -> None:
        """Remember addresses (checked against the dial policy) in the peer book."""
        self._reach.learn(peer, addrs, source=source)

    def peers(self) -> Sequence[PeerInfo]:
        """Peers connected now, and remembered ones."""
        life = self._life
        states = life.states if life is not None else {}
        found = [self._peer_info(life, peer) for peer in states] if life is not None else []
        found += [
            PeerInfo(
                peer=page.peer, connected=False, addrs=page.addrs, via="", since_ms=page.seen_ms
            )
            for page in self._book.known()
            if page.peer not in states
        ]
        return found

    def _peer_info(self, life: Life, peer: PeerId) -> PeerInfo:
        conns = life.conns(peer)
        direct = [conn for conn in conns if not is_relayed(conn)]
        page = self._book.get(peer)
        addrs = tuple(str(a) for conn in conns for a in conn.get_transport_addresses())
        via = "direct"
        if conns and not direct:
            relay = parse_addr(addrs[0]).peer if addrs else None
            via = f"relay:{relay}"
        rtts = [conn.muxed_conn.rtt() for conn in direct or conns]
        rtt_s = min((rtt for rtt in rtts if rtt > 0), default=0.0)
        return PeerInfo(
            peer=peer,
            connected=True,
            addrs=tuple(dict.fromkeys((*addrs, *(page.addrs if page is not None else ())))),
            via=via,
            since_ms=life.states[peer].since_ms,
            rtt_ms=round(rtt_s * 1000, 3) if rtt_s else None,
        )

    def status(self) -> MeshStatus:
        """How the mesh stands."""
        life = self._life
        up = life is not None and life.up
        announced = self._reach.announced(life) if life is not None else ()
        return MeshStatus(
            up=up,
            restarts=self._restarts,
            last_error=self._last_error,
            listen_addrs=tuple(f"{text}/p2p/{self.peer}" for text in self._bound),
            announce_addrs=(*announced, *self._reach.circuits()),
            relays=tuple(self._reach.reservations),
            anchors_connected=(
                sum(life.is_connected(peer) for peer in self._reach.anchors)
                if life is not None
                else 0
            ),
            peers_connected=len(life.states) if life is not None else 0,
            gossip_sent=self._gossip.sent,
            gossip_heard=self._gossip.heard,
            gossip_dropped=self._gossip.dropped,
        )

    async def drop(self, peer: PeerId, *, ban_s: float = 0.0, why: str = "") -> None:
        """Close every connection to a peer, and refuse it for `ban_s`."""
        if ban_s > 0:
            self._book.ban(peer, until_ms=self._now_ms() + int(ban_s * 1000))
        await self._drop(peer, why)

    def on_peer(self, callback: Callable[[PeerId, bool], None]) -> None:
        """Call back when a peer connects (True) or is gone (False)."""
        self._callbacks.append(callback)


def where(error: BaseException) -> str:
    """An error and the line it came from, without the locals that a traceback may print."""
    if isinstance(error, BaseExceptionGroup):
        error = _leaf(error)
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{error!r:.300}" + "".join(f" at {f.filename}:{f.lineno}" for f in frames)


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups: the one worth naming."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        named = [e for e in error.exceptions if isinstance(e, ZeroStateError)]
        error = (named or error.exceptions)[0]
    return error
