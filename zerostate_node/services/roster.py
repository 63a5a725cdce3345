"""
Agents and nodes that this node believes in: everything it heard that was signed, and is not out of
date. Kept in the journal, so that a restart knows what it knew.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable

import structlog
import trio

from zerostate_node.errors import NotFound, Refused, Unavailable, WireError
from zerostate_node.machines import roster as machine
from zerostate_node.ports.ledger import Journal
from zerostate_node.services.hub import Hub
from zerostate_node.units import DAY_MS, MIB, PeerId
from zerostate_node.wire import envelope, ids
from zerostate_node.wire.cards import Manifest, capability_of, open_card, supersedes
from zerostate_node.wire.envelope import Opened
from zerostate_node.wire.messages import NodeAdvert

log = structlog.get_logger()

MANIFESTS_MAX = 20_000  # agent versions remembered; beyond it others have to go
MANIFESTS_BYTES_MAX = 64 * MIB  # ... or beyond this: keys cost nothing, so strangers may be many
MANIFESTS_PER_PUBLISHER_MAX = 1_000
NODES_MAX = 5_000
ADVERT_MS_MAX = DAY_MS  # however long an advert says that it is true
SAMPLE = 8  # of the places looked at when one has to go
FLUSH_S = 1.0
SWEEP_S = 30.0


class Roster:
    """The directory every node keeps for itself."""

    def __init__(
        self,
        *,
        network: str,
        journal: Journal,
        hub: Hub,
        now_ms: Callable[[], int],
        me: str = "",
    ) -> None:
        """`me` is this node's DID: cards that it published itself are never let go."""
        self._network = network
        self._journal = journal
        self._hub = hub
        self._now_ms = now_ms
        self._me = me
        self._bytes = 0
        self._sums: dict[str, tuple[bytes, ...]] = {}
        self._evicted: dict[str, list[str]] = {"manifests": [], "nodes": []}
        self.manifests: dict[tuple[str, str], Manifest] = {}
        self._entries: dict[tuple[str, str], machine.Entry] = {}
        self._by_publisher: dict[str, int] = {}
        self.adverts: dict[PeerId, Opened] = {}
        self.revoked: frozenset[str] = frozenset()  # "<agent id>@<version>"
        self._unsaved: dict[str, dict[str, tuple[bytes, int]]] = {"manifests": {}, "nodes": {}}
        self._on_advert: list[Callable[[PeerId, NodeAdvert], None]] = []

    def on_advert(self, callback: Callable[[PeerId, NodeAdvert], None]) -> None:
        """Call back with every advert that is news."""
        self._on_advert.append(callback)

    # -- hearing -----------------------------------------------------------------------------------

    def hear_manifest(self, raw: bytes) -> bool:
        """
        Take a card from anywhere; True when it is news.

        Raises:
            WireError: it is malformed, expired, or not its publisher's.
        """
        manifest = open_card(raw, now_ms=self._now_ms())
        key = (manifest.agent_id, manifest.version)
        known = self.manifests.get(key)
        theirs = self._by_publisher.get(manifest.publisher, 0)
        if known is None and theirs >= MANIFESTS_PER_PUBLISHER_MAX:
            return False
        if known is not None and not supersedes(known, manifest):
            return False
        revoked = manifest.status == "revoked"
        done = machine.step(
            self._entries.get(key, machine.Absent()),
            machine.CardHeard(manifest.sequence, manifest.key, manifest.expires_ms, revoked),
        )
        if not done.effects:
            return False
        if known is None:
            self._make_room(len(manifest.raw))
            self._by_publisher[manifest.publisher] = 1 + self._by_publisher.get(
                manifest.publisher, 0
            )
        self._entries[key] = done.state
        self.manifests[key] = manifest
        self._bytes += len(manifest.raw) - (len(known.raw) if known else 0)
        self._sums.pop("manifests", None)
        self._unsaved["manifests"]["@".join(key)] = (manifest.raw, _until(manifest))
        if machine.Withdraw() in done.effects:
            self.revoked |= {"@".join(key)}
        kind = "agent.revoked" if revoked else "agent.published"
        self._hub.tell(kind, agent_id=manifest.agent_id, version=manifest.version)
        log.info(
            "agent revoked" if revoked else "agent heard of",
            agent=manifest.agent_id,
            version=manifest.version,
            sequence=manifest.sequence,
        )
        return True

    def _make_room(self, bytes_more: int) -> None:
        """
        Let some cards go, at random, rather of those who have many.

        To ignore newcomers instead would let whoever fills it first lock out everyone else for as
        long as cards may live. One that was let go comes back with its next announcement or sync.
        """
        while self.manifests and (
            len(self.manifests) >= MANIFESTS_MAX or self._bytes + bytes_more > MANIFESTS_BYTES_MAX
        ):
            others = [k for k, m in self.manifests.items() if m.publisher != self._me]
            if not others:
                return
            # Many at once: looking at all of them for each newcomer would cost more than it does.
            for key in random.sample(others, min(len(others), 1 + len(others) // 200)):
                rivals = (key, *random.sample(others, min(len(others), SAMPLE)))
                gone = max(
                    (k for k in rivals if k in self.manifests),
                    key=lambda k: self._by_publisher[self.manifests[k].publisher],
                    default=None,
                )
                if gone is not None:
                    self._remove(gone)
                    self.revoked -= {"@".join(gone)}
                    self._unsaved["manifests"].pop("@".join(gone), None)
                    self._evicted["manifests"].append("@".join(gone))

    def _remove(self, key: tuple[str, str]) -> None:
        manifest = self.manifests.pop(key)
        del self._entries[key]
        self._bytes -= len(manifest.raw)
        self._sums.pop("manifests", None)
        self._by_publisher[manifest.publisher] -= 1
        if not self._by_publisher[manifest.publisher]:
            del self._by_publisher[manifest.publisher]

    def hear_advert(self, raw: bytes) -> bool:
        """Take a node's advert from anywhere; True when it is news. Raises WireError."""
        opened = envelope.unseal(
            raw,
            NodeAdvert,
            type="node/1",
            network=self._network,
            now_ms=self._now_ms(),
            bytes_max=ids.NODE_ADVERT_BYTES_MAX,
        )
        known = self.adverts.get(opened.sender)
        if _advert_until(opened) < self._now_ms():
            raise WireError("an advert that is too old, whatever it says", code="expired")
        if not machine.newer_advert(known.issued_ms if known else None, opened.issued_ms):
            return False
        if known is None and len(self.adverts) >= NODES_MAX:
            gone = random.choice(list(self.adverts))  # for the same reason as with cards
            del self.adverts[gone]
            self._unsaved["nodes"].pop(gone, None)
            self._evicted["nodes"].append(gone)
        self.adverts[opened.sender] = opened
        self._sums.pop("nodes", None)
        self._unsaved["nodes"][opened.sender] = (opened.raw, _advert_until(opened))
        for callback in self._on_advert:
            callback(opened.sender, opened.value)
        return True

    # -- asking ------------------------------------------------------------------------------------

    def versions(self, agent_id: str) -> list[Manifest]:
        """All versions of an agent, newest sequence first."""
        found = [m for (agent, _), m in self.manifests.items() if agent == agent_id]
        return sorted(found, key=lambda m: -m.sequence)

    def newest(self) -> list[Manifest]:
        """The newest version of every agent; the living ones first, then by name."""
        best: dict[str, Manifest] = {}
        for manifest in self.manifests.values():
            known = best.get(manifest.agent_id)
            if known is None or _better(manifest, known):
                best[manifest.agent_id] = manifest
        return sorted(best.values(), key=lambda m: (m.status == "revoked", m.name, m.agent_id))

    def find(self, ref: str) -> Manifest:
        """
        An agent by `<id>`, `<name>`, either with `@<version>`.

        Raises:
            NotFound: nothing of that name is known here.
            Refused: several publishers use that name (code=ambiguous).
        """
        name, _, version = ref.partition("@")
        named = [m for m in self.manifests.values() if name in (m.name, m.agent_id)]
        living = [m for m in named if m.status != "revoked"]
        agent_ids = {m.agent_id for m in living or named}
        if len(agent_ids) > 1:
            raise Refused(
                f"{len(agent_ids)} publishers have an agent called {name!r}",
                code="ambiguous",
                hint="use the whole id: " + ", ".join(sorted(agent_ids)[:4]),
            )
        found = [
            m
            for agent_id in agent_ids
            for m in self.versions(agent_id)
            if not version or m.version == version
        ]
        if not found:
            raise NotFound(
                f"no agent {ref!r} is known to this node",
                code="no_such_agent",
                hint="see `zerostate-node agent list`",
            )
        return max(found, key=lambda m: (m.status != "revoked", m.sequence))

    def with_capability(self, capability: str) -> Manifest:
        """The living agent for a capability: the cheapest, then the newest. Raises NotFound."""
        wanted = capability_of(capability)
        able = [m for m in self.newest() if m.status == "active" and wanted in m.capabilities]
        if not able:
            raise NotFound(
                f"no living agent offers {capability!r}",
                code="no_such_capability",
                hint="see `zerostate-node agent list`, and `agent show` for capabilities",
            )
        return min(able, key=lambda m: (m.price.per_call_ucr, m.price.per_mfuel_ucr, -m.issued_ms))

    # -- sync --------------------------------------------------------------------------------------

    def items(self, kind: str) -> list[tuple[bytes, bytes]]:
        """(key, signed bytes) of everything known under `manifests` or `nodes`."""
        if kind == "manifests":
            return [(m.key, m.raw) for m in self.manifests.values()]
        return [(_key(o.raw), o.raw) for o in self.adverts.values()]

    def sums(self, kind: str) -> tuple[bytes, ...]:
        """One short digest for each of 256 buckets of keys; empty where the bucket is."""
        if kind not in self._sums:
            buckets: list[list[bytes]] = [[] for _ in range(256)]
            for key, _ in self.items(kind):
                buckets[key[0]].append(key)
            self._sums[kind] = tuple(
                _key(b"".join(sorted(keys))) if keys else b"" for keys in buckets
            )
        return self._sums[kind]

    # -- the service -------------------------------------------------------------------------------

    async def recall(self) -> None:
        """Read what an earlier life of this node knew."""
        now_ms = self._now_ms()
        for kind, hear in (("manifests", self.hear_manifest), ("nodes", self.hear_advert)):
            for _, raw, _ in await self._journal.recall(kind, now_ms):
                try:
                    hear(raw)
                except WireError as error:
                    log.debug("forgotten", kind=kind, why=error.code)
            self._unsaved[kind].clear()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write news to the journal, drop what expired."""
        task_status.started()
        next_sweep = trio.current_time() + SWEEP_S
        while True:
            await trio.sleep(FLUSH_S)
            await self.flush()
            if trio.current_time() >= next_sweep:
                next_sweep += SWEEP_S
                await self._sweep()

    async def flush(self) -> None:
        """Write what is not in the journal yet, and take out what was let go."""
        for kind, names in self._evicted.items():
            gone = [name for name in names if name not in self._unsaved[kind]]
            names.clear()
            await self._forget(kind, gone)
        for kind, unsaved in self._unsaved.items():
            if not unsaved:
                continue
            items = [(key, raw, until) for key, (raw, until) in unsaved.items()]
            unsaved.clear()
            try:
                await self._journal.remember(kind, items)
            except Unavailable as error:
                log.warning("journal does not take the roster", why=str(error))

    async def _sweep(self) -> None:
        now_ms = self._now_ms()
        for key, entry in list(self._entries.items()):
            done = machine.step(entry, machine.TimePassed(now_ms))
            if machine.Drop() in done.effects:
                self._remove(key)
                await self._forget("manifests", ["@".join(key)])
        gone = [peer for peer, opened in self.adverts.items() if _advert_until(opened) < now_ms]
        for peer in gone:
            del self.adverts[peer]
            self._sums.pop("nodes", None)
        await self._forget("nodes", gone)

    async def _forget(self, kind: str, keys: Iterable[str]) -> None:
        names = list(keys)
        if names:
            try:
                await self._journal.forget(kind, names)
            except Unavailable as error:
                log.warning("journal does not forget", why=str(error))


def _better(new: Manifest, old: Manifest) -> bool:
    return (new.status != "revoked", new.sequence) > (old.status != "revoked", old.sequence)


def _advert_until(opened: Opened) -> int:
    return min(opened.expires_ms, opened.issued_ms + ADVERT_MS_MAX)


def _until(manifest: Manifest) -> int:
    """Revocations are kept for good."""
    return 1 << 53 if manifest.status == "revoked" else manifest.expires_ms


def _key(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:8]
