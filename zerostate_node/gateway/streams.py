"""Answers that are streamed: files, and events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import msgspec
import structlog
import trio
from quart.wrappers.response import ResponseBody

from zerostate_node.errors import NotFound, ZeroStateError
from zerostate_node.gateway import problems
from zerostate_node.gateway.metrics import HttpMetrics
from zerostate_node.ports.desk import Event

CHUNK_BYTES = 256 * 1024
PIECE_BYTES_MAX = 64 * 1024  # of events in one write

log = structlog.get_logger()


class FileChunks(ResponseBody):
    """A file as a body; opened before the head is sent, so that a missing one is still a 404."""

    def __init__(self, file: Any, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes

    @classmethod
    async def open(cls, path: str, size_bytes: int) -> FileChunks:
        """Open `path`, which has `size_bytes`. Raises: NotFound."""
        try:
            return cls(await trio.open_file(path, "rb"), size_bytes)
        except FileNotFoundError:
            raise NotFound("these bytes are no longer here") from None

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._file.aclose()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while self._left > 0:
            piece = await self._file.read(min(CHUNK_BYTES, self._left))
            if not piece:
                raise OSError("the file is shorter than it was")
            self._left -= len(piece)
            yield piece


class Streams:
    """How many event streams are open, and the signal that ends them."""

    def __init__(self, counts: HttpMetrics) -> None:
        self.stopping = trio.Event()
        self.open = 0
        self.counts = counts


class EventChunks(ResponseBody):
    """
    A desk's events as Server-Sent Events (https://html.spec.whatwg.org/#server-sent-events).

    A task reads the desk into a small channel; full means that the client is slow, and then the
    desk's own bound decides. Ends with a last event when the gateway stops, so that a client knows
    to come again instead of guessing.
    """

    def __init__(
        self, events: AsyncIterator[Event], *, streams: Streams, ping_interval_s: float
    ) -> None:
        self._events = events
        self._streams = streams
        self._ping_interval_s = ping_interval_s
        self._send, self._receive = trio.open_memory_channel[bytes](64)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        self._count(1)
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._pump)
        return self._pieces()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._count(-1)
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(exc_type, exc_value, tb)

    def _count(self, change: int) -> None:
        self._streams.open += change
        self._streams.counts.streams.set(self._streams.open)

    async def _pieces(self) -> AsyncIterator[bytes]:
        yield b": open\nretry: 1000\n\n"  # the head leaves with the first bytes
        while True:
            piece = b": ping\n\n"
            with trio.move_on_after(self._ping_interval_s):
                try:
                    piece = await self._receive.receive()
                except trio.EndOfChannel:
                    return
            yield piece + self._rest(PIECE_BYTES_MAX - len(piece))

    def _rest(self, room: int) -> bytes:
        """What waits behind a piece leaves with it: one write for a burst of events."""
        pieces: list[bytes] = []
        while room > 0:
            try:
                pieces.append(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            room -= len(pieces[-1])
        return b"".join(pieces)

    async def _pump(self) -> None:
        async with self._send, trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_with, nursery.cancel_scope)
            await self._copy()
            nursery.cancel_scope.cancel()

    async def _stop_with(self, scope: trio.CancelScope) -> None:
        await self._streams.stopping.wait()
        scope.cancel()

    async def _copy(self) -> None:
        try:
            async for event in self._events:
                piece = encode_event(event)
                try:
                    # Without a pause between the events of a burst, so that they leave together.
                    self._send.send_nowait(piece)
                except trio.WouldBlock:
                    await self._send.send(piece)
        except ZeroStateError as error:
            found = problems.of(error)
            await self._send.send(b"event: error\ndata: " + problems.encode(found, "") + b"\n\n")
        except Exception:
            # A bulkhead: the head is long sent, so a broken source ends this stream alone.
            log.exception("an event stream failed")
        finally:
            close = getattr(self._events, "aclose", None)
            if close is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await close()
            if self._streams.stopping.is_set():
                self._last_words()

    def _last_words(self) -> None:
        # A client too slow to have room for it sees the end of the body instead.
        with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
            self._send.send_nowait(b"event: bye\ndata: {}\n\n")


def encode_event(event: Event) -> bytes:
    """One event on the wire; JSON has no line breaks, so `data` is one line."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        event.seq,
        _line(event.kind),
        msgspec.json.encode(event),
    )


def _line(text: str) -> bytes:
    return text.replace("\r", " ").replace("\n", " ").encode()
