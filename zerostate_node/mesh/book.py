"""The peer book: who we know, where they were last reached, who is banned and until when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from zerostate_node.units import PeerId

PEERS_MAX = 2000
ADDRS_PER_PEER_MAX = 8
BANS_MAX = 2000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """One page of the book. `seen_ms` is 0 until we were connected to the peer once."""

    peer: PeerId
    addrs: tuple[str, ...]
    learned_ms: int
    seen_ms: int = 0
    failures: int = 0  # dials in a row that no address answered


class PeerBook(Protocol):
    """Remembers peers across restarts; what is lost is only a hint, so it never raises."""

    def remember(self, peer: PeerId, addrs: Sequence[str], *, now_ms: int) -> None:
        """Add addresses, newest first; both peers and addresses are bounded."""

    def reached(self, peer: PeerId, addr: str | None, *, now_ms: int) -> None:
        """We are connected; `addr` worked, so it comes first from now on."""

    def failed(self, peer: PeerId) -> None:
        """No address answered."""

    def get(self, peer: PeerId) -> KnownPeer | None:
        """What is known of a peer."""

    def known(self) -> Sequence[KnownPeer]:
        """Everyone, the most lately seen first."""

    def ban(self, peer: PeerId, *, until_ms: int) -> None:
        """Refuse a peer until then."""

    def banned(self, peer: PeerId, *, now_ms: int) -> bool:
        """Whether a peer is refused now."""

    async def flush(self) -> None:
        """Write down what changed."""

    def close(self) -> None:
        """Write down what changed and let go of the file."""


class MemoryBook:
    """A peer book that forgets at exit; the base of the one that does not."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, KnownPeer] = {}
        self._bans: dict[PeerId, int] = {}

    def _touch(self, peer: PeerId) -> None:
        """Note that the page of `peer` changed. For the book that writes."""

    def _put(self, page: KnownPeer) -> None:
        self._peers[page.peer] = page
        self._touch(page.peer)
        if len(self._peers) > PEERS_MAX:
            # The least useful page goes: never reached before reached, failing before not, oldest.
            # The newcomer competes too, so a flood of invented peers displaces only its own kind.
            worst = min(self._peers.values(), key=lambda p: (p.seen_ms > 0, -p.failures, p.seen_ms))
            del self._peers[worst.peer]
            self._touch(worst.peer)

    def remember(self, peer: PeerId, addrs: Sequence[str], *, now_ms: int) -> None:
        """Add addresses, newest first; both peers and addresses are bounded."""
        page = self._peers.get(peer)
        fresh = tuple(dict.fromkeys(addrs))[:ADDRS_PER_PEER_MAX]
        if page is None:
            self._put(KnownPeer(peer=peer, addrs=fresh, learned_ms=now_ms))
            return
        new = tuple(addr for addr in fresh if addr not in page.addrs)
        if not new:
            return
        # The address that worked last stays in front: hearsay does not push it out.
        kept = page.addrs[:1] if page.seen_ms else ()
        rest = page.addrs[len(kept) :]
        self._put(
            dataclasses.replace(page, addrs=(*kept, *new, *rest)[:ADDRS_PER_PEER_MAX], failures=0)
        )

    def reached(self, peer: PeerId, addr: str | None, *, now_ms: int) -> None:
        """We are connected; `addr` worked, so it comes first from now on."""
        page = self._peers.get(peer) or KnownPeer(peer=peer, addrs=(), learned_ms=now_ms)
        addrs = page.addrs
        if addr is not None:
            addrs = (addr, *(a for a in addrs if a != addr))[:ADDRS_PER_PEER_MAX]
        self._put(dataclasses.replace(page, addrs=addrs, seen_ms=now_ms, failures=0))

    def failed(self, peer: PeerId) -> None:
        """No address answered."""
        page = self._peers.get(peer)
        if page is not None:
            self._put(dataclasses.replace(page, failures=page.failures + 1))

    def get(self, peer: PeerId) -> KnownPeer | None:
        """What is known of a peer."""
        return self._peers.get(peer)

    def known(self) -> Sequence[KnownPeer]:
        """Everyone, the most lately seen first."""
        return sorted(self._peers.values(), key=lambda page: -page.seen_ms)

    def ban(self, peer: PeerId, *, until_ms: int) -> None:
        """Refuse a peer until then."""
        self._bans[peer] = max(until_ms, self._bans.get(peer, 0))
        self._touch(peer)
        if len(self._bans) > BANS_MAX:
            soonest = min(self._bans, key=lambda p: self._bans[p])
            del self._bans[soonest]
            self._touch(soonest)

    def banned(self, peer: PeerId, *, now_ms: int) -> bool:
        """Whether a peer is refused now."""
        until_ms = self._bans.get(peer)
        if until_ms is None:
            return False
        if until_ms <= now_ms:
            del self._bans[peer]
            self._touch(peer)
            return False
        return True

    async def flush(self) -> None:
        """Nothing to write down."""

    def close(self) -> None:
        """Nothing to let go of."""
