"""Errors as `application/problem+json` (RFC 9457): one mapping, used by every route."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec

from zerostate_node.errors import (
    ConductError,
    ConfigError,
    NotFound,
    Refused,
    Unavailable,
    WireError,
    ZeroStateError,
)

CONTENT_TYPE = "application/problem+json"

_TOO_LARGE = frozenset({"too_large", "input_too_large"})
_CONFLICT = frozenset(
    {
        "already_settled",
        "idempotency_conflict",
        "no_output",
        "no_receipt",
        "not_finished",
        "version_exists",
    }
)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told about a failed request. `code` is for programs and never changes."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str = ""
    hint: str = ""
    request_id: str = ""


class HttpError(Exception):
    """A failure that the gateway itself found; it knows its status."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.headers = headers or {}


def bad_request(detail: str, *, hint: str = "", code: str = "bad_request") -> HttpError:
    """The request does not have the shape that this route takes."""
    return HttpError(400, code, detail, hint=hint)


def too_large(limit: int, *, hint: str = "") -> HttpError:
    """A body over its limit. The rest of it is not read, so the connection ends."""
    return HttpError(
        413,
        "too_large",
        f"the body is larger than {limit} bytes",
        hint=hint,
        headers={"connection": "close"},
    )


def busy(detail: str, *, code: str = "busy", retry_after_s: float = 1.0) -> HttpError:
    """Not now; the client should come again."""
    return HttpError(503, code, detail, headers={"retry-after": _seconds(retry_after_s)})


def timed_out(detail: str) -> HttpError:
    """A deadline of the gateway passed before the node had the answer."""
    return HttpError(
        503,
        "timeout",
        detail,
        hint="ask again; a submit is safe to repeat with the same Idempotency-Key",
        headers={"retry-after": "1"},
    )


def unauthorized() -> HttpError:
    """No operator key, or a wrong one; which of the two is not said."""
    return HttpError(
        401,
        "unauthorized",
        "this needs the operator key",
        hint="send 'Authorization: Bearer <key>'; the key is in operator.key in the data directory",
        headers={"www-authenticate": 'Bearer realm="zerostate-node"'},
    )


def of(error: Exception) -> HttpError:
    """
    The answer to an error that a handler raised.

    An error that is not meant for clients becomes a 500 without details: they are in the log.
    """
    match error:
        case HttpError():
            return error
        case NotFound():
            return _named(404, error)
        case WireError() | ConfigError():
            return _named(400, error)
        case Refused():
            if error.code in _TOO_LARGE:
                return _named(413, error)
            return _named(409 if error.code in _CONFLICT else 422, error)
        case ConductError():
            return _named(422, error)
        case Unavailable():
            found = _named(503, error)
            found.headers["retry-after"] = _seconds(error.retry_after_s)
            return found
    return HttpError(
        500,
        "internal",
        "the node failed to answer this request",
        hint="the node's log has the cause under this request_id",
    )


def encode(error: HttpError, request_id: str) -> bytes:
    """The body of the answer."""
    problem = Problem(
        title=_title(error.status),
        status=error.status,
        code=error.code,
        detail=error.detail,
        hint=error.hint,
        request_id=request_id,
    )
    return msgspec.json.encode(problem)


def headers(error: HttpError, body: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of the answer, as an ASGI server takes them."""
    fields: dict[str, Any] = {
        "content-type": CONTENT_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **error.headers,
    }
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def _named(status: int, error: ZeroStateError) -> HttpError:
    return HttpError(status, error.code, error.message, hint=error.hint)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _seconds(wait_s: float) -> str:
    return str(max(1, math.ceil(wait_s)) if math.isfinite(wait_s) else 60)
