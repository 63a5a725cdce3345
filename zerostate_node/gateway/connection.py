"""
One HTTP/1.1 connection, on hypercorn's parser and streams, with what hypercorn 0.18.0 lacks.

Unguarded, one request ends the whole server (github.com/pgjones/hypercorn/issues/225), a client
that stops reading holds a task that no cancellation reaches, and any client may switch to HTTP/2.
The classes below are used directly, so nothing is patched into hypercorn; the exact version is
checked, since they lean on its inner names. `tests/gateway` has a test for each defect.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from zerostate_node.gateway import problems
from zerostate_node.gateway.exchange import WORK_KEY

HYPERCORN_VERSION = "0.18.0"
_LEANED_ON = {
    TCPServer: ("protocol_send", "_read_data", "_initiate_server_close", "_close"),
    H11Protocol: ("_check_protocol", "_create_stream", "_send_h11_event", "_send_error_response"),
}

log = structlog.get_logger()


def check_hypercorn() -> None:
    """
    That hypercorn is the one that the guards below were written for.

    Raises: RuntimeError naming what differs.
    """
    found = importlib.metadata.version("hypercorn")
    if found != HYPERCORN_VERSION:
        raise RuntimeError(f"the gateway is guarded for hypercorn {HYPERCORN_VERSION}, not {found}")
    for owner, names in _LEANED_ON.items():
        for name in names:
            if name not in vars(owner):
                raise RuntimeError(f"hypercorn's {owner.__name__} has no {name}")


class PatientParser(h11.Connection):
    """Lets an answer that has begun end, whatever the client sends meanwhile."""

    def next_event(self) -> Any:
        """The next event; rubbish behind a request is not looked at before its answer is out."""
        try:
            return super().next_event()
        except h11.RemoteProtocolError:
            if self.our_state is h11.SEND_BODY:
                return h11.PAUSED
            raise


class NoticedStream(HTTPStream):  # type: ignore[misc]  # hypercorn is not typed for us
    """Cancels the work for a request whose client left, without a task that waits for it."""

    async def handle(self, event: StreamEvent) -> None:
        """Pass an event on; at the end, whoever asked for it in the scope is cancelled first."""
        if isinstance(event, StreamClosed) and not self.closed:
            work: trio.CancelScope | None = self.scope.get(WORK_KEY)
            if work is not None:
                work.cancel()
        await super().handle(event)


class PlainHttp(H11Protocol):  # type: ignore[misc]  # hypercorn is not typed for us
    """HTTP/1.1 and nothing else: offers to switch to WebSocket or HTTP/2 are ignored."""

    _head = b""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = PatientParser(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        """No h2c upgrade and no HTTP/2 by prior knowledge."""

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = NoticedStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data  # leaves with the first bytes of the body: one write, not two
            return
        data, self._head = self._head + (data or b""), b""
        if data:
            await self.send(RawData(data=data))

    async def _send_error_response(self, status_code: int) -> None:
        error = problems.HttpError(
            status_code,
            "bad_http",
            "this is not a request that HTTP/1.1 allows",
            headers={"connection": "close"},
        )
        body = problems.encode(error, "")
        head = problems.headers(error, body) + self.config.response_headers("h11")
        await self._send_h11_event(h11.Response(status_code=status_code, headers=head))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class GuardedConnection(TCPServer):  # type: ignore[misc]  # hypercorn is not typed for us
    """A connection whose failure is its own, and whose sends end."""

    def __init__(
        self,
        app: Callable[..., Any],
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        *,
        send_timeout_s: float,
    ) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)
        self._send_timeout_s = send_timeout_s
        self._over = False  # nothing more is read
        self._idle_until = math.inf  # infinite while a request is at work
        self._watch = trio.CancelScope()

    async def run(self) -> None:
        """Serve until either side closes. Raises nothing but a cancellation."""
        try:
            await self._converse()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left in the middle: nothing to tell
        except* Exception as errors:
            # A bulkhead: whatever one client provokes ends with that client's connection.
            log.warning("a connection failed", error=repr(errors.exceptions[0])[:500])
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _converse(self) -> None:
        socket = self.stream.socket
        client = parse_socket_addr(socket.family, socket.getpeername())
        server = parse_socket_addr(socket.family, socket.getsockname())
        try:
            async with TaskGroup() as task_group:
                self._task_group = task_group
                self.protocol = PlainHttp(
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    self.state,
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.protocol.initiate()
                self._set_idle(True)
                task_group.spawn(self._close_when_idle)
                await self._read_data()
                self._over = True
                self._watch.cancel()  # else the socket stays until the idle timeout
        finally:
            await self._close()

    def _set_idle(self, idle: bool) -> None:
        keep_s = self.config.keep_alive_timeout
        self._idle_until = trio.current_time() + keep_s if idle else math.inf
        self._watch.deadline = self._idle_until

    async def _close_when_idle(self) -> None:
        """
        Close once no request is at work for the keep-alive time, or when the server stops.

        One task for the connection's life: hypercorn's own starts one for each request, which is a
        tenth of what a small request costs.
        """
        terminated = self.context.terminated
        while not self._over:
            with trio.CancelScope(deadline=self._idle_until) as self._watch:
                await terminated.wait()
            if self._idle_until < math.inf:
                break
            if terminated.is_set():
                return  # hypercorn closes once the request at work is answered
        if not self._over:
            with trio.CancelScope(shield=True):
                await self._initiate_server_close()

    async def protocol_send(self, event: Event) -> None:
        """
        Send, for `send_timeout_s` at most.

        Shielded like hypercorn's own, so that an answer is not cut when its handler ends; but a
        client that takes no byte is closed instead of being waited for.
        """
        if isinstance(event, Updated):
            self._set_idle(event.idle)
            return
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            deadline = trio.current_time() + self._send_timeout_s
            try:
                with trio.CancelScope(deadline=deadline, shield=True) as scope:
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self.protocol.handle(Closed())  # gone, or being closed by another task
                return
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())


def server_config(*, keep_alive_timeout_s: float, header_bytes_max: int) -> Config:
    """Hypercorn's settings: no log of its own, no `server` header, bounded heads."""
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = keep_alive_timeout_s
    config.h11_max_incomplete_size = header_bytes_max
    return config
