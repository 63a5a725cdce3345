"""Bytes by content address, as services see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

from zerostate_node.wire.messages import BlobRef


class Blobs(Protocol):
    """Bytes by content address. Every read is checked against its digest before it is believed."""

    async def put(self, data: bytes) -> BlobRef:
        """Store bytes; durable when it returns."""

    async def put_stream(self, chunks: AsyncIterator[bytes], *, bytes_max: int) -> BlobRef:
        """Store a stream without holding it in memory. Refused(too_large) past `bytes_max`."""

    async def has(self, digest: str) -> bool:
        """Whether the bytes are here."""

    async def size(self, digest: str) -> int | None:
        """Length in bytes, None when not here."""

    async def get(self, digest: str, *, bytes_max: int) -> bytes:
        """The whole blob. NotFound; Refused(too_large); a corrupt copy is removed and NotFound."""

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range, unverified by itself: for serving peers, who check the whole."""

    async def path(self, digest: str) -> Path:
        """A local file with exactly these verified bytes, read-only by contract. NotFound."""

    async def usage(self) -> Mapping[str, int]:
        """`{"blobs": count, "bytes": total}`."""
