"""
How peers hand blobs to each other: `/zerostate/blob/1` over a `Link`.

The asker sends `BlobGet`; the answer is `BlobHead` and then chunks in order, or `BlobRefused`. One
request after another on a link. The asker believes nothing but the digest of the whole, and goes on
where it was when a link breaks.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from zerostate_node.errors import ConductError, NotFound, Refused, Unavailable, WireError
from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.mesh import Link
from zerostate_node.units import KIB
from zerostate_node.wire import codec, ids
from zerostate_node.wire.messages import (
    BlobChunk,
    BlobGet,
    BlobHead,
    BlobMessage,
    BlobRef,
    BlobRefused,
)

log = structlog.get_logger()

REQUEST_BYTES_MAX: Final = 4 * KIB
IDLE_S = 60.0  # a link on which nobody asks anything is ended
STALL_S = 30.0  # one frame must go through in this time
RATE_MIN_BYTES_S = 32 * KIB  # a peer slower than this over the whole blob is given up
GRACE_S = 30.0  # on top of what the slowest rate allows
FRUITLESS_MAX = 4  # links in a row that brought no byte
LINKS_MAX = 16  # links for one blob, so that a peer cannot hand it out byte by byte
BACKOFF_S = 0.25  # doubled with each fruitless link


# -- serving -------------------------------------------------------------------------------------


async def serve_blobs(link: Link, blobs: Blobs, *, limited_bytes_max: int) -> None:
    """
    Answer a peer's requests until the link ends; nothing of the peer can raise out of here.

    Args:
        limited_bytes_max: what may go through a relay that counts bytes, in all, bytes.
    """
    budget = limited_bytes_max if link.limited else None
    try:
        while True:
            with trio.fail_after(IDLE_S):
                frame = await link.receive()
            sent = await _answer(link, blobs, frame, budget)
            if budget is not None:
                budget -= sent
    except (Unavailable, trio.TooSlowError):
        pass  # gone, silent, or not reading: the end of this link, as ends go
    except (WireError, ConductError) as error:
        log.info("Blob peer sent nonsense", peer=link.peer, code=error.code, cause=error.message)
        with contextlib.suppress(Unavailable, trio.TooSlowError):
            await _send(link, BlobRefused(code="malformed", reason=error.message[:200]))
    finally:
        with trio.CancelScope(shield=True):
            await link.aclose()


async def _answer(link: Link, blobs: Blobs, frame: bytes, budget: int | None) -> int:
    """Answer one request; the number of blob bytes that were sent."""
    request = codec.decode(frame, BlobMessage, bytes_max=REQUEST_BYTES_MAX)
    if not isinstance(request, BlobGet):
        raise ConductError("an answer where a request belongs", code="not_allowed")
    size_bytes = await blobs.size(request.digest)
    if size_bytes is None:
        await _send(link, BlobRefused(code="not_found"))
        return 0
    if request.offset > size_bytes:
        await _send(link, BlobRefused(code="not_allowed", reason="offset past the end"))
        return 0
    end = min(size_bytes, request.offset + request.length) if request.length else size_bytes
    if budget is not None and end - request.offset > budget:
        reason = f"{budget} bytes are left for this relayed link"
        await _send(link, BlobRefused(code="too_large", reason=reason))
        return 0
    await _send(link, BlobHead(size_bytes=size_bytes))
    at = request.offset
    while at < end:
        try:
            data = await blobs.read(request.digest, at, min(ids.BLOB_CHUNK_BYTES_MAX, end - at))
        except NotFound:
            data = b""
        except Unavailable as error:
            await _send(link, BlobRefused(code="busy", reason=error.code))
            return at - request.offset
        if not data:  # removed, or cut short, while we were sending it
            await _send(link, BlobRefused(code="not_found"))
            return at - request.offset
        await _send(link, BlobChunk(offset=at, data=data))
        at += len(data)
    return end - request.offset


async def _send(link: Link, message: BlobMessage) -> None:
    with trio.fail_after(STALL_S):
        await link.send(codec.encode(message))


# -- fetching ------------------------------------------------------------------------------------


async def fetch_blob(
    open_link: Callable[[], Awaitable[Link]], ref: BlobRef, blobs: Blobs, *, bytes_max: int
) -> None:
    """
    Get a blob from a peer into `blobs`, unless it is there already.

    Args:
        open_link: gives a new link to the peer; asked again when one breaks.
        bytes_max: a larger blob is not asked for, bytes.

    Raises:
        NotFound: the peer does not have it.
        Refused: larger than `bytes_max`, or the peer will not give it (too_large, not_allowed).
        Unavailable: unreachable, busy, too slow, or links broke too often.
        ConductError, WireError: the peer lied; nothing was stored.
    """
    if ref.size_bytes > bytes_max:
        raise Refused(
            f"{ref.digest} has {ref.size_bytes} bytes, at most {bytes_max} are allowed",
            code="too_large",
        )
    if await blobs.has(ref.digest):
        return
    incoming = _Incoming(open_link, ref)
    try:
        with trio.fail_after(GRACE_S + ref.size_bytes / RATE_MIN_BYTES_S):
            await blobs.put_stream(incoming, bytes_max=ref.size_bytes)
    except trio.TooSlowError as error:
        raise Unavailable(f"{ref.digest} came too slowly", code="too_slow") from error
    finally:
        with trio.CancelScope(shield=True):
            await incoming.aclose()


class _Incoming:
    """One blob in order, over as many links as it takes; raises at the end when it is wrong."""

    def __init__(self, open_link: Callable[[], Awaitable[Link]], ref: BlobRef) -> None:
        self._open_link = open_link
        self._ref = ref
        self._link: Link | None = None
        self._at = 0
        self._hash = hashlib.sha256()
        self._links = 0
        self._fruitless = 0

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> bytes:
        while self._at < self._ref.size_bytes:
            try:
                if self._link is None:
                    await self._ask()
                data = await self._chunk()
            except (Unavailable, trio.TooSlowError) as error:
                await self._broke(error)
                continue
            self._fruitless = 0
            return data
        if f"sha256:{self._hash.hexdigest()}" != self._ref.digest:
            raise ConductError(f"the bytes are not {self._ref.digest}", code="wrong_digest")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            await link.aclose()

    async def _ask(self) -> None:
        self._links += 1
        self._link = await self._open_link()
        await _send(self._link, BlobGet(digest=self._ref.digest, offset=self._at))
        head = await self._receive()
        if not isinstance(head, BlobHead):
            raise ConductError("no head where one belongs", code="not_allowed")
        if head.size_bytes != self._ref.size_bytes:
            raise ConductError(
                f"{self._ref.digest} has {self._ref.size_bytes} bytes, "
                f"the peer says {head.size_bytes}",
                code="wrong_size",
            )

    async def _chunk(self) -> bytes:
        chunk = await self._receive()
        if not isinstance(chunk, BlobChunk) or chunk.offset != self._at or not chunk.data:
            raise ConductError(f"no bytes from {self._at} where they belong", code="wrong_offset")
        if self._at + len(chunk.data) > self._ref.size_bytes:
            raise ConductError(f"more than {self._ref.size_bytes} bytes", code="wrong_size")
        self._at += len(chunk.data)
        if len(chunk.data) > 64 * KIB:  # a millisecond of hashing is the loop's, more is a thread's
            await trio.to_thread.run_sync(self._hash.update, chunk.data)
        else:
            self._hash.update(chunk.data)
        return chunk.data

    async def _receive(self) -> Any:
        assert self._link is not None
        with trio.fail_after(STALL_S):
            frame = await self._link.receive()
        message = codec.decode(frame, BlobMessage, bytes_max=ids.BLOB_FRAME_BYTES_MAX)
        if isinstance(message, BlobRefused):
            raise _refusal(self._ref, message)
        return message

    async def _broke(self, error: Exception) -> None:
        await self.aclose()
        self._fruitless += 1
        if self._fruitless >= FRUITLESS_MAX or self._links >= LINKS_MAX:
            raise Unavailable(
                f"{self._ref.digest}: {self._at} of {self._ref.size_bytes} bytes after "
                f"{self._links} links: {error}",
                code=getattr(error, "code", "too_slow"),
            ) from error
        await trio.sleep(BACKOFF_S * 2 ** (self._fruitless - 1))


def _refusal(ref: BlobRef, message: BlobRefused) -> Exception:
    why = f"the peer does not give {ref.digest}: {message.code} {message.reason}".strip()
    match message.code:
        case "not_found":
            return NotFound(why)
        case "too_large":
            return Refused(why, code="too_large")
        case "busy":
            return Unavailable(why, code="busy")
    return Refused(why, code="not_allowed")
