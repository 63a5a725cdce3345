"""
What the node says of itself: one line per decision, JSON for machines or coloured for people.

An event is a constant short sentence and the facts are keys:
`structlog.get_logger().info("lease granted", task=short(task_id), fence=3)`.
Facts often come from strangers, so every line is escaped, bounded, and stripped of secrets.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

TEXT_CHARACTERS_MAX = 2_000  # of one fact; a stranger's error text is no place for a novel
ITEMS_MAX = 64

_SECRET_KEY = re.compile(
    r"(^|_)(key|secret|password|passwd|token|authorization|credential|cookie|bearer)s?(_hex|_bytes)?$",
    re.IGNORECASE,
)
_SECRET_TEXT = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 [redacted]"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://[^\s:/@]*):[^\s@]+@"), r"\1:[redacted]@"),
    (re.compile(r"(?i)\b(password|secret|token|api_?key)=[^\s&;,]+"), r"\1=[redacted]"),
)
# None of the patterns above matches a text without one of these; most facts are ids and numbers,
# and a line is logged for each decision, so looking once first halves the cost of logging.
_WORTH_A_LOOK = re.compile(r"[\s=@]").search
# Harmless keys that end in a word that looks secret.
_NOT_SECRET = {"public_key", "idempotency_key", "setting_key", "row_key"}

# C0, DEL, C1, line separators, zero width, and the bidirectional controls that reorder a line.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_ID = re.compile(
    r"did:key:z6Mk[1-9A-HJ-NP-Za-km-z]{44}|12D3KooW[1-9A-HJ-NP-Za-km-z]{44}|sha256:[0-9a-f]{64}"
)

# Libraries that say a lot, and the least severe line of theirs worth a place in our log.
_NOISY = {
    "libp2p": logging.ERROR,
    "multiaddr": logging.WARNING,
    "hypercorn": logging.WARNING,
    "hypercorn.access": logging.WARNING,
    "hypercorn.error": logging.WARNING,
    "quart": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
    "zeroconf": logging.WARNING,
}


def escape(text: str) -> str:
    r"""A stranger's text on one line of a terminal: control characters become `\x1b`, `\u202e`."""

    def named(match: re.Match[str]) -> str:
        code = ord(match[0])
        short_forms = {9: "\\t", 10: "\\n", 13: "\\r"}
        return short_forms.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

    return _CONTROL.sub(named, text)


def short(identifier: str) -> str:
    """An id short enough to read and long enough to find: the last 8 characters that differ."""
    bare = identifier.removeprefix("sha256:")
    if bare.startswith("did:key:"):
        did, slash, name = bare.partition("/")
        return did[-8:] + slash + name
    if bare != identifier:
        return bare[:12]
    return bare[-8:]


def _clean(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        if len(value) <= TEXT_CHARACTERS_MAX and not _WORTH_A_LOOK(value):
            return value
        # Cut before any pattern looks at it; twice as far as is kept, so that a secret across the
        # final cut is still whole when it is looked for.
        text = value[: 2 * TEXT_CHARACTERS_MAX]
        for pattern, replacement in _SECRET_TEXT:
            text = pattern.sub(replacement, text)
        if len(value) > TEXT_CHARACTERS_MAX:
            text = text[:TEXT_CHARACTERS_MAX] + f"... ({len(value)} characters)"
        return text
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, bool | int | float | None):
        return value
    if depth >= 4:
        return "..."
    if isinstance(value, dict):
        items = list(value.items())[:ITEMS_MAX]
        return {str(k): _fact(str(k), v, depth + 1) for k, v in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth + 1) for item in list(value)[:ITEMS_MAX]]
    return _clean(str(value), depth + 1)


def _names_a_secret(key: str) -> bool:
    return bool(_SECRET_KEY.search(key)) and key not in _NOT_SECRET


_own_key_names_a_secret = functools.lru_cache(maxsize=512)(_names_a_secret)


def _fact(key: str, value: Any, depth: int = 0) -> Any:
    # Keys at depth 0 are written in our code and few; deeper ones may be a stranger's.
    names_a_secret = _names_a_secret if depth else _own_key_names_a_secret
    if names_a_secret(key) and value not in (None, "", True, False):
        return "[redacted]"
    return _clean(value, depth)


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop secrets, by the name of the key and by the shape of the text; bound every value."""
    for key in list(event):
        if key not in ("exc_info", "stack_info", "_record", "_from_structlog"):
            event[key] = _fact(key, event[key])
    return event


def _shorten(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Ids short enough that a line fits a terminal; JSON lines keep them whole."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _ID.sub(lambda match: "…" + short(match[0]), value)
    return event


def _escape_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return escape(value)
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {escape(str(key)): walk(item) for key, item in value.items()}
        return value

    for key in list(event):
        if key not in ("exc_info", "stack_info", "exception"):
            event[key] = walk(event[key])
        elif key == "exception":  # a traceback keeps its lines, and nothing else
            event[key] = "\n".join(escape(line) for line in str(event[key]).split("\n"))
    return event


# One encoder for all lines: making one is dearer than using it. What is not JSON was made text or
# bytes' length by `redact`; `repr` is for what a library's own record may hold.
_encode_json = json.JSONEncoder(ensure_ascii=True, default=repr).encode


def _render_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return _encode_json(event)


def chosen_format(format: str, environment: str, stream: TextIO) -> str:
    """`console` or `json`, out of `auto`: console on a terminal in development."""
    if format != "auto":
        return format
    return "console" if stream.isatty() and environment == "development" else "json"


def configure(
    level: str = "info",
    format: str = "auto",
    *,
    environment: str = "development",
    stream: TextIO | None = None,
) -> None:
    """
    Send structlog and stdlib logging to one place, in one shape. Call once, at start.

    Args:
        level: debug, info, warning, error.
        format: auto, console, json.
        environment: `settings.node.environment`; decides what auto means.
        stream: where lines go; standard error when not given, for results go to standard output.
    """
    out = stream or sys.stderr
    number = {"debug": 10, "info": 20, "warning": 30, "error": 40}[level]
    shape = chosen_format(format, environment, out)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if shape == "json"
        else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        redact,
    ]
    tail: list[Any]
    if shape == "json":
        tail = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("event"),
            _render_json,
        ]
    else:
        tail = [
            structlog.processors.format_exc_info,
            _shorten,
            _escape_event,
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(),
                pad_event_to=24,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,  # loggers are made at import, before this runs
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(number, logging.INFO))  # libraries' debug lines are never ours
    for name, floor in _NOISY.items():
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.setLevel(max(floor, number))
        logger.propagate = True


def bind(**facts: Any) -> Any:
    """Attach facts (`trace=`, `task=`) to every line logged inside `with log.bind(...):`."""
    return structlog.contextvars.bound_contextvars(**facts)
