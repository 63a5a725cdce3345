"""
Agents as clients see them: publish, find, revoke; and this node's own cards, kept fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import NotFound, Refused, Unavailable, WireError
from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.desk import AgentView
from zerostate_node.ports.ledger import AgentRow, Ledger, PublishAgent
from zerostate_node.ports.sandbox import Rejection, Sandbox
from zerostate_node.services.herald import Herald
from zerostate_node.services.roster import Roster
from zerostate_node.units import DAY_MS, HOUR_MS, Digest, PeerId
from zerostate_node.wire import ids
from zerostate_node.wire.cards import Manifest, capability_of, open_card, sign_card
from zerostate_node.wire.drafts import draft_card, reissue_card
from zerostate_node.wire.messages import BlobRef

log = structlog.get_logger()

CARD_TTL_MS = 60 * DAY_MS
CARD_RENEW_MS = CARD_TTL_MS // 2


class Catalogue:
    """The agents this node knows, and those it publishes."""

    def __init__(
        self,
        *,
        peer: PeerId,
        key: Ed25519PrivateKey,
        ledger: Ledger,
        blobs: Blobs,
        sandbox: Sandbox,
        roster: Roster,
        herald: Herald,
        module_bytes_max: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._did = ids.did_of(peer)
        self._key = key
        self._ledger = ledger
        self._blobs = blobs
        self._sandbox = sandbox
        self._roster = roster
        self._herald = herald
        self._module_bytes_max = module_bytes_max
        self._now_ms = now_ms

    async def publish(self, draft: dict[str, Any], *, module: str, script: str = "") -> AgentView:
        """Validate, sign as this node, store and gossip an agent."""
        module_ref = await self._ref(module)
        script_ref = await self._ref(script) if script else None
        if module_ref.size_bytes > self._module_bytes_max:
            raise Refused(
                f"the module has {module_ref.size_bytes} bytes, "
                f"at most {self._module_bytes_max} are run here",
                code="module_too_large",
            )
        now_ms = self._now_ms()
        card = draft_card(
            draft,
            module=module_ref,
            script=script_ref,
            publisher=self._did,
            sequence=now_ms,
            now_ms=now_ms,
            ttl_ms=CARD_TTL_MS,
        )
        try:
            await self._sandbox.prepare(Digest(module), await self._blobs.path(module))
        except Rejection as rejection:
            raise Refused(
                f"this module would never run: {rejection.message}",
                code=rejection.code,
                hint="protocols/guest/1 says what a module must look like",
            ) from rejection
        known = self._roster.manifests.get(
            (ids.agent_id_of(self._did, card["name"]), card["version"])
        )
        if known is not None and (known.module, known.script) == (module_ref, script_ref):
            log.info("agent published already", agent=known.agent_id, version=known.version)
            if known.status != "revoked":
                return self._agent_view(known)
        return self._agent_view(await self._issue(card))

    async def _ref(self, digest: str) -> BlobRef:
        size = await self._blobs.size(digest) if ids.is_digest(digest) else None
        if size is None:
            raise NotFound(
                f"no blob {digest[:80]!r} is here",
                code="no_such_blob",
                hint="upload it first: POST /api/v1/blobs",
            )
        return BlobRef(digest=digest, size_bytes=size)

    async def _issue(self, card: dict[str, Any], *, renewal: bool = False) -> Manifest:
        """Sign a card, make it durable, then believe and say it."""
        raw = sign_card(card, self._key)
        manifest = open_card(raw, now_ms=self._now_ms())
        row = AgentRow(
            agent_id=manifest.agent_id,
            version=manifest.version,
            sequence=manifest.sequence,
            name=manifest.name,
            publisher=manifest.publisher,
            status=manifest.status,
            card=manifest.raw,
            published_ms=self._now_ms(),
        )
        (result,) = await self._ledger.commit([PublishAgent(row=row, renewal=renewal)])
        if isinstance(result, Refused):
            raise result
        self._roster.hear_manifest(manifest.raw)
        await self._herald.say_card(manifest.raw, manifest.agent_id)
        return manifest

    async def recall_agents(self) -> None:
        """At start: believe what this node published in earlier lives."""
        for row in await self._ledger.agents(publisher=self._did):
            try:
                self._roster.hear_manifest(row.card)
            except WireError as error:
                if error.code != "expired":
                    log.error("own card unreadable", agent=row.agent_id, why=str(error))

    async def renew_cards(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reissue own cards long before they expire."""
        task_status.started()
        while True:
            now_ms = self._now_ms()
            for manifest in list(self._roster.manifests.values()):
                if (
                    manifest.publisher == self._did
                    and manifest.status != "revoked"
                    and manifest.expires_ms - now_ms < CARD_RENEW_MS
                ):
                    card = reissue_card(
                        manifest.raw,
                        sequence=max(now_ms, manifest.sequence + 1),
                        now_ms=now_ms,
                        ttl_ms=CARD_TTL_MS,
                        status=manifest.status,
                    )
                    try:
                        await self._issue(card, renewal=True)
                    except (Refused, Unavailable) as error:
                        log.warning("card not renewed", agent=manifest.agent_id, why=str(error))
            await trio.sleep(HOUR_MS / 1000)

    async def agents(self, *, query: str = "", capability: str = "") -> list[AgentView]:
        """The newest version of each agent known."""
        wanted = capability_of(capability) if capability else ""
        words = query.lower().split()
        return [
            self._agent_view(m)
            for m in self._roster.newest()
            if (not wanted or wanted in m.capabilities)
            and all(
                w in f"{m.name} {m.description} {m.publisher} {' '.join(m.capabilities)}".lower()
                for w in words
            )
        ]

    async def agent(self, ref: str) -> tuple[AgentView, bytes]:
        """An agent with its signed card."""
        manifest = self._roster.find(ref)
        return self._agent_view(manifest), manifest.raw

    async def revoke(self, ref: str, *, reason: str) -> AgentView:
        """Final: no node runs this version again."""
        manifest = self._roster.find(ref)
        if manifest.publisher != self._did:
            raise Refused(
                f"{manifest.name} belongs to {manifest.publisher}",
                code="not_yours",
                hint="only the node that published an agent can revoke it",
            )
        if manifest.status == "revoked":
            return self._agent_view(manifest)
        now_ms = self._now_ms()
        card = reissue_card(
            manifest.raw,
            sequence=max(now_ms, manifest.sequence + 1),
            now_ms=now_ms,
            ttl_ms=CARD_TTL_MS,
            status="revoked",
            reason=reason,
        )
        return self._agent_view(await self._issue(card))

    def _agent_view(self, manifest: Manifest) -> AgentView:
        return AgentView(
            agent_id=manifest.agent_id,
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            publisher=manifest.publisher,
            status=manifest.status,
            capabilities=manifest.capabilities,
            module_digest=manifest.module.digest,
            module_bytes=manifest.module.size_bytes,
            script_digest=manifest.script.digest if manifest.script else None,
            limits=manifest.limits,
            price=manifest.price,
            sequence=manifest.sequence,
            expires_ms=manifest.expires_ms,
            local=manifest.publisher == self._did,
            versions=tuple(m.version for m in self._roster.versions(manifest.agent_id)),
        )
