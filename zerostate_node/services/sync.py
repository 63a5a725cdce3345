"""
Repairs what gossip lost: neighbours compare short sums of what they know and pull what they lack.

The one who opens the stream pulls. A node syncs with every peer that it connects to (the other side
does the same the other way), and with a random neighbour now and then.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import structlog
import trio

from zerostate_node.errors import ConductError, Unavailable, WireError
from zerostate_node.ports.mesh import Link, Mesh
from zerostate_node.services.roster import Roster
from zerostate_node.units import KIB, PeerId
from zerostate_node.wire import codec, ids
from zerostate_node.wire.messages import (
    Bye,
    SyncHello,
    SyncItems,
    SyncMessage,
    SyncWant,
)

log = structlog.get_logger()

ROUND_S = 20.0
SESSION_S_MAX = 30.0
ITEMS_BYTES_SOFT_MAX = 256 * KIB
WANTS_MAX = 8  # in one session; each may cost us all that we know
SESSIONS_PER_PEER_MAX = 3  # served at once
OLD_NEWS_MAX = 8_192  # items of one session that were no news; an honest neighbour sends few
CHECKPOINT_ITEMS = 16  # checked in one go: each takes a quarter of a millisecond or more
WRONG_NETWORKS_MAX = 256
WRONG_NETWORK_BAN_S = 600.0
DELAY_AFTER_CONNECT_S = 0.05


class Sync:
    """Serves the sync protocol and pulls from neighbours."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        roster: Roster,
        network: str,
        program: str,
        own_advert: Callable[[], bytes],
        behaved: Callable[[str, str], None],
    ) -> None:
        self._mesh = mesh
        self._roster = roster
        self._network = network
        self._program = program
        self._own_advert = own_advert
        self._behaved = behaved
        self._wake = trio.Event()
        self._fresh: dict[PeerId, None] = {}
        self._serving: Counter[PeerId] = Counter()
        self.pulled = 0
        self.wrong_networks: dict[PeerId, str] = {}

    def peer_changed(self, peer: PeerId, connected: bool) -> None:
        """Told by the mesh."""
        if connected:
            self._fresh[peer] = None
            self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pull from new neighbours at once, from any in turn."""
        task_status.started()
        while True:
            with trio.move_on_after(ROUND_S * random.uniform(0.8, 1.2)) as waited:
                await self._wake.wait()
            self._wake = trio.Event()
            if waited.cancelled_caught:
                connected = [p.peer for p in self._mesh.peers() if p.connected]
                if connected:
                    self._fresh[random.choice(connected)] = None
            else:
                await trio.sleep(DELAY_AFTER_CONNECT_S)
            async with trio.open_nursery() as nursery:
                for _ in range(min(8, len(self._fresh))):
                    peer = next(iter(self._fresh))
                    del self._fresh[peer]
                    nursery.start_soon(self._session, peer)
            if self._fresh:
                self._wake.set()

    async def _session(self, peer: PeerId) -> None:
        try:
            with trio.move_on_after(SESSION_S_MAX):
                await self.pull(peer)
        except Unavailable as error:
            log.debug("sync not possible", peer=peer, why=str(error))
        except (WireError, ConductError) as error:
            self._behaved(peer, "malformed")
            log.warning("sync broken off", peer=peer, why=str(error))

    async def pull(self, peer: PeerId) -> int:
        """Pull from one peer what it knows and we do not; how many items were news."""
        link = await self._mesh.open(peer, ids.SYNC, frame_bytes_max=ids.SYNC_FRAME_BYTES_MAX)
        try:
            await link.send(codec.encode(self._hello()))
            answer = await _receive(link)
            if isinstance(answer, Bye):
                await self._told_bye(peer, answer)
                return 0
            if not isinstance(answer, SyncHello):
                raise ConductError("the first answer must be hello", code="no_hello")
            if answer.network != self._network:
                await self._wrong_network(peer, answer.network)
                return 0
            news = await self._take(peer, "nodes", (answer.advert,)) if answer.advert else 0
            news += await self._pull_kind(link, peer, "nodes", answer.nodes)
            news += await self._pull_kind(link, peer, "manifests", answer.manifests)
            if news:
                log.info("sync brought news", peer=peer, items=news)
            self.pulled += news
            return news
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await link.aclose()

    async def _pull_kind(
        self, link: Link, peer: PeerId, kind: str, theirs: tuple[bytes, ...]
    ) -> int:
        if not theirs:
            return 0
        if len(theirs) != 256:
            raise ConductError("a summary has 256 sums", code="wrong_shape")
        ours = self._roster.sums(kind)
        buckets = tuple(i for i in range(256) if theirs[i] and theirs[i] != ours[i])
        if not buckets:
            return 0
        wanted = set(buckets)
        have = tuple(key for key, _ in self._roster.items(kind) if key[0] in wanted)[:16_384]
        await link.send(codec.encode(SyncWant(kind=kind, buckets=buckets, have=have)))
        news = items = 0
        while True:
            answer = await _receive(link)
            if not isinstance(answer, SyncItems) or answer.kind != kind:
                raise ConductError(f"expected {kind}", code="not_allowed")
            news += await self._take(peer, kind, answer.items)
            items += len(answer.items)
            if not answer.more:
                return news
            if not answer.items or items - news > OLD_NEWS_MAX:
                raise ConductError("much of it, and none of it news", code="not_allowed")

    async def _take(self, peer: PeerId, kind: str, items: tuple[bytes, ...]) -> int:
        hear = self._roster.hear_manifest if kind == "manifests" else self._roster.hear_advert
        news = 0
        for number, raw in enumerate(items):
            if number % CHECKPOINT_ITEMS == CHECKPOINT_ITEMS - 1:
                await trio.lowlevel.checkpoint()
            try:
                news += hear(raw)
            except WireError as error:
                if error.code not in ("expired", "from_the_future"):  # clocks, not lies
                    self._behaved(peer, "malformed")
                    log.info("sync item dropped", kind=kind, why=str(error), peer=peer)
        return news

    def _hello(self) -> SyncHello:
        return SyncHello(
            network=self._network,
            program=self._program,
            advert=self._own_advert(),
            manifests=self._roster.sums("manifests"),
            nodes=self._roster.sums("nodes"),
        )

    async def _told_bye(self, peer: PeerId, bye: Bye) -> None:
        log.info("sync refused", peer=peer, code=bye.code, reason=bye.reason)
        if bye.code == "wrong_network":
            self._note_network(peer, bye.reason)
            await self._mesh.drop(peer, ban_s=WRONG_NETWORK_BAN_S, why="wrong network")

    async def _wrong_network(self, peer: PeerId, theirs: str) -> None:
        reason = f"peer {peer} is on network {theirs!r}, this node is on {self._network!r}"
        self._note_network(peer, reason)
        log.warning("peer on another network dropped", peer=peer, theirs=theirs)
        await self._mesh.drop(peer, ban_s=WRONG_NETWORK_BAN_S, why="wrong network")

    def _note_network(self, peer: PeerId, reason: str) -> None:
        if len(self.wrong_networks) >= WRONG_NETWORKS_MAX:
            del self.wrong_networks[next(iter(self.wrong_networks))]
        self.wrong_networks[peer] = reason

    # -- serving -----------------------------------------------------------------------------------

    async def serve(self, link: Link) -> None:
        """Answer one neighbour."""
        if self._serving[link.peer] >= SESSIONS_PER_PEER_MAX:
            return await link.aclose()
        self._serving[link.peer] += 1
        try:
            with trio.move_on_after(SESSION_S_MAX):
                await self._serve(link)
        except Unavailable:
            pass
        except (WireError, ConductError) as error:
            self._behaved(link.peer, "malformed")
            log.info("sync peer broke the protocol", peer=link.peer, why=str(error))
        finally:
            self._serving[link.peer] -= 1
            if not self._serving[link.peer]:
                del self._serving[link.peer]
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await link.aclose()

    async def _serve(self, link: Link) -> None:
        hello = await _receive(link)
        if not isinstance(hello, SyncHello):
            raise ConductError("the first message must be hello", code="no_hello")
        if hello.network != self._network:
            reason = f"this node is on network {self._network!r}, you are on {hello.network!r}"
            await link.send(codec.encode(Bye(code="wrong_network", reason=reason)))
            self._note_network(link.peer, reason)
            await trio.sleep(0.2)
            return await self._mesh.drop(link.peer, ban_s=WRONG_NETWORK_BAN_S, why="wrong network")
        if hello.advert:
            await self._take(link.peer, "nodes", (hello.advert,))
        await link.send(codec.encode(self._hello()))
        for _ in range(WANTS_MAX):
            want = await _receive(link)
            if isinstance(want, Bye):
                return None
            if not isinstance(want, SyncWant):
                raise ConductError("expected want", code="not_allowed")
            await self._give(link, want)
        raise ConductError("wants far more than there are kinds", code="not_allowed")

    async def _give(self, link: Link, want: SyncWant) -> None:
        buckets, have = set(want.buckets), set(want.have)
        batch: list[bytes] = []
        size = 0
        for key, raw in self._roster.items(want.kind):
            if key[0] not in buckets or key in have:
                continue
            if size + len(raw) > ITEMS_BYTES_SOFT_MAX or len(batch) == 256:
                await link.send(
                    codec.encode(SyncItems(kind=want.kind, items=tuple(batch), more=True))
                )
                batch, size = [], 0
            batch.append(raw)
            size += len(raw)
        await link.send(codec.encode(SyncItems(kind=want.kind, items=tuple(batch))))


async def _receive(link: Link) -> SyncMessage:
    message: SyncMessage = codec.decode(
        await link.receive(), SyncMessage, bytes_max=ids.SYNC_FRAME_BYTES_MAX
    )
    return message
