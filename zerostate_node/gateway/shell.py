"""
The ASGI shell around Quart: what must hold for every request, before any route is looked at.

Order: request id, shape of the head (smuggling, Host), probes answered at once, room, key, Quart.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
import structlog
import trio

from zerostate_node.gateway import metrics, problems
from zerostate_node.gateway.body import Budget, Receive, RequestBody
from zerostate_node.gateway.exchange import (
    SCOPE_KEY,
    STATUS_GONE,
    UNMATCHED,
    Answerer,
    Exchange,
    Heads,
    Send,
)
from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.problems import HttpError

Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
# Answers the requests that need no framework, and says whether this was one.
Direct = Callable[[dict[str, Any], Exchange, Answerer], Awaitable[bool]]

PRIVATE_PREFIX = "/api"
OPERATOR = "operator"
_PROBES = ("/health", "/metrics")

log = structlog.get_logger()


class Shell:
    """An ASGI application that guards another one."""

    def __init__(
        self,
        app: Asgi,
        settings: GatewaySettings,
        operator_key: str,
        counts: metrics.HttpMetrics,
        health: Callable[[], dict[str, Any]],
        direct: Direct,
    ) -> None:
        self._app = app
        self._direct = direct
        self._settings = settings
        self._key = operator_key.encode()
        self._counts = counts
        self._health = health
        self._budget = Budget(settings.bodies_bytes_max)
        self._at_work = 0
        self._hosts = _hosts(settings)

    async def __call__(
        self, scope: dict[str, Any], receive: Receive, send: Send, *_unused: Any
    ) -> None:
        """Answer one request. Raises nothing but a cancellation."""
        exchange = Exchange(scope, Heads(scope["headers"]))
        # Each request runs in a task with a context of its own, so this binding ends with it.
        structlog.contextvars.bind_contextvars(
            request_id=exchange.request_id, trace_id=exchange.trace[3:35]
        )
        try:
            await self._answer(scope, receive, send, exchange)
        except Exception:
            # A bulkhead: an answer that could not be sent is this client's alone.
            log.exception("an answer could not be sent")
        finally:
            self._note(exchange)

    async def _answer(
        self, scope: dict[str, Any], receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        heads = exchange.heads
        chunked = "transfer-encoding" in heads
        length = heads.first("content-length")
        present = chunked or length not in ("", "0")
        exchange.body = RequestBody(
            receive,
            self._settings,
            self._budget,
            declared=int(length) if length.isascii() and length.isdigit() else None,
            present=present,
        )
        if not present:
            await self._run(scope, Answerer(exchange, send, None), exchange)
            return
        try:
            async with trio.open_nursery() as nursery:
                await self._run(scope, Answerer(exchange, send, nursery), exchange)
                nursery.cancel_scope.cancel()  # a body that nobody took to its end
        finally:
            exchange.body.close()

    async def _run(self, scope: dict[str, Any], answer: Answerer, exchange: Exchange) -> None:
        try:
            self._check_head(scope, exchange)
            if exchange.path in _PROBES and exchange.method in ("GET", "HEAD"):
                await self._probe(answer, exchange)
                return
            with self._room(exchange):
                if exchange.path.startswith(PRIVATE_PREFIX):
                    exchange.actor = self._actor(exchange.heads)
                if await self._direct(scope, exchange, answer):
                    return
                scope[SCOPE_KEY] = exchange
                await self._app(scope, exchange.body.receive_for_quart, answer)
        except HttpError as error:
            await answer.problem(error)
        except Exception as error:
            # A bulkhead: what the framework failed at is a 500 for one client.
            log.exception("a request failed")
            await answer.problem(problems.of(error))

    def _check_head(self, scope: Mapping[str, Any], exchange: Exchange) -> None:
        heads = exchange.heads
        if "content-length" in heads and "transfer-encoding" in heads:
            # The two may disagree, and a proxy in front may believe the other one.
            raise HttpError(
                400,
                "bad_http",
                "Content-Length and Transfer-Encoding exclude each other",
                headers={"connection": "close"},
            )
        if scope["http_version"] not in ("1.0", "1.1"):
            raise HttpError(505, "bad_http", "this server speaks HTTP/1.1")
        if not scope["raw_path"].startswith(b"/"):
            raise HttpError(400, "bad_http", "the request target must be a path")
        host = heads.one("host")
        if self._hosts is not None and (host or scope["http_version"] == "1.1"):
            name = host_name(host)
            if not (name in self._hosts or is_loopback(name) or self._by_address(name)):
                raise HttpError(
                    421,
                    "wrong_host",
                    f"this node does not answer for {host[:100]!r}",
                    hint="use 127.0.0.1 or localhost, or allow the name in http.allowed_hosts",
                )

    def _by_address(self, name: str) -> bool:
        """Whether a probe or a peer asks by a bare address: only a name can be rebound."""
        return not is_loopback(self._settings.host) and is_address(name)

    async def _probe(self, answer: Answerer, exchange: Exchange) -> None:
        exchange.route = exchange.path
        if exchange.path == "/health":
            body = msgspec.json.encode(self._health())
            kind = "application/json"
        elif self._settings.metrics_enabled:
            body = self._counts.text()
            kind = metrics.CONTENT_TYPE
        else:
            raise HttpError(404, "not_found", "metrics are off", hint="set metrics.enabled")
        await answer.whole(
            200,
            [
                (b"content-type", kind.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
            ],
            body,
        )

    @contextlib.contextmanager
    def _room(self, exchange: Exchange) -> Iterator[None]:
        if self._at_work >= self._settings.requests_max:
            raise problems.busy("too many requests at one time")
        self._at_work += 1
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._at_work -= 1
                self._counts.at_work.set(self._at_work)

        exchange.release = release
        self._counts.at_work.set(self._at_work)
        try:
            yield
        finally:
            release()

    def _actor(self, heads: Heads) -> str:
        scheme, _, key = heads.one("authorization").partition(" ")
        offered = key.strip().encode()
        right = hmac.compare_digest(offered, self._key)
        if scheme.lower() != "bearer" or not self._key or not right:
            raise problems.unauthorized()
        return OPERATOR

    def _note(self, exchange: Exchange) -> None:
        took_s = trio.current_time() - exchange.started
        quiet = exchange.route in _PROBES or exchange.route == "/ready"
        (log.debug if quiet else log.info)(
            "request answered" if exchange.status != STATUS_GONE else "client left",
            method=exchange.method[:16],
            route=exchange.route,
            status=exchange.status,
            ms=round(took_s * 1000, 1),
            **({"path": exchange.path[:200]} if exchange.route == UNMATCHED else {}),
        )
        self._counts.answered(
            exchange.method,
            exchange.route,
            exchange.status,
            None if exchange.streaming else took_s,
        )


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Whether a name or address means this machine."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _hosts(settings: GatewaySettings) -> frozenset[str] | None:
    """Names to answer for beside loopback; None: any, since the node listens to the network."""
    named = frozenset(host_name(name) for name in settings.allowed_hosts)
    if is_loopback(settings.host) or named:
        return named | {settings.host.lower()}
    return None
