"""
The gateway: the node's HTTP server, supervised.

A failure of the server restarts the server; it never ends the node.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import Any

import structlog
import trio
from hypercorn.trio.worker_context import WorkerContext
from prometheus_client import CollectorRegistry

from zerostate_node.errors import Busy, ConfigError
from zerostate_node.gateway.app import Direct, build_app
from zerostate_node.gateway.connection import GuardedConnection, check_hypercorn, server_config
from zerostate_node.gateway.metrics import HttpMetrics
from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.routes import build_routes
from zerostate_node.gateway.shell import Shell
from zerostate_node.gateway.streams import Streams
from zerostate_node.ports.desk import Desk

log = structlog.get_logger()

_BACKLOG = 512
_STEADY_S = 30.0  # a server that ran this long was well: the backoff starts anew


class Gateway:
    """
    Serves a desk over HTTP.

    `operator_key` is the whole of authentication: who has it is the actor "operator".
    """

    def __init__(
        self,
        desk: Desk,
        settings: GatewaySettings,
        *,
        operator_key: str,
        version: str,
        registry: CollectorRegistry | None = None,
    ) -> None:
        if len(operator_key) < 32:
            raise ConfigError("the operator key is too short", hint="it has 43 characters or more")
        check_hypercorn()
        self._desk = desk
        self._settings = settings
        self._key = operator_key
        self._version = version
        self._counts = HttpMetrics(registry or CollectorRegistry())
        self._streams = Streams(self._counts)
        self._connections: set[trio.SocketStream] = set()
        self._empty = trio.Event()  # set while there is no connection
        self._empty.set()
        self._listeners: list[trio.SocketListener] = []
        self._peer = ""
        self.restarts = 0

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """
        Serve until cancelled; then finish what is at work, within `stop_grace_s`.

        Starts with its URL, the real port in it. Raises: Busy when the port is taken, ConfigError
        when the address is not one of this machine. After the start it raises nothing.
        """
        settings = self._settings
        self._peer = str(self._desk.info().get("peer", ""))
        self._listeners = await _listen(settings.host, settings.port)
        port = self._listeners[0].socket.getsockname()[1]
        url = _url(settings.host, port)
        log.info("gateway listens", url=url, host=settings.host)
        task_status.started(url)
        backoff_s = settings.restart_backoff_s
        while True:
            began = trio.current_time()
            try:
                if not self._listeners:
                    self._listeners = await _listen(settings.host, port)
                await self._serve()
            except Exception as error:
                # The bulkhead between the gateway and the node: the node goes on without a gateway
                # for a moment rather than ending with it.
                if trio.current_time() - began > _STEADY_S:
                    backoff_s = settings.restart_backoff_s
                log.error("gateway failed, restarting", error=repr(error)[:500], wait_s=backoff_s)
                self.restarts += 1
                await trio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, settings.restart_backoff_max_s)

    async def _serve(self) -> None:
        self._streams.stopping = stopping = trio.Event()
        context = WorkerContext(None)
        config = server_config(
            keep_alive_timeout_s=self._settings.keep_alive_timeout_s,
            header_bytes_max=self._settings.header_bytes_max,
        )
        routes = build_routes(self._streams, self._version)
        app = build_app(routes, self._desk, self._settings)
        direct = Direct(routes, self._desk, self._settings)
        shell = Shell(app, self._settings, self._key, self._counts, self._health, direct.answer)
        handler = partial(self._serve_one, shell, config, context)
        async with trio.open_nursery() as nursery:
            connections: trio.Nursery = await nursery.start(self._hold_connections, stopping)
            try:
                await app.startup()
                await trio.serve_listeners(handler, self._listeners, handler_nursery=connections)
            finally:
                for listener in self._listeners:
                    listener.socket.close()
                self._listeners = []
                await context.terminated.set()  # idle connections close themselves
                stopping.set()  # event streams say goodbye

    async def _hold_connections(
        self, stopping: trio.Event, *, task_status: trio.TaskStatus[trio.Nursery]
    ) -> None:
        """Where connections live: out of reach of the cancellation that begins a stop."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as connections:
                task_status.started(connections)
                await stopping.wait()
                with trio.move_on_after(self._settings.stop_grace_s):
                    await self._empty.wait()
                if self._connections:
                    log.info("connections cut at stop", count=len(self._connections))
                for stream in list(self._connections):
                    await trio.aclose_forcefully(stream)  # also ends a send that is shielded
                connections.cancel_scope.cancel()

    async def _serve_one(
        self, shell: Shell, config: Any, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        if len(self._connections) >= self._settings.connections_max:
            await trio.aclose_forcefully(stream)
            return
        connection = GuardedConnection(
            shell, config, context, stream, send_timeout_s=self._settings.send_timeout_s
        )
        self._connections.add(stream)
        if self._empty.is_set():
            self._empty = trio.Event()
        try:
            await connection.run()
        finally:
            self._connections.discard(stream)
            if not self._connections:
                self._empty.set()

    def _health(self) -> dict[str, Any]:
        return {"status": "ok", "peer": self._peer, "version": self._version}


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    except socket.gaierror as error:
        raise ConfigError(
            f"http.host {host!r} is not an address of this machine: {error}"
        ) from error
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise Busy(
                    f"port {port} on {host} is taken by another process",
                    hint="stop that process, or set http.port to another one (0 takes a free one)",
                ) from error
            case errno.EACCES:
                raise ConfigError(
                    f"port {port} needs rights that this process does not have",
                    hint="set http.port to 1024 or higher",
                ) from error
            case _:
                raise ConfigError(f"cannot listen on {host} port {port}: {error}") from error
    if port == 0:
        # A name with several addresses would get a different free port on each.
        for spare in listeners[1:]:
            await spare.aclose()
        listeners = listeners[:1]
    return listeners


def _url(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
