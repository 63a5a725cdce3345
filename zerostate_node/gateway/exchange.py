"""One request and its answer: ids, limits, headers, the log line."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from zerostate_node.gateway import problems
from zerostate_node.gateway.body import RequestBody

Send = Callable[[dict[str, Any]], Awaitable[None]]

STATUS_GONE = 499  # for logs and metrics: the client left before an answer began
SCOPE_KEY = "zerostate"
WORK_KEY = "zerostate.work"  # a cancel scope: work that is pointless once the client left
UNMATCHED = "unmatched"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
# https://www.w3.org/TR/trace-context/: version 00 exactly; ids of zeros are invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")

API_CSP = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Heads:
    """A request's header fields by name, each as often as it came."""

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in fields:
            self._fields.setdefault(name.decode("latin-1").lower(), []).append(
                value.decode("latin-1")
            )

    def one(self, name: str) -> str:
        """The value, "" when absent. Raises HttpError 400 when it came more than once."""
        values = self._fields.get(name, [])
        if len(values) > 1:
            raise problems.bad_request(f"the header {name} came more than once")
        return values[0] if values else ""

    def first(self, name: str) -> str:
        """The first value, "" when absent; for what must not fail."""
        return self._fields.get(name, [""])[0]

    def __contains__(self, name: str) -> bool:
        return name in self._fields


class Exchange:
    """What the gateway knows of one request while it answers it."""

    def __init__(self, scope: Mapping[str, Any], heads: Heads) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.heads = heads
        self.request_id = _request_id(heads.first("x-request-id"))
        self.trace = _traceparent(heads.first("traceparent"))
        self.started = trio.current_time()
        self.actor = ""  # set once the key was right
        self.route = UNMATCHED  # the template, when one matched
        self.status = STATUS_GONE
        self.streaming = False
        self.body: RequestBody  # set by the shell before a handler runs
        self.release: Callable[[], None] = lambda: None

    def begin_stream(self) -> None:
        """This answer goes on for long: it no longer counts as a request at work."""
        self.streaming = True
        self.release()


class Answerer:
    """The ASGI `send` of one exchange: adds headers, notes the status, sees the end through."""

    def __init__(self, exchange: Exchange, send: Send, nursery: trio.Nursery | None) -> None:
        self._exchange = exchange
        self._send = send
        self._nursery = nursery
        self.begun = False

    async def __call__(self, message: dict[str, Any]) -> None:
        """Pass one ASGI message on."""
        if message["type"] == "http.response.start":
            message = self._begin(message)
        elif not message.get("more_body", False):
            await self._end(message)
            return
        await self._send(message)

    async def problem(self, error: problems.HttpError) -> None:
        """Answer with an error, if nothing was sent yet."""
        if self.begun:
            return
        body = problems.encode(error, self._exchange.request_id)
        head = problems.headers(error, body)
        await self.whole(error.status, head, body)

    async def whole(self, status: int, head: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer in one piece."""
        await self({"type": "http.response.start", "status": status, "headers": head})
        await self({"type": "http.response.body", "body": body, "more_body": False})

    def _begin(self, message: dict[str, Any]) -> dict[str, Any]:
        self.begun = True
        exchange = self._exchange
        exchange.status = message["status"]
        head = [(bytes(name).lower(), bytes(value)) for name, value in message["headers"]]
        names = {name for name, _ in head}
        if b"content-security-policy" not in names:
            head.append((b"content-security-policy", API_CSP))
        head += SECURITY_HEADERS
        head.append((b"x-request-id", exchange.request_id.encode()))
        if self._nursery is not None and not exchange.body.finished.is_set():
            # An early answer: the server waits for someone to take the rest of the body before it
            # can even notice that the client is gone.
            self._nursery.start_soon(exchange.body.drain)
            if b"connection" not in names:
                head.append((b"connection", b"close"))
        return {**message, "headers": head}

    async def _end(self, message: dict[str, Any]) -> None:
        exchange = self._exchange
        if self._nursery is not None and not exchange.body.finished.is_set():
            # A socket closed with unread bytes resets, and a reset may destroy the answer on its
            # way: send it, then give the client a moment to see it and stop.
            await self._send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b"", "more_body": False}
            with trio.move_on_after(_LINGER_S):
                await exchange.body.finished.wait()
        # Quart cancels the handler as soon as it hears that the answer is complete, which is inside
        # this send; cut there, the server never arms its idle timer and the socket stays for ever.
        with trio.CancelScope(shield=True):
            await self._send(message)


_LINGER_S = 1.0


def _request_id(offered: str) -> str:
    return offered if _REQUEST_ID.match(offered) else secrets.token_hex(8)


def _traceparent(offered: str) -> str:
    if _TRACEPARENT.match(offered):
        return offered
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
