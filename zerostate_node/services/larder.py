"""
Blobs as peers may fetch them: the blob store, and the small inputs that live in the ledger's rows.

A small input never becomes a blob of its own (that would cost an fsync a task), yet whoever holds a
receipt must be able to fetch what it names and run it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.ledger import Ledger
from zerostate_node.wire.messages import BlobRef


class Larder:
    """A `Blobs` whose reads fall back to the ledger; writes go to the store."""

    def __init__(self, blobs: Blobs, ledger: Ledger) -> None:
        self._blobs = blobs
        self._ledger = ledger

    async def _stock(self, digest: str) -> None:
        """Make a blob of an inline input the first time that somebody asks for it."""
        if not await self._blobs.has(digest):
            data = await self._ledger.inline_blob(digest)
            if data is not None:
                await self._blobs.put(data)

    async def put(self, data: bytes) -> BlobRef:
        """Store bytes."""
        return await self._blobs.put(data)

    async def put_stream(self, chunks: AsyncIterator[bytes], *, bytes_max: int) -> BlobRef:
        """Store a stream."""
        return await self._blobs.put_stream(chunks, bytes_max=bytes_max)

    async def has(self, digest: str) -> bool:
        """Whether the bytes are here."""
        await self._stock(digest)
        return await self._blobs.has(digest)

    async def size(self, digest: str) -> int | None:
        """Length in bytes, None when not here."""
        await self._stock(digest)
        return await self._blobs.size(digest)

    async def get(self, digest: str, *, bytes_max: int) -> bytes:
        """The whole blob."""
        await self._stock(digest)
        return await self._blobs.get(digest, bytes_max=bytes_max)

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range."""
        return await self._blobs.read(digest, offset, length)

    async def path(self, digest: str) -> Path:
        """A local file with exactly these verified bytes."""
        await self._stock(digest)
        return await self._blobs.path(digest)

    async def usage(self) -> Mapping[str, int]:
        """What the store holds."""
        return await self._blobs.usage()
