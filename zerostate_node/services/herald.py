"""
Says and hears hints: who we are, which agents we know, which work we own.

Nothing here is needed for correctness. Intervals stretch as the mesh grows, so that all nodes
together stay within a budget.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import WireError
from zerostate_node.machines.roster import announce_interval_ms
from zerostate_node.ports.mesh import Heard, Mesh
from zerostate_node.services.roster import Roster
from zerostate_node.units import MINUTE_MS, PeerId
from zerostate_node.wire import envelope, ids
from zerostate_node.wire.messages import Announcement, NodeAdvert, OpenWork

log = structlog.get_logger()

ADVERT_TTL_MS = 30 * MINUTE_MS
ANNOUNCEMENT_TTL_MS = 2 * MINUTE_MS
ANNOUNCE_S_MIN, ANNOUNCE_S_MAX = 1.0, 30.0
CHANGE_POLL_S = 0.5
SEEN_MAX = 4_096


class Herald:
    """Publishes adverts, cards and announcements; hears those of others."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        roster: Roster,
        key: Ed25519PrivateKey,
        network: str,
        shards: int,
        advert: Callable[[], NodeAdvert],
        open_kinds: Callable[[], dict[str, int]],
        on_work: Callable[[PeerId, Announcement], None],
        behaved: Callable[[str, str], None],
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._mesh = mesh
        self._roster = roster
        self._key = key
        self._network = network
        self._shards = shards
        self._advert = advert
        self._open_kinds = open_kinds
        self._on_work = on_work
        self._behaved = behaved
        self._new_id = new_id
        self._now_ms = now_ms
        self._seen: dict[str, None] = {}
        self.own_advert = b""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; ready once every topic is subscribed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, ids.topic(self._network, "nodes"))
            for shard in range(self._shards):
                nursery.start_soon(self._listen, ids.topic(self._network, "manifests", shard))
                nursery.start_soon(self._listen, ids.topic(self._network, "work", shard))
            nursery.start_soon(self._say_who)
            nursery.start_soon(self._say_cards)
            nursery.start_soon(self._say_work)
            task_status.started()

    async def say_card(self, raw: bytes, agent_id: str) -> None:
        """Gossip a signed card now."""
        await self._mesh.publish(self._topic("manifests", agent_id), raw)

    async def say_leaving(self) -> None:
        """Tell the mesh that this node goes."""
        advert = self._advert()
        await self._publish_advert(
            NodeAdvert(roles=advert.roles, program=advert.program, leaving=True)
        )

    # -- saying ------------------------------------------------------------------------------------

    def _topic(self, kind: str, key: str) -> str:
        return ids.topic(self._network, kind, ids.shard_of(key, self._shards))

    async def _publish_advert(self, advert: NodeAdvert) -> None:
        self.own_advert = envelope.seal(
            advert,
            type="node/1",
            network=self._network,
            key=self._key,
            sender=self._mesh.peer,
            id=self._new_id(),
            now_ms=self._now_ms(),
            ttl_ms=ADVERT_TTL_MS,
        )
        await self._mesh.publish(ids.topic(self._network, "nodes"), self.own_advert)

    async def _say_who(self) -> None:
        said, neighbours = None, -1
        while True:
            advert = self._advert()
            await self._publish_advert(advert)
            said, neighbours = advert, self._mesh.status().peers_connected
            pause_s = announce_interval_ms(len(self._roster.adverts)) / 1000
            until = trio.current_time() + pause_s * random.uniform(0.8, 1.2)
            # A new neighbour or a new address is worth saying at once.
            while trio.current_time() < until:
                if self._advert() != said or self._mesh.status().peers_connected > neighbours:
                    break
                await trio.sleep(CHANGE_POLL_S)

    async def _say_cards(self) -> None:
        me = ids.did_of(self._mesh.peer)
        while True:
            own = [m for m in self._roster.newest() if m.publisher == me]
            pause_s = announce_interval_ms(len(self._roster.adverts), base_ms=5 * MINUTE_MS) / 1000
            for manifest in own:
                await trio.sleep(pause_s / len(own) * random.uniform(0.8, 1.2))
                await self.say_card(manifest.raw, manifest.agent_id)
            if not own:
                await trio.sleep(30)

    async def _say_work(self) -> None:
        pause_s = ANNOUNCE_S_MIN
        while True:
            await trio.sleep(pause_s)
            kinds = self._open_kinds()
            if not kinds:
                pause_s = ANNOUNCE_S_MIN
                continue
            pause_s = min(ANNOUNCE_S_MAX, pause_s * 2)
            most = sorted(kinds.items(), key=lambda item: -item[1])[:16]
            for shard in {ids.shard_of(agent_id, self._shards) for agent_id, _ in most}:
                announcement = Announcement(
                    kinds=tuple(
                        OpenWork(agent_id=agent_id, count=count)
                        for agent_id, count in most
                        if ids.shard_of(agent_id, self._shards) == shard
                    ),
                    addrs=self._advert().addrs[:8],
                )
                data = envelope.seal(
                    announcement,
                    type="announcement/1",
                    network=self._network,
                    key=self._key,
                    sender=self._mesh.peer,
                    id=self._new_id(),
                    now_ms=self._now_ms(),
                    ttl_ms=ANNOUNCEMENT_TTL_MS,
                )
                await self._mesh.publish(ids.topic(self._network, "work", shard), data)

    # -- hearing -----------------------------------------------------------------------------------

    async def _listen(self, topic: str) -> None:
        async for heard in self._mesh.subscribe(topic):
            try:
                self._hear(heard)
            except WireError as error:
                if error.code in ("seen", "expired", "from_the_future"):
                    continue
                # Its author's doing. Whoever forwards a message does not look into it: blaming them
                # would let one liar turn a whole mesh against itself.
                author = heard.author or heard.forwarder
                self._behaved(author, "malformed")
                log.info("gossip dropped", topic=topic, why=str(error), author=author)

    def _hear(self, heard: Heard) -> None:
        kind = heard.topic.split("/")[3]
        if kind == "nodes":
            self._roster.hear_advert(heard.data)
        elif kind == "manifests":
            self._roster.hear_manifest(heard.data)
        else:
            opened = envelope.unseal(
                heard.data,
                Announcement,
                type="announcement/1",
                network=self._network,
                now_ms=self._now_ms(),
                bytes_max=ids.ANNOUNCEMENT_BYTES_MAX,
                seen=self._seen.__contains__,
            )
            if opened.expires_ms - opened.issued_ms > 2 * ANNOUNCEMENT_TTL_MS:
                raise WireError("an announcement that would live for long", code="expired")
            self._seen[opened.id] = None
            if len(self._seen) > SEEN_MAX:
                del self._seen[next(iter(self._seen))]
            self._on_work(opened.sender, opened.value)
