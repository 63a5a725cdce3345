"""Staying reachable: whom to dial, by which address, when again; anchors and reservations."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence

import structlog
import trio
from libp2p.peer.id import ID

from zerostate_node.errors import ConfigError, Unavailable
from zerostate_node.mesh import hardening
from zerostate_node.mesh.addrs import Addr, ip_may_be_dialled, may_be_dialled, parse_addr
from zerostate_node.mesh.book import PeerBook
from zerostate_node.mesh.budget import Backoff, Bucket
from zerostate_node.mesh.interfaces import as_dialled
from zerostate_node.mesh.life import Life, is_relayed
from zerostate_node.mesh.relay import (
    RESERVATION_REFRESH_S_MAX,
    RESERVATION_REFRESH_S_MIN,
    Reservation,
    dial_through,
    reserve,
)
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.units import PeerId

log = structlog.get_logger()

DIAL_S_MAX = 6.0
DIALS_MAX = 16  # at once
CIRCUITS_TRIED_MAX = 4
RESOLVED_MAX = 4
RESOLVE_S_MAX = 5.0
ANCHORS_WANTED = 3
RELAYS_WANTED = 2
BACKOFFS_MAX = 4096
REACHED_S = 20.0  # how long a listening node waits for somebody to dial it before it reserves


class _Held:
    """Backoff of one peer: not before `until_s`."""

    __slots__ = ("backoff", "until_s")

    def __init__(self) -> None:
        self.backoff = Backoff(0.5, 15.0)
        self.until_s = 0.0


class Reach:
    """
    Dials, redials and reserves for one node; outlives restarts of libp2p.

    Bootstrap peers and relays come from the operator and are dialled wherever they are; every
    other address must pass the dial policy.
    """

    def __init__(
        self,
        me: PeerId,
        settings: MeshSettings,
        book: PeerBook,
        now_ms: Callable[[], int],
    ) -> None:
        self.reservations: dict[PeerId, Reservation] = {}
        self._me = me
        self._settings = settings
        self._book = book
        self._now_ms = now_ms
        self._random = random.Random()
        self._trusted: dict[PeerId, list[Addr]] = {}
        self._anchors = self._group(settings.bootstrap_addrs())
        self._relays = self._group(settings.relay_addrs()) or self._anchors
        self._named_relays = bool(settings.relays)
        self._held: dict[PeerId, _Held] = {}
        self._dialling: dict[PeerId, trio.Event] = {}
        self._rate: Bucket | None = None
        self._limiter: trio.CapacityLimiter | None = None
        self._life_since_s = 0.0

    def _group(self, addrs: Sequence[Addr]) -> tuple[PeerId, ...]:
        for addr in addrs:
            if addr.peer is not None and addr.peer != self._me:
                known = self._trusted.setdefault(addr.peer, [])
                if addr not in known:
                    known.append(addr)
        peers = dict.fromkeys(addr.peer for addr in addrs if addr.peer is not None)
        return tuple(peer for peer in peers if peer != self._me)

    @property
    def anchors(self) -> tuple[PeerId, ...]:
        """The pinned peers: those the operator named to begin with."""
        return self._anchors

    # -- addresses ---------------------------------------------------------------------------

    def learn(self, peer: PeerId, addrs: Sequence[str], *, source: str) -> None:
        """Remember what passes the policy of what somebody says about a peer."""
        if peer == self._me:
            return
        kept = []
        for text in addrs[:32]:
            try:
                addr = parse_addr(text)
            except ConfigError:
                continue
            named = addr.dest if addr.circuit else addr.peer
            if named not in (None, peer) or (addr.circuit and addr.peer == self._me):
                continue
            if may_be_dialled(addr, dial_private=self._settings.dial_private):
                kept.append(addr.text)
            else:
                log.debug("address refused by the dial policy", peer=peer, addr=text, source=source)
        if not kept:
            return
        before = self._book.get(peer)
        self._book.remember(peer, kept, now_ms=self._now_ms())
        if before is None or set(kept) - set(before.addrs):
            self._held.pop(peer, None)  # somewhere new to try

    async def _candidates(self, peer: PeerId) -> tuple[list[str], list[PeerId]]:
        """Direct addresses with every name resolved and judged, and relays to go through."""
        direct: list[str] = []
        relays: list[PeerId] = []
        for addr in self._trusted.get(peer, ()):
            direct += await self._resolve(addr, trusted=True)
        page = self._book.get(peer)
        for text in page.addrs if page is not None else ():
            try:
                addr = parse_addr(text)
            except ConfigError:
                continue
            if addr.circuit:
                if addr.peer is not None and addr.peer not in (self._me, peer):
                    if addr.host_kind:
                        self.learn(
                            addr.peer, [f"{addr.transport}/p2p/{addr.peer}"], source="circuit"
                        )
                    relays.append(addr.peer)
            elif may_be_dialled(addr, dial_private=self._settings.dial_private):
                direct += await self._resolve(addr, trusted=False)
        return list(dict.fromkeys(direct)), list(dict.fromkeys(relays))

    async def _resolve(self, addr: Addr, *, trusted: bool) -> list[str]:
        if not addr.is_dns:
            return [addr.transport]
        family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(addr.host_kind, 0)
        try:
            with trio.fail_after(RESOLVE_S_MAX):
                found = await trio.socket.getaddrinfo(
                    addr.host, addr.port, family=family, type=socket.SOCK_STREAM
                )
        except (OSError, trio.TooSlowError, UnicodeError) as error:
            log.debug("name not resolved", host=addr.host, error=repr(error))
            return []
        ips = list(dict.fromkeys(str(entry[4][0]) for entry in found))[:RESOLVED_MAX]
        # What is judged is what is dialled: the name could resolve to something else next time.
        return [
            addr.with_host(ip)
            for ip in ips
            if trusted or ip_may_be_dialled(ip, dial_private=self._settings.dial_private)
        ]

    # -- dialling ----------------------------------------------------------------------------

    async def connect(self, life: Life, peer: PeerId, *, insist: bool = False) -> None:
        """
        Be connected to a peer: direct addresses first, relays last.

        `insist` is for our own anchors and relays: no backoff and no rate is asked.

        Raises:
            Unavailable: no address works, none is known, or it is too early to try again.
        """
        if life.is_connected(peer):
            return
        if self._book.banned(peer, now_ms=self._now_ms()):
            raise Unavailable(f"peer {peer} is banned here", code="unreachable")
        running = self._dialling.get(peer)
        if running is not None:
            await running.wait()
            if not life.is_connected(peer):
                raise Unavailable(f"peer {peer} cannot be reached", code="unreachable")
            return
        now_s = trio.current_time()
        held = self._held.get(peer)
        if not insist:
            if held is not None and held.until_s > now_s:
                raise Unavailable(
                    f"peer {peer} could not be reached just now",
                    code="unreachable",
                    retry_after_s=held.until_s - now_s,
                )
            if self._rate is None:
                self._rate = Bucket(
                    self._settings.dials_per_s, 2 * self._settings.dials_per_s + 1, now_s
                )
            if not self._rate.take(now_s):
                raise Unavailable("too many dials just now", code="unreachable")
        done = self._dialling[peer] = trio.Event()
        try:
            await self._dial(life, peer)
        except Unavailable:
            self._hold(peer)
            self._book.failed(peer)
            raise
        else:
            if insist:
                # An anchor or a relay is back: whoever was out of reach may be reachable now.
                self._held.clear()
            self._held.pop(peer, None)
        finally:
            del self._dialling[peer]
            done.set()

    def _hold(self, peer: PeerId) -> None:
        if len(self._held) >= BACKOFFS_MAX:
            del self._held[next(iter(self._held))]
        held = self._held.setdefault(peer, _Held())
        held.until_s = trio.current_time() + held.backoff.next_s()

    async def _dial(self, life: Life, peer: PeerId) -> None:
        direct, relays = await self._candidates(peer)
        problems: list[str] = []
        pid = ID.from_base58(peer)
        if direct:
            if self._limiter is None:
                self._limiter = trio.CapacityLimiter(DIALS_MAX)
            try:
                async with self._limiter:
                    await hardening.dial_all(life.host, pid, direct, timeout_s=DIAL_S_MAX)
            except Unavailable as error:
                problems.append(str(error))
            else:
                return
        # Relays we hold or know are worth asking even when nobody said that the peer is there.
        relays += [relay for relay in self._relays if self._named_relays and relay not in relays]
        relays += [relay for relay in self.reservations if relay not in relays]
        for relay in relays[:CIRCUITS_TRIED_MAX]:
            if relay == peer:
                continue
            try:
                if not life.is_connected(relay):
                    await self._connect_relay(life, relay)
                await dial_through(life.host, ID.from_base58(relay), pid)
            except Unavailable as error:
                problems.append(str(error))
                continue
            return
        why = "; ".join(problems)[:800] or f"no address of peer {peer} is known"
        raise Unavailable(why, code="unreachable")

    async def _connect_relay(self, life: Life, relay: PeerId) -> None:
        """Directly, for a relay behind a relay is refused by every relay."""
        direct, _ = await self._candidates(relay)
        if not direct:
            raise Unavailable(f"no address of relay {relay} is known", code="unreachable")
        await hardening.dial_all(life.host, ID.from_base58(relay), direct, timeout_s=DIAL_S_MAX)

    # -- loops: each ends only with the life it serves ---------------------------------------

    async def run(self, life: Life, target: int) -> None:
        """Keep anchors, a few peers and reservations for as long as this life lasts."""
        self._life_since_s = trio.current_time()
        self.reservations.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_anchors, life)
            nursery.start_soon(self._keep_peers, life, target)
            if self._settings.relay_use != "never":
                for relay in self._relays:
                    nursery.start_soon(self._keep_reservation, life, relay)

    async def _keep_anchors(self, life: Life) -> None:
        """Dial bootstrap peers for ever, until enough of them are connected."""
        backoffs = {peer: Backoff(0.5, 5.0) for peer in self._anchors}
        due_s = dict.fromkeys(self._anchors, 0.0)
        in_flight: set[PeerId] = set()
        missed: set[PeerId] = set()
        order = list(self._anchors)
        self._random.shuffle(order)

        async def dial(peer: PeerId) -> None:
            try:
                await self.connect(life, peer, insist=True)
            except Unavailable as error:
                due_s[peer] = trio.current_time() + backoffs[peer].next_s()
                if peer not in missed:
                    log.warning("bootstrap peer not reached", peer=peer, error=str(error)[:300])
                missed.add(peer)  # said once; it is tried for ever
            else:
                backoffs[peer].reset()
                missed.discard(peer)
            finally:
                in_flight.discard(peer)

        async with trio.open_nursery() as nursery:
            while True:
                now_s = trio.current_time()
                up = sum(life.is_connected(peer) for peer in order)
                for peer in order:
                    if up + len(in_flight) >= ANCHORS_WANTED:
                        break
                    idle = peer not in in_flight and not life.is_connected(peer)
                    if idle and due_s[peer] <= now_s:
                        in_flight.add(peer)
                        nursery.start_soon(dial, peer)
                await self._nap(life, 0.5)

    async def _keep_peers(self, life: Life, target: int) -> None:
        """Keep about `target` peers connected, out of the book."""
        while True:
            await self._nap(life, self._random.uniform(1.0, 2.0))
            if len(life.states) >= target:
                continue
            now_s, now_ms = trio.current_time(), self._now_ms()
            able = [
                page.peer
                for page in self._book.known()[:256]
                if page.addrs
                and page.failures < 20
                and not life.is_connected(page.peer)
                and not self._book.banned(page.peer, now_ms=now_ms)
                and (page.peer not in self._held or self._held[page.peer].until_s <= now_s)
            ]
            async with trio.open_nursery() as nursery:
                for peer in self._random.sample(able, min(2, len(able))):
                    nursery.start_soon(self._try, life, peer)

    async def _try(self, life: Life, peer: PeerId) -> None:
        try:
            await self.connect(life, peer)
        except Unavailable as error:
            log.debug("known peer not reached", peer=peer, error=str(error)[:300])

    async def _nap(self, life: Life, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await life.changed.wait()
            await trio.sleep(0.05)  # several connections change at once

    # -- reservations ------------------------------------------------------------------------

    def wants_relay(self, life: Life, announced: Sequence[str]) -> bool:
        """Whether to be reachable through relays: when told to, or when nobody can dial us."""
        if self._settings.relay_use != "auto":
            return self._settings.relay_use == "always"
        addrs = [parse_addr(text) for text in announced]
        private = self._settings.dial_private
        if any(may_be_dialled(addr, dial_private=False) for addr in addrs):
            return False
        if not any(may_be_dialled(addr, dial_private=private) for addr in addrs):
            return True
        # Only private addresses: they may do for every peer of a small network, or for none.
        late = trio.current_time() - self._life_since_s > REACHED_S
        return late and not life.inbound_seen

    async def _keep_reservation(self, life: Life, relay: PeerId) -> None:
        """Hold a place at one relay: reserve, refresh at half time, again when it comes back."""
        backoff = Backoff(0.5, 5.0) if self._named_relays else Backoff(2.0, 120.0)
        missed = not self._named_relays  # a bootstrap peer that does not relay is no news
        while True:
            others = len(self.reservations) - (relay in self.reservations)
            if others >= RELAYS_WANTED or not self.wants_relay(life, self.announced(life)):
                self.reservations.pop(relay, None)
                await trio.sleep(self._random.uniform(1.0, 2.0))
                continue
            try:
                await self.connect(life, relay, insist=True)
                conns = life.conns(relay)
                if not conns or all(is_relayed(conn) for conn in conns):
                    raise Unavailable(f"relay {relay} is not connected directly", code="relay")
                state = life.states.get(relay)
                reservation = await reserve(life.host, ID.from_base58(relay))
            except Unavailable as error:
                self.reservations.pop(relay, None)
                if not missed:
                    log.warning("relay not reserved", relay=relay, error=str(error)[:300])
                missed = True
                await trio.sleep(backoff.next_s())
                continue
            backoff.reset()
            missed = False
            if relay not in self.reservations:
                log.info("relay reserved", relay=relay, ttl_s=round(reservation.ttl_s))
            self.reservations[relay] = reservation
            refresh_s = min(
                max(reservation.ttl_s / 2, RESERVATION_REFRESH_S_MIN), RESERVATION_REFRESH_S_MAX
            )
            with trio.move_on_after(refresh_s):
                if state is not None:
                    await state.gone.wait()  # any connection to it ended: ask again at once
                    if not life.is_connected(relay):
                        self.reservations.pop(relay, None)
                        log.info("relay lost", relay=relay)

    def announced(self, life: Life) -> tuple[str, ...]:
        """Where others can dial us without a relay: what the operator says, or what is bound."""
        texts = self._settings.announce or tuple(
            concrete for text in life.bound for concrete in as_dialled(text)
        )
        return tuple(text if "/p2p/" in text else f"{text}/p2p/{self._me}" for text in texts)

    def circuits(self) -> tuple[str, ...]:
        """Where others can dial us through the relays that keep a place for us."""
        return tuple(
            f"{addr.transport}/p2p/{relay}/p2p-circuit/p2p/{self._me}"
            for relay in self.reservations
            for addr in self._trusted.get(relay, ())
        )
