"""A task's events as they happen, over Server-Sent Events, resumed when the connection breaks."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from zerostate_node.cli.client import Client
from zerostate_node.cli.problems import WaitedTooLong
from zerostate_node.errors import Unavailable
from zerostate_node.units import MIB

LINE_CHARACTERS_MAX = 4 * MIB
BACKOFF_S = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
SILENCE_S_MAX = 50.0  # three pings of the node
GIVE_UP_S = 60.0  # a node that restarts is back long before


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """One event. `kind` is as in ports.desk.Event, or `reconnected` after a broken connection."""

    kind: str
    seq: int
    task_id: str
    body: dict[str, Any]


def parse_lines(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """
    (id, event, data) of an event stream; a comment gives an event `ping`.

    Source: WHATWG HTML 9.2.6, what this side needs of it.
    """
    last_id, kind = "", ""
    data: list[str] = []
    for line in lines:
        if len(line) > LINE_CHARACTERS_MAX:
            raise Unavailable("an event is too large", code="not_a_node")
        if line.startswith(":"):
            yield last_id, "ping", ""
            continue
        if not line:
            if data:
                yield last_id, kind or "message", "\n".join(data)
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            last_id = value
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)


def follow(client: Client, task_id: str, *, deadline_s: float | None = None) -> Iterator[Heard]:
    """
    The events of a task, for ever; a broken connection is taken up again where it broke.

    Args:
        deadline_s: `time.monotonic()` at which to stop waiting.

    Raises:
        WaitedTooLong: the deadline came first.
        Unavailable: the node has been away for longer than a restart takes.
    """
    last_id, failures, broke_s = "", 0, 0.0
    while True:
        remaining = _remaining(deadline_s)
        try:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            query = {"task_id": task_id} if task_id else {}
            silence_s = min(SILENCE_S_MAX, remaining + 0.05)
            with client.event_stream(headers, silence_s=silence_s, **query) as lines:
                if failures:
                    yield Heard("reconnected", -1, task_id, {})
                for last, kind, data in parse_lines(lines):
                    failures = 0
                    last_id = last or last_id
                    if kind != "ping":
                        yield _heard(kind, data)
                    _remaining(deadline_s)
            trouble = Unavailable(
                "the node keeps ending the event stream", code="broken_connection"
            )
        except Unavailable as error:
            if error.code == "not_a_node":
                raise
            trouble = error
        now = time.monotonic()
        broke_s = broke_s if failures else now
        failures += 1
        if now - broke_s > GIVE_UP_S:
            raise trouble
        pause = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
        time.sleep(min(pause, _remaining(deadline_s)))


def _remaining(deadline_s: float | None) -> float:
    """Seconds to the deadline; WaitedTooLong past it."""
    if deadline_s is None:
        return SILENCE_S_MAX
    remaining = deadline_s - time.monotonic()
    if remaining <= 0:
        raise WaitedTooLong(
            "the task has not ended in the time given; it goes on",
            hint="look at it again with: zerostate-node task watch",
        )
    return remaining


def _heard(kind: str, data: str) -> Heard:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        tree = {}
    if not isinstance(tree, dict):
        tree = {}
    body = tree.get("body")
    seq = tree.get("seq")
    return Heard(
        kind=str(tree.get("kind", kind)),
        seq=seq if isinstance(seq, int) else -1,
        task_id=str(tree.get("task_id", "")),
        body=body if isinstance(body, dict) else {},
    )
