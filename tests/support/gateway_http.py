"""A gateway on a real socket, and raw HTTP on it, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import trio
from prometheus_client import CollectorRegistry

from zerostate_node.gateway import Gateway, GatewaySettings
from zerostate_node.ports.desk import Desk

KEY = "operator-key-for-tests-0123456789-abcdefghi"
PATIENCE_S = 15.0  # how long a loaded machine may take for what is immediate


@dataclass
class Served:
    gateway: Gateway
    url: str
    port: int
    registry: CollectorRegistry
    scope: trio.CancelScope
    ended: trio.Event

    def stop(self) -> None:
        self.scope.cancel()

    async def raw(self, data: bytes, *, until_close: bool = True) -> bytes:
        """Send bytes on a new connection and read to its end (or to the first bytes)."""
        stream = await self.connect()
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data)
            return await read(stream, until_close=until_close)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def is_well(self) -> bool:
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client:
            return (await client.get("/health")).status_code == 200

    def sample(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


Serve = Callable[..., AbstractAsyncContextManager[Served]]


async def read(stream: trio.SocketStream, *, until_close: bool = True) -> bytes:
    whole = b""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                piece = await stream.receive_some(65536)
            except trio.BrokenResourceError:
                return whole
            whole += piece
            if not piece or not until_close:
                return whole


@asynccontextmanager
async def serve(desk: Desk, **settings: Any) -> AsyncIterator[Served]:
    """A gateway serving `desk` on a free port, stopped at the end."""
    registry = CollectorRegistry()
    gateway = Gateway(
        desk,
        GatewaySettings(**{"port": 0, **settings}),
        operator_key=KEY,
        version="0.1.0",
        registry=registry,
    )
    ended = trio.Event()

    async def run(*, task_status: trio.TaskStatus[tuple[str, trio.CancelScope]]) -> None:
        with trio.CancelScope() as scope:

            class Started:
                def started(self, value: str = "") -> None:
                    task_status.started((value, scope))

            await gateway.run(task_status=Started())
        ended.set()

    async with trio.open_nursery() as nursery:
        url, scope = await nursery.start(run)
        port = int(url.rpartition(":")[2])
        yield Served(gateway, url, port, registry, scope, ended)
        scope.cancel()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition with a deadline; fails when it does not come."""
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)
