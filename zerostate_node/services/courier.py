"""
Brings bytes here by their digest: from the blob store, else from whoever may have them.

Concurrent requests for one digest share one transfer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog
import trio

from zerostate_node.errors import ConductError, NotFound, Refused, Unavailable, WireError
from zerostate_node.ports.blobs import Blobs
from zerostate_node.units import PeerId
from zerostate_node.wire.messages import BlobRef

log = structlog.get_logger()

# Fetches one blob from one peer into the store. Raises Unavailable, NotFound, ConductError.
Fetch = Callable[[PeerId, BlobRef], Awaitable[None]]
PEERS_TRIED_MAX = 8


class Courier:
    """The one way for services to get at bytes that may be elsewhere."""

    def __init__(
        self,
        *,
        me: PeerId,
        blobs: Blobs,
        fetch: Fetch,
        more_peers: Callable[[], Sequence[PeerId]],
        behaved: Callable[[str, str], None],
    ) -> None:
        self._me = me
        self._blobs = blobs
        self._fetch = fetch
        self._more_peers = more_peers
        self._behaved = behaved
        self._under_way: dict[str, trio.Event] = {}

    async def path(self, ref: BlobRef, hints: Sequence[PeerId] = ()) -> Path:
        """A verified local file with these bytes. Raises NotFound with what was tried."""
        try:
            return await self._blobs.path(ref.digest)
        except NotFound:
            await self.bring(ref, hints)
            return await self._blobs.path(ref.digest)

    async def bring(self, ref: BlobRef, hints: Sequence[PeerId] = ()) -> None:
        """Make sure the bytes are in the store. Raises NotFound with what was tried."""
        while not await self._blobs.has(ref.digest):
            other = self._under_way.get(ref.digest)
            if other is not None:
                await other.wait()
                continue
            self._under_way[ref.digest] = done = trio.Event()
            try:
                await self._bring(ref, hints)
                return
            finally:
                del self._under_way[ref.digest]
                done.set()

    async def _bring(self, ref: BlobRef, hints: Sequence[PeerId]) -> None:
        tried: list[str] = []
        asked: set[PeerId] = {self._me}
        for peer in [*hints, *self._more_peers()]:
            if peer in asked or len(tried) >= PEERS_TRIED_MAX:
                continue
            asked.add(peer)
            try:
                await self._fetch(peer, ref)
            except (Unavailable, NotFound, Refused) as error:
                tried.append(f"{peer[-8:]}: {error}")
            except (ConductError, WireError) as error:
                if error.code == "wrong_size":
                    # Who is wrong, the peer or whoever named this size to us? A lease's owner
                    # could have us refuse honest peers; only bytes that are not the digest's prove.
                    log.info("blob of another size", digest=ref.digest, peer=peer)
                else:
                    self._behaved(peer, "lied")
                tried.append(f"{peer[-8:]}: {error}")
            else:
                log.info("blob fetched", digest=ref.digest, bytes=ref.size_bytes, peer=peer)
                return
        raise NotFound(
            f"{ref.digest} is not here and no peer gave it",
            code="unfetchable",
            hint="; ".join(tried)[:300] or "no peer to ask",
        )
