"""
A link from the node to itself: its own worker serves its own owner over the same protocol as any
other, so that there is one path to test.
"""

from __future__ import annotations

import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ports.mesh import Link
from zerostate_node.units import PeerId

FRAMES_MAX = 64  # full means that the other half is busy: the sender waits


class LoopLink:
    """One end of an in-memory link."""

    limited = False

    def __init__(
        self,
        peer: PeerId,
        send: trio.MemorySendChannel[bytes],
        receive: trio.MemoryReceiveChannel[bytes],
    ) -> None:
        self.peer = peer
        self._send = send
        self._receive = receive

    async def send(self, frame: bytes) -> None:
        """Hand over one frame."""
        try:
            await self._send.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable("the link is closed", code="closed") from error

    async def receive(self) -> bytes:
        """The next frame."""
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise Unavailable("the link is closed", code="closed") from error

    async def aclose(self) -> None:
        """End both directions."""
        await self._send.aclose()
        await self._receive.aclose()


def loop(me: PeerId) -> tuple[Link, Link]:
    """Two ends of a link whose other side is this node."""
    to_b, from_a = trio.open_memory_channel[bytes](FRAMES_MAX)
    to_a, from_b = trio.open_memory_channel[bytes](FRAMES_MAX)
    return LoopLink(me, to_b, from_b), LoopLink(me, to_a, from_a)
