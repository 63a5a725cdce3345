"""
The client of our side, as a process: a few keep-alive connections and one event stream.

Written on bare sockets so that it measures the node and not a client library; what it costs is
reported too. One command a line on standard input, one answer a line on standard output:
`{"do": "batch", "tasks": 1000, "submitters": 16}` or `{"do": "single", "tasks": 100}`.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

STALL_S = 30.0  # nothing settled for this long: something is broken, say so


class Connection:
    """One keep-alive HTTP/1.1 connection; requests are whole, answers are read to their end."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=STALL_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def read_some(self) -> None:
        data = self.socket.recv(262_144)
        if not data:
            raise SystemExit("the node closed the connection")
        self.buffer += data

    def answer(self) -> tuple[int, bytes] | None:
        """Status and body, once both are here."""
        head, mark, rest = self.buffer.partition(b"\r\n\r\n")
        if not mark:
            return None
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return None
        self.buffer = rest[length:]
        return int(head.split(b" ", 2)[1]), rest[:length]


class Events:
    """The node's event stream (SSE in chunked encoding)."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self.link = Connection(host, port)
        self.link.socket.sendall(
            f"GET /api/v1/events HTTP/1.1\r\nhost: {host}:{port}\r\n"
            f"authorization: Bearer {key}\r\naccept: text/event-stream\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.link.buffer:
            self.link.read_some()
        head, _, self.link.buffer = self.link.buffer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise SystemExit(f"no event stream: {head[:200]!r}")
        self.text = b""

    def arrived(self) -> Iterator[dict[str, Any]]:
        """Events that are complete."""
        buffer, start = self.link.buffer, 0
        while (line_end := buffer.find(b"\r\n", start)) >= 0:
            size = int(buffer[start:line_end], 16)
            end = line_end + 2 + size
            if len(buffer) < end + 2:
                break
            self.text += buffer[line_end + 2 : end]
            start = end + 2
        self.link.buffer = buffer[start:]
        *events, self.text = self.text.split(b"\n\n")
        for event in events:
            # Only what ends a task is parsed: the rest is the stream's cost, not this client's.
            if b"event: task.settled" in event or b"event: snapshot" in event:
                for line in event.split(b"\n"):
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])


class Client:
    """Submits tasks and sees them settle."""

    def __init__(self, url: str, key: str, agent: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.key = parts.hostname or "", parts.port or 0, key
        body = json.dumps({"agent": agent}).encode()
        self.request = (
            f"POST /api/v1/tasks HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.pool: list[Connection] = []
        self.events = Events(self.host, self.port, key)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.events.link.socket, selectors.EVENT_READ, self.events)
        self.settled: dict[str, float] = {}
        self.lagged = 0
        first = self.wait_events()
        if first != "snapshot":
            raise SystemExit("the event stream did not begin with a snapshot")

    def connections(self, count: int) -> list[Connection]:
        """Fresh ones: those of the order before may have idled for longer than the node keeps."""
        for old in self.pool:
            old.socket.close()
        self.pool = [Connection(self.host, self.port) for _ in range(count)]
        return self.pool

    def hear(self) -> str:
        """Take what the event stream brought; the kind of the last event."""
        self.events.link.read_some()
        now = time.perf_counter()
        kind = ""
        for event in self.events.arrived():
            kind = event["kind"]
            if kind == "snapshot":
                self.lagged += 1
                continue
            if event["body"]["outcome"] != "completed":
                raise SystemExit(f"a task ended otherwise: {event}")
            self.settled[event["task_id"]] = now
        return kind

    def wait_events(self) -> str:
        while True:
            if kind := self.hear():
                return kind

    def batch(self, tasks: int, submitters: int) -> dict[str, Any]:
        """All tasks as fast as they are taken; ends when all have settled."""
        connections = self.connections(submitters)
        self.settled.clear()
        self.lagged = 0
        mine: deque[str] = deque()
        started = time.perf_counter()
        sent = 0
        for connection in connections:
            self.selector.register(connection.socket, selectors.EVENT_READ, connection)
            if sent < tasks:
                connection.socket.sendall(self.request)
                sent += 1
        accepted_s = 0.0
        progress = started
        while len(mine) < tasks or len(self.settled) < tasks:
            ready = self.selector.select(STALL_S)
            if not ready or time.perf_counter() - progress > STALL_S:
                if self.lagged:
                    self.poll(mine)
                    break
                raise SystemExit(
                    f"stalled: {sent} sent, {len(mine)} accepted, {len(self.settled)} settled"
                )
            for item, _ in ready:
                if item.data is self.events:
                    before = len(self.settled)
                    self.hear()
                    if len(self.settled) > before:
                        progress = time.perf_counter()
                    continue
                connection = item.data
                connection.read_some()
                answer = connection.answer()
                if answer is None:
                    continue
                status, body = answer
                if status != 202:
                    raise SystemExit(f"refused: {status} {body[:300]!r}")
                mine.append(json.loads(body)["task_id"])
                progress = time.perf_counter()
                if len(mine) == tasks:
                    accepted_s = progress - started
                if sent < tasks:
                    connection.socket.sendall(self.request)
                    sent += 1
            if self.lagged:
                self.poll(mine)
        took_s = time.perf_counter() - started
        for connection in connections:
            self.selector.unregister(connection.socket)
        if set(mine) != set(self.settled):
            raise SystemExit("settled tasks are not the submitted ones")
        return {"took_s": took_s, "accepted_s": accepted_s, "lagged": self.lagged}

    def poll(self, mine: deque[str]) -> None:
        """The stream fell behind and began anew: ask for what it left out."""
        connection = Connection(self.host, self.port)
        for task_id in list(mine):
            while task_id not in self.settled:
                connection.socket.sendall(
                    f"GET /api/v1/tasks/{task_id} HTTP/1.1\r\nhost: {self.host}\r\n"
                    f"authorization: Bearer {self.key}\r\n\r\n".encode()
                )
                while (answer := connection.answer()) is None:
                    connection.read_some()
                if json.loads(answer[1])["phase"] == "settled":
                    self.settled[task_id] = time.perf_counter()
                else:
                    time.sleep(0.01)
        self.lagged = 0

    def single(self, tasks: int) -> dict[str, Any]:
        """One at a time: from the request to the event that says settled."""
        (connection,) = self.connections(1)
        times: list[float] = []
        for _ in range(tasks):
            started = time.perf_counter()
            connection.socket.sendall(self.request)
            while (answer := connection.answer()) is None:
                connection.read_some()
            if answer[0] != 202:
                raise SystemExit(f"refused: {answer!r}")
            task_id = json.loads(answer[1])["task_id"]
            while task_id not in self.settled:
                self.hear()
            times.append(self.settled[task_id] - started)
        self.settled.clear()
        return {"times_s": times}


def main() -> None:
    client = Client(*sys.argv[1:4])
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "batch":
            answer = client.batch(order["tasks"], order["submitters"])
        else:
            answer = client.single(order["tasks"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
