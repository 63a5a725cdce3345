"""Yamux and its streams: whole frames, enforced credit, reads that lose nothing when cancelled."""

from __future__ import annotations

import functools
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import libp2p
import libp2p.network.stream.net_stream as net_stream
import trio
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.yamux import yamux

FRAME_WRITE_CAP_S = 30.0  # a frame that takes longer than this ends the connection
CUT_CAP_S = 1.0  # to close a connection that is torn anyway
WINDOW_BYTES_MAX = 1 << 20  # credit one stream may have; libp2p lets it grow to 16 MiB
OVERRUN_BYTES_MAX = 256 << 10  # unread data beyond a stream's window after which a peer is cut

SIGNATURES = {
    "libp2p:create_yamux_muxer_option": "",
    "libp2p.stream_muxer.yamux.yamux:Yamux._write_frame": "self,data",
    "libp2p.stream_muxer.yamux.yamux:Yamux._cleanup_on_error": "self",
    "libp2p.stream_muxer.yamux.yamux:YamuxStream.__init__": "self,stream_id,conn,is_initiator",
    "libp2p.network.stream.net_stream:NetStream.close": "self",
    "libp2p.network.stream.net_stream:NetStream.reset": "self",
    "libp2p.stream_muxer.yamux.yamux:YamuxStream._auto_tune_and_send_window_update": (
        "self,bytes_read"
    ),
    "libp2p.stream_muxer.yamux.yamux:MAX_WINDOW_SIZE": "16777216",
    "libp2p.stream_muxer.yamux.yamux:HEADER_SIZE": "12",
    "libp2p.stream_muxer.yamux.yamux:YAMUX_HEADER_FORMAT": "'!BBHII'",
}


class CreditOverrun(trio.TooSlowError):
    """A peer sent more than its window; of this kind, for Yamux's loop then ends the connection."""


def write_whole_frames() -> None:
    """
    Never leave half a frame on the wire.

    A write that was cancelled or timed out tore a Noise message in two, and the peer dropped the
    whole connection ("Failed authentication of message").
    """
    original = yamux.Yamux._write_frame

    @functools.wraps(original)
    async def write_frame(self: Any, data: bytes) -> None:
        _, kind, _, stream_id, _ = struct.unpack(
            yamux.YAMUX_HEADER_FORMAT, data[: yamux.HEADER_SIZE]
        )
        if (
            kind == yamux.TYPE_GO_AWAY
        ):  # the connection ends anyway: a stalled peer must not hold us
            await original(self, data)
            return
        try:
            await self._write_lock.acquire()
        except trio.Cancelled:  # nothing is written yet
            if kind == yamux.TYPE_DATA and stream_id in self.streams:
                self.streams[stream_id].send_window += len(data) - yamux.HEADER_SIZE
            raise
        try:
            with trio.CancelScope(
                shield=True, deadline=trio.current_time() + FRAME_WRITE_CAP_S
            ) as scope:
                await self.secured_conn.write(data)
        finally:
            self._write_lock.release()
        if scope.cancelled_caught:
            await _cut(self)
            raise ConnectionClosedError("connection closed: a frame was not taken in time")
        # The frame is out: to raise Cancelled now would make the caller believe otherwise.
        await trio.lowlevel.cancel_shielded_checkpoint()

    yamux.Yamux._write_frame = write_frame


def read_without_loss() -> None:
    """
    Finish the window update of a read that has its data already.

    `read` takes bytes out of the buffer and then sends a window update; cancelled there, the bytes
    were lost and the stream went on with a hole in it.
    """
    original = yamux.YamuxStream._auto_tune_and_send_window_update

    @functools.wraps(original)
    async def send_update(self: Any, *, bytes_read: int = 0) -> None:
        with trio.CancelScope(shield=True):  # bounded by the cap on each frame
            await original(self, bytes_read=bytes_read)

    yamux.YamuxStream._auto_tune_and_send_window_update = send_update


def close_although_cancelled() -> None:
    """
    Close and reset streams from a cancelled scope too, as trio promises of every `aclose`.

    Else the peer keeps the stream, and here one of the 256 places for streams of ours on this
    connection and one of the host's are lost.
    """
    for name in ("close", "reset"):
        setattr(net_stream.NetStream, name, _outliving(getattr(net_stream.NetStream, name)))


def enforce_windows() -> None:
    """
    Hold peers to their credit: cut one that goes on sending without any, and give less of it.

    Yamux logged a warning, set the window to zero and took everything: 64 MiB a stream and more.
    """
    yamux.MAX_WINDOW_SIZE = WINDOW_BYTES_MAX

    def get(self: Any) -> int:
        return int(self.__dict__["_recv_window"])

    def put(self: Any, value: int) -> None:
        self.__dict__["_recv_window"] = value
        if value >= 0:
            return
        # Yamux now says "0" to us, and a read may give new credit: what tells a flood from a peer
        # that is a frame ahead is how much lies here unread.
        unread = len(self.conn.stream_buffers.get(self.stream_id, b""))
        if unread > self.target_recv_window + OVERRUN_BYTES_MAX:
            raise CreditOverrun(
                f"stream {self.stream_id}: {unread} bytes unread, {-value} too many"
            )

    yamux.YamuxStream.recv_window = property(get, put)


def _outliving(original: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Run a stream's ending as a task of its connection: who asked for it may be cancelled."""

    @functools.wraps(original)
    async def end(self: Any) -> None:
        conn = self.muxed_conn
        nursery = getattr(conn, "_nursery", None)
        if nursery is None or conn.event_shutting_down.is_set():
            await original(self)
            return
        done = trio.Event()
        failed: list[Exception] = []

        async def run() -> None:
            try:
                await original(self)
            except Exception as error:  # goes to whoever waits, not to the connection's nursery
                failed.append(error)
            finally:
                done.set()

        try:
            nursery.start_soon(run)
        except RuntimeError:  # the connection has ended, and its nursery with it
            await original(self)
            return
        await done.wait()
        if failed:
            raise failed[0]

    return end


async def _cut(conn: Any) -> None:
    """Close a connection whose outgoing bytes are torn, whatever state it is in."""
    with trio.move_on_after(CUT_CAP_S) as scope:
        scope.shield = True
        await conn._cleanup_on_error()


def yamux_only() -> None:
    """Offer no mplex: it has no flow control, and none of the above is for it."""
    libp2p.create_yamux_muxer_option = lambda: {TProtocol(yamux.PROTOCOL_ID): yamux.Yamux}


PATCHES = (
    write_whole_frames,
    read_without_loss,
    close_although_cancelled,
    enforce_windows,
    yamux_only,
)
