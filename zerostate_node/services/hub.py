"""
What watchers hear: one numbered log of events, bounded, resumable.

A watcher that is slower than the log is told so (`Lagged`) and starts again from a snapshot.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from zerostate_node.ports.desk import Event

EVENTS_KEPT = 4096


class Lagged(Exception):
    """The events asked for are not kept any more."""


class Hub:
    """The event log of this process; `seq` starts at 1 with every start of the node."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._seq = 0
        self._news = trio.Event()

    @property
    def seq(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._seq

    def tell(self, kind: str, *, task_id: str = "", **body: Any) -> None:
        """Append an event and wake the watchers."""
        self._seq += 1
        self._events.append(
            Event(seq=self._seq, at_ms=self._now_ms(), kind=kind, task_id=task_id, body=body)
        )
        self._news.set()
        self._news = trio.Event()

    def since(self, after: int) -> list[Event]:
        """
        Events with a greater number than `after`.

        Raises:
            Lagged: some of them are gone, or `after` is of an earlier life of this node.
        """
        if after > self._seq or (self._events and after < self._events[0].seq - 1):
            raise Lagged
        missing = self._seq - after
        newest = itertools.islice(reversed(self._events), missing)  # not the whole log each time
        return list(newest)[::-1]

    async def follow(self, after: int) -> AsyncIterator[list[Event]]:
        """Batches of events from `after` on, for ever. Raises Lagged."""
        while True:
            news = self._news
            batch = self.since(after)
            if batch:
                after = batch[-1].seq
                yield batch
            else:
                await news.wait()
