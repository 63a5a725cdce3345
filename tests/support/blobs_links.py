"""Two ends of a `Link` in memory, and what a bad network or a bad peer does to one."""

from __future__ import annotations

from collections.abc import Callable

import trio

from zerostate_node.errors import Unavailable
from zerostate_node.units import PeerId


class MemoryLink:
    """One end of a framed stream; each direction holds a few frames, like a socket's buffer."""

    def __init__(
        self,
        outgoing: trio.MemorySendChannel[bytes],
        incoming: trio.MemoryReceiveChannel[bytes],
        *,
        limited: bool = False,
    ) -> None:
        self.peer = PeerId("12D3KooWTestTestTestTestTestTestTestTestTestTestTest")
        self.limited = limited
        self.received = 0
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, frame: bytes) -> None:
        try:
            await self._outgoing.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable("the link is closed", code="closed") from error

    async def receive(self) -> bytes:
        try:
            frame = await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise Unavailable("the link is closed", code="closed") from error
        self.received += len(frame)
        return frame

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()


def link_pair(*, limited: bool = False) -> tuple[MemoryLink, MemoryLink]:
    to_b, from_a = trio.open_memory_channel[bytes](2)
    to_a, from_b = trio.open_memory_channel[bytes](2)
    return MemoryLink(to_b, from_b, limited=limited), MemoryLink(to_a, from_a, limited=limited)


class Tampered(MemoryLink):
    """An end whose incoming frames pass through `change`; None from it breaks the link."""

    def __init__(self, inner: MemoryLink, change: Callable[[int, bytes], bytes | None]) -> None:
        super().__init__(inner._outgoing, inner._incoming, limited=inner.limited)
        self._change = change
        self._count = 0

    async def receive(self) -> bytes:
        frame = await super().receive()
        changed = self._change(self._count, frame)
        self._count += 1
        if changed is None:
            await self.aclose()
            raise Unavailable("the link broke", code="closed")
        return changed
