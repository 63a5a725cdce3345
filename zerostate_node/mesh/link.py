"""Frames over one yamux stream: what `ports.mesh.Link` promises."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from zerostate_node.errors import Unavailable
from zerostate_node.units import KIB, PeerId

SEND_S_MAX = 30.0  # then the peer is not reading, and the link ends
BATCH_BYTES_MAX = 128 * KIB  # frames of senders that wait go out as one write
CREDIT_BYTES = 64 * KIB  # window given back in steps of this; the smallest window is 256 KiB
LINGER_S = 5.0  # how long the other side has to close after we did
_HEADER = 4

# What a dead stream raises; everything else is a defect and goes up to the bulkhead.
STREAM_ERRORS: tuple[type[Exception], ...] = (
    StreamError,
    MuxedStreamError,
    MuxedConnError,
    SwarmException,
    RawConnError,
    IOException,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)


async def write_patiently(muxed: Any, data: bytes, given_up: Callable[[], bool]) -> None:
    """
    Write to a yamux stream for as long as the caller lets it.

    `YamuxStream.write` gives up after 5 s without window, in the middle of what it was given; so it
    is only handed what fits.
    """
    view = memoryview(data)
    while view:
        while muxed.send_window <= 0:
            if given_up() or muxed.closed or muxed.send_closed:
                raise MuxedStreamError("the stream was closed")
            await trio.sleep(0.005)
        part = view[: muxed.send_window]
        await muxed.write(bytes(part))
        view = view[len(part) :]


class _Outgoing:
    __slots__ = ("data", "done", "failed")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.done = False
        self.failed = False


class StreamLink:
    """
    A link over one stream of py-libp2p.

    Received bytes are taken from the muxer's buffer without a checkpoint in between, because
    `YamuxStream.read` loses what it took when it is cancelled while it gives window back, and
    because a reset must not swallow frames that arrived before it.
    """

    def __init__(
        self,
        stream: Any,
        *,
        peer: PeerId,
        protocol: str,
        limited: bool,
        frame_bytes_max: int,
        on_end: Callable[[StreamLink], None],
    ) -> None:
        self.peer = peer
        self.protocol = protocol
        self.limited = limited
        self.ended = trio.Event()
        self._stream = stream
        muxed = stream.muxed_stream
        if not isinstance(muxed, YamuxStream):
            raise Unavailable(f"peer {peer} speaks another muxer than yamux", code="protocol")
        self._muxed: Any = muxed
        self._conn: Yamux = muxed.conn
        self._sid: int = muxed.stream_id
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._credit = 0  # bytes taken and not given back as window yet
        self._reading = trio.Lock()
        self._writing = trio.Lock()
        self._waiting: deque[_Outgoing] = deque()
        self._why = "the link was closed"
        self._on_end = on_end

    # -- the end -----------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """Mark the link dead and wake whoever waits on it. Sync: used when libp2p itself died."""
        if self.ended.is_set():
            return
        self._why = why
        self.ended.set()
        self._waiting.clear()
        self._wake()
        self._on_end(self)

    def _wake(self) -> None:
        event = self._conn.stream_events.get(self._sid)
        if event is not None:
            event.set()

    def _closed(self) -> Unavailable:
        return Unavailable(f"link to {self.peer}: {self._why}", code="closed")

    async def aclose(self) -> None:
        """End the link, at once and for both sides. Idempotent."""
        await self._close("the link was closed")

    async def _close(self, why: str) -> None:
        # FIN, not RST: a reset makes the other side drop what it has not read yet, also the answer
        # to its negotiation. `linger` resets in the end.
        if self.ended.is_set():
            await trio.lowlevel.checkpoint()
            return
        self.end(why)
        with trio.move_on_after(SEND_S_MAX, shield=True), contextlib.suppress(*STREAM_ERRORS):
            await self._stream.close()

    async def _reset(self, why: str) -> None:
        if self.ended.is_set():
            await trio.lowlevel.checkpoint()
            return
        self.end(why)
        await self._reset_stream()

    async def _reset_stream(self) -> None:
        with trio.move_on_after(SEND_S_MAX, shield=True), contextlib.suppress(*STREAM_ERRORS):
            await self._stream.reset()

    async def linger(self) -> None:
        """After the end: let the other side read and close, then free the stream for good."""
        with trio.move_on_after(LINGER_S):
            while not self._gone():
                arrived = self._conn.stream_buffers.get(self._sid)
                if arrived:
                    arrived.clear()  # nobody reads it any more
                event = self._conn.stream_events[self._sid] = trio.Event()
                await event.wait()
        await self._reset_stream()

    def _gone(self) -> bool:
        """Whether the other side ended the stream, or the connection is over."""
        muxed = self._muxed
        return bool(
            muxed.recv_closed
            or muxed.closed
            or muxed.reset_received
            or self._conn.event_shutting_down.is_set()
            or self._sid not in self._conn.stream_events
        )

    # -- sending -----------------------------------------------------------------------------

    async def send(self, frame: bytes) -> None:
        """
        Write one frame; frames of senders that wait at the same time leave as one write.

        Raises:
            Unavailable: the link is dead, or the peer did not read for 30 s. code=closed.
            ValueError: the frame is longer than this link carries.
        """
        if len(frame) > self._frame_bytes_max:
            raise ValueError(
                f"a frame of {len(frame)} bytes; this link carries {self._frame_bytes_max}"
            )
        if not self.ended.is_set() and self._gone():
            await self._close("the peer ended it")
        if self.ended.is_set():
            raise self._closed()
        item = _Outgoing(len(frame).to_bytes(_HEADER, "big") + frame)
        self._waiting.append(item)
        try:
            async with self._writing:
                if not item.done and not self.ended.is_set():
                    await self._write_waiting()
        finally:
            if not item.done:
                # Cancelled before its turn: nothing of it was written, so nothing is torn.
                with contextlib.suppress(ValueError):
                    self._waiting.remove(item)
        if item.failed or not item.done:
            raise self._closed()

    async def _write_waiting(self) -> None:
        batch: list[_Outgoing] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].data) <= BATCH_BYTES_MAX):
            batch.append(self._waiting.popleft())
            size += len(batch[-1].data)
        data = batch[0].data if len(batch) == 1 else b"".join(item.data for item in batch)
        for item in batch:
            item.done, item.failed = True, True
        why = ""
        try:
            with trio.move_on_after(SEND_S_MAX, shield=True) as scope:
                await write_patiently(self._muxed, data, self.ended.is_set)
            if scope.cancelled_caught:
                why = f"the peer did not read for {SEND_S_MAX:.0f} s"
        except Exception as error:
            # Bulkhead: whatever the library raises here, what is on the wire may be torn.
            why = str(error) or type(error).__name__
        if why:
            await self._reset(why)
            return
        for item in batch:
            item.failed = False

    # -- receiving ---------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """
        The next frame. Safe to cancel: what was taken stays in the link's own buffer.

        Raises:
            Unavailable: the link ended, or the peer announced too long a frame. code=closed.
        """
        async with self._reading:
            while True:
                if self._credit >= CREDIT_BYTES:
                    await self._give_credit()
                # No checkpoint between taking a frame and returning it: a cancelled receive
                # loses nothing.
                frame = self._next_frame()
                if frame is not None:
                    return frame
                if self._oversize():
                    await self._reset("the peer announced a frame longer than the limit")
                    raise self._closed()
                if self._take():
                    continue
                if self.ended.is_set() or self._gone():
                    await self._close("the peer ended it")
                    raise self._closed()
                await self._more()

    def _next_frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < _HEADER:
            return None
        end = _HEADER + int.from_bytes(buffer[:_HEADER], "big")
        if end - _HEADER > self._frame_bytes_max or len(buffer) < end:
            return None
        frame = bytes(memoryview(buffer)[_HEADER:end])
        del buffer[:end]
        return frame

    def _oversize(self) -> bool:
        if len(self._buffer) < _HEADER:
            return False
        return int.from_bytes(self._buffer[:_HEADER], "big") > self._frame_bytes_max

    def _take(self) -> bool:
        arrived = self._conn.stream_buffers.get(self._sid)
        if not arrived:
            return False
        self._buffer += arrived
        self._credit += len(arrived)
        arrived.clear()
        return True

    async def _more(self) -> None:
        event = self._conn.stream_events[self._sid]
        await event.wait()
        if self._conn.stream_events.get(self._sid) is event and not self.ended.is_set():
            self._conn.stream_events[self._sid] = trio.Event()

    async def _give_credit(self) -> None:
        credit = self._credit
        self._credit = 0
        try:
            with contextlib.suppress(*STREAM_ERRORS):
                await self._muxed._auto_tune_and_send_window_update(bytes_read=credit)
        except trio.Cancelled:
            self._credit += credit  # perhaps given twice, which only widens the window once
            raise
