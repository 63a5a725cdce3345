"""What a route is: one table row from which Quart's rules and the OpenAPI document both come."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from quart.wrappers.response import ResponseBody

from zerostate_node.gateway.exchange import Exchange
from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.problems import HttpError, bad_request
from zerostate_node.gateway.shapes import NoQuery
from zerostate_node.ports.desk import Desk

JSON = "application/json"
BYTES = "application/octet-stream"
RECEIPT = "application/vnd.zerostate.receipt"
RECEIPT_BYTES_MAX = 64 * 1024

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler hands back. A `ResponseBody` is streamed."""

    body: bytes | ResponseBody
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """An answer from a struct or a plain value."""
    return Answer(msgspec.json.encode(value), status=status, headers=headers or {})


@dataclass(frozen=True, slots=True)
class Call:
    """One matched request, as a handler sees it."""

    desk: Desk
    settings: GatewaySettings
    exchange: Exchange
    params: Mapping[str, str]
    query: Any  # an instance of the route's query struct

    @property
    def actor(self) -> str:
        """Who asks, already authenticated."""
        return self.exchange.actor

    async def json(self, kind: type[S]) -> S:
        """
        The JSON body as a struct.

        Raises: HttpError 415 for another content type, 413, 408, 400 naming what is wrong.
        """
        content_type = self.exchange.heads.one("content-type").partition(";")[0].strip().lower()
        if content_type not in ("", JSON):
            raise HttpError(
                415,
                "not_json",
                f"this takes {JSON}, not {content_type[:64]!r}",
                hint=f"send 'Content-Type: {JSON}'",
            )
        whole = await self.exchange.body.read(self.settings.body_bytes_max)
        try:
            return msgspec.json.decode(whole or b"{}", type=kind)
        except msgspec.ValidationError as error:
            raise bad_request(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise bad_request(str(error), code="bad_json") from None
        except RecursionError:
            raise bad_request("the JSON is nested too deeply", code="bad_json") from None


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """
    One method on one path.

    `takes` is a struct for JSON, a content type for raw bytes. `gives` is the same for the answer.
    `problems` are the statuses beside those that any route may answer.
    """

    method: str
    path: str  # {name} is one segment, {name+} may hold slashes
    summary: str
    handle: Handler | None  # None: answered by the shell, here for the document
    private: bool = True
    query: type = NoQuery
    takes: type | str | None = None
    takes_optional: bool = False
    status: int = 200
    gives: Any = None
    also: Mapping[int, Any] = field(default_factory=dict)  # further good answers
    problems: tuple[int, ...] = ()
    headers_in: tuple[tuple[str, str], ...] = ()
    headers_out: tuple[tuple[str, str], ...] = ()
    timed: bool = True  # False: the handler bounds its own time
    timeout_s: float | None = None  # None: the settings' handler_timeout_s
    direct: bool = False  # asked so often that it is answered without the framework; no streams

    @property
    def template(self) -> str:
        """The path as metrics and the document name it."""
        return self.path.replace("+}", "}")

    @property
    def pattern(self) -> str:
        """The path as a regular expression; only for the plain spellings of its parameters."""
        return re.sub(r"\{(\w+)\}", r"(?P<\1>[A-Za-z0-9]{1,64})", self.path)

    @property
    def rule(self) -> str:
        """The path as Quart's router takes it."""
        rule = self.path.replace("+}", "\0")
        rule = rule.replace("{", "<").replace("}", ">")
        head, mark, tail = rule.partition("\0")
        if not mark:
            return rule
        before, _, name = head.rpartition("<")
        return f"{before}<path:{name}>{tail}"


def parse_query(kind: type[S], pairs: list[tuple[str, str]]) -> S:
    """
    Query parameters as a struct.

    Raises: HttpError 400 naming a parameter that is unknown, repeated or out of range.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise bad_request(f"the query parameter {name[:64]!r} came more than once")
        found[name] = value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        text = str(error).replace("Object contains unknown field", "unknown query parameter")
        raise bad_request(text) from None
