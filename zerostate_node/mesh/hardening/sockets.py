"""WebSocket: whoever can reach the port could end the process with a few bytes."""

from __future__ import annotations

import functools
from typing import Any

import libp2p.transport.websocket.listener as listener
import structlog
import trio
import trio_websocket._impl as trio_websocket

HANDSHAKE_TIMEOUT_S = 4.0  # the default is 60: silent sockets pile up
GOODBYE_TIMEOUT_S = 2.0

SIGNATURES = {
    "libp2p.transport.websocket.listener:serve_websocket": (
        "handler,host,port,ssl_context,handler_nursery,message_queue_size,max_message_size,"
        "receive_buffer_size,connect_timeout,disconnect_timeout,task_status"
    ),
    "trio_websocket._impl:WebSocketServer._handle_connection": "self,stream",
    "trio_websocket._impl:WebSocketConnection._reader_task": "self",
    "trio_websocket._impl:WebSocketConnection._close_stream": "self",
    "trio_websocket._impl:WebSocketConnection.aclose": "self,code,reason",
}

log = structlog.get_logger()


def contain_connections() -> None:
    """
    End one WebSocket connection on whatever goes wrong in it.

    The listener runs as a system task of trio: an exception of one connection (bytes that are no
    HTTP, then a closed socket) was a TrioInternalError, and the end of the process.
    """
    handle = trio_websocket.WebSocketServer._handle_connection
    read = trio_websocket.WebSocketConnection._reader_task

    @functools.wraps(handle)
    async def handle_contained(self: Any, stream: Any) -> None:
        try:
            await handle(self, stream)
        except Exception as error:  # a bulkhead: an exception here ends the process
            log.debug("a websocket connection failed", error=repr(error)[:200])

    @functools.wraps(read)
    async def read_contained(self: Any) -> None:
        try:
            await read(self)
        except Exception as error:  # a bulkhead: outbound, this is a task of the swarm's nursery
            log.debug("a websocket connection failed", error=repr(error)[:200])
            await self._close_stream()

    _replace(trio_websocket.WebSocketServer, "_handle_connection", handle_contained)
    _replace(trio_websocket.WebSocketConnection, "_reader_task", read_contained)


def free_silent_sockets() -> None:
    """
    Give a WebSocket handshake four seconds, and a goodbye two.

    To close one waits for the peer's closing frame: a peer that sends none kept us for good.
    """
    aclose = trio_websocket.WebSocketConnection.aclose

    @functools.wraps(aclose)
    async def aclose_soon(self: Any, code: int = 1000, reason: str | None = None) -> None:
        try:
            with trio.move_on_after(GOODBYE_TIMEOUT_S):
                await aclose(self, code, reason)
        finally:
            await self._close_stream()

    _replace(trio_websocket.WebSocketConnection, "aclose", aclose_soon)
    listener.serve_websocket = functools.partial(
        listener.serve_websocket,
        connect_timeout=HANDSHAKE_TIMEOUT_S,
        disconnect_timeout=GOODBYE_TIMEOUT_S,
    )


def _replace(owner: Any, name: str, function: Any) -> None:
    setattr(owner, name, function)


PATCHES = (contain_connections, free_silent_sockets)
