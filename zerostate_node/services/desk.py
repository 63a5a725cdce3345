"""
The front desk: what clients may ask of this node, answered by the services behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio

from zerostate_node.errors import NotFound, Unavailable
from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.desk import (
    Check,
    Download,
)
from zerostate_node.ports.ledger import Ledger
from zerostate_node.services.catalogue import Catalogue
from zerostate_node.services.doctor import Doctor
from zerostate_node.services.taskdesk import TaskDesk
from zerostate_node.services.witness import Witness
from zerostate_node.wire import ids

LEDGER_CHECK_S_MAX = 5.0


class FrontDesk:
    """Implements the `Desk` port; see there for what each method promises and raises."""

    def __init__(
        self,
        *,
        tasks: TaskDesk,
        catalogue: Catalogue,
        witness: Witness,
        doctor: Doctor,
        ledger: Ledger,
        blobs: Blobs,
        upload_bytes_max: int,
    ) -> None:
        self._tasks = tasks
        self._catalogue = catalogue
        self._doctor = doctor
        self._ledger = ledger
        self._blobs = blobs
        self._upload_bytes_max = upload_bytes_max
        self.verify = witness.verify
        self.replay = witness.replay
        self.publish = catalogue.publish
        self.agents = catalogue.agents
        self.agent = catalogue.agent
        self.revoke = catalogue.revoke
        self.task = tasks.task
        self.tasks = tasks.tasks
        self.submit = tasks.submit
        self.result = tasks.result
        self.receipt = tasks.receipt
        self.cancel = tasks.cancel
        self.watch = tasks.watch
        self.peers = doctor.peers
        self.info = doctor.info

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Store input or a module."""
        ref = await self._blobs.put_stream(chunks, bytes_max=self._upload_bytes_max)
        return {"digest": ref.digest, "size_bytes": ref.size_bytes}

    async def blob(self, digest: str) -> Download:
        """The bytes of a blob that is here."""
        size = await self._blobs.size(digest) if ids.is_digest(digest) else None
        if size is None:
            raise NotFound(f"no blob {digest[:80]!r} is here", code="no_such_blob")
        path = await self._blobs.path(digest)
        return Download(digest=digest, size_bytes=size, path=str(path))

    # -- the node ----------------------------------------------------------------------------------

    async def doctor(self) -> list[Check]:
        """What an operator asks first."""
        return [*await self.ready(), *self._doctor.checkup()]

    async def ready(self) -> list[Check]:
        """Named causes; all ok means ready."""
        try:
            with trio.fail_after(LEDGER_CHECK_S_MAX):
                await self._ledger.check()
            ledger = Check(name="ledger", ok=True, detail="a commit works")
        except (Unavailable, trio.TooSlowError) as error:
            ledger = Check(
                name="ledger",
                ok=False,
                detail=str(error) or "a commit took more than 5 s",
                hint="is the disk full or slow?",
            )
        return [ledger, *self._doctor.ready()]
