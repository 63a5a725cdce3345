"""
What waits to be written to one work stream, many messages to a frame.

Writing is one task's job; putting is sync and never waits. A peer that does not read lets the
outbox fill, and a full outbox ends the stream: its leases lapse or are handed to others.
"""

from __future__ import annotations

import contextlib
from collections import deque

import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ports.mesh import Link
from zerostate_node.wire import codec, ids
from zerostate_node.wire.messages import Bye, Leases, WorkFrame, WorkMessage

MESSAGES_MAX = 8_192  # full means the peer has not read for seconds: its stream is ended
FRAME_MESSAGES_MAX = 256  # the contract's limit, protocols/work/1
FRAME_BYTES_SOFT_MAX = 512 * 1024  # close a frame when it is this long


class Outbox:
    """Messages for one link, in order."""

    def __init__(self) -> None:
        self._queue: deque[WorkMessage] = deque()
        self._news = trio.Event()
        self._pumping = trio.CancelScope()
        self.overflown = False

    def put(self, message: WorkMessage) -> None:
        """Queue a message; beyond the limit the stream is marked for its end."""
        if len(self._queue) >= MESSAGES_MAX:
            self.overflown = True
            self._pumping.cancel()
        else:
            self._queue.append(message)
        self._news.set()

    def end(self) -> None:
        """End the stream: the same peer has a newer one."""
        self._pumping.cancel()

    async def pump(self, link: Link) -> None:
        """Write until the link ends. Raises Unavailable at its end."""
        with self._pumping:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                while self._queue:
                    await link.send(codec.encode(self._frame()))
        # Not after the send under way: one to a peer that does not read may take for ever.
        if self.overflown:
            raise Unavailable("the peer does not read its work stream", code="slow_peer")
        raise Unavailable("a newer stream took its place", code="replaced")

    def _frame(self) -> tuple[WorkMessage, ...]:
        messages: list[WorkMessage] = []
        size = 0
        while self._queue and len(messages) < FRAME_MESSAGES_MAX and size < FRAME_BYTES_SOFT_MAX:
            message = self._queue.popleft()
            size += _weight(message)
            messages.append(message)
        return tuple(messages)


def _weight(message: WorkMessage) -> int:
    """Roughly how many bytes a message takes: only big fields are counted."""
    if isinstance(message, Leases):
        return len(message.envelope)
    return 200 + len(getattr(message, "output", None) or b"") + len(getattr(message, "text", ""))


async def receive(link: Link) -> tuple[WorkMessage, ...]:
    """The messages of the next frame. Raises WireError, Unavailable."""
    frame: tuple[WorkMessage, ...] = codec.decode(
        await link.receive(), WorkFrame, bytes_max=ids.WORK_FRAME_BYTES_MAX
    )
    return frame


async def say_bye(link: Link, code: str, reason: str, *, retry_after_ms: int = 0) -> None:
    """Tell the other side why, if it still listens, and end the link."""
    bye = Bye(code=code, reason=reason[:512], retry_after_ms=retry_after_ms)
    with trio.move_on_after(2):
        with contextlib.suppress(Unavailable):
            await link.send(codec.encode((bye,)))
    await link.aclose()
