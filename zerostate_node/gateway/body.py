"""
The body of one request, counted and timed as it comes.

Quart buffers a body ahead of its reader, does not bound a chunked one that is read piece by piece,
and does not time it. So Quart is told that the body is empty, and handlers read it here: nothing is
held that no one asked for, and TCP pushes back on a client that is faster than the node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import trio

from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.problems import HttpError, busy, too_large

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class Budget:
    """Bytes of JSON bodies that may be in memory at one time, all requests together."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, size: int) -> None:
        """Reserve `size` bytes, or answer 503."""
        if size > self._left:
            raise busy("too many large requests at one time")
        self._left -= size

    def give(self, size: int) -> None:
        """Hand back what was taken."""
        self._left += size


class RequestBody:
    """
    Reads one request's body, once, from the ASGI server.

    `declared` is its Content-Length, None when chunked; `present` is False when there is none.
    """

    def __init__(
        self,
        receive: Receive,
        settings: GatewaySettings,
        budget: Budget,
        *,
        declared: int | None,
        present: bool,
    ) -> None:
        self._receive = receive
        self._settings = settings
        self._budget = budget
        self._declared = declared
        self._handed_over = False
        self._gone = False
        self._held = 0
        self.present = present
        self.finished = trio.Event()
        if not present:
            self.finished.set()

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """
        The body in pieces as they come.

        Raises: HttpError 413 over `limit` bytes, 408 when it comes too slowly, 400 when the client
        goes away before its end.
        """
        if self._declared is not None and self._declared > limit:
            raise too_large(limit)
        settings = self._settings
        started = trio.current_time()
        received = 0
        while not self.finished.is_set():
            floor = started + settings.body_grace_s + received / settings.body_rate_min
            idle = trio.current_time() + settings.body_idle_timeout_s
            with trio.CancelScope(deadline=min(floor, idle)) as scope:
                message = await self._receive()
            if scope.cancelled_caught:
                raise HttpError(
                    408,
                    "body_too_slow",
                    "the body came too slowly",
                    headers={"connection": "close"},
                )
            piece = self._take(message)
            received += len(piece)
            if received > limit:
                raise too_large(limit)
            if piece:
                yield piece
        if self._gone:
            raise HttpError(400, "client_gone", "the client went away before the body's end")

    async def read(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes."""
        whole = bytearray()
        async for piece in self.chunks(limit):
            self._budget.take(len(piece))
            self._held += len(piece)
            whole += piece
        return bytes(whole)

    def close(self) -> None:
        """The exchange is over: what it held in memory is free."""
        self._budget.give(self._held)
        self._held = 0

    async def drain(self) -> None:
        """
        Throw the rest away until its end or the client's.

        The server hands over a bounded number of pieces and then waits, also for telling that the
        connection is closed; so someone has to take them while an early answer is on its way.
        """
        while not self.finished.is_set():
            self._take(await self._receive())

    async def receive_for_quart(self) -> Mapping[str, Any]:
        """What Quart gets: an empty body, then the end of the connection when it comes."""
        if not self._handed_over:
            self._handed_over = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.finished.wait()
        while not self._gone:
            self._take(await self._receive())
        return {"type": "http.disconnect"}

    def _take(self, message: Mapping[str, Any]) -> bytes:
        if message["type"] != "http.request":
            self._gone = True
            self.finished.set()
            return b""
        if not message.get("more_body", False):
            self.finished.set()
        piece: bytes = message.get("body", b"")
        return piece
