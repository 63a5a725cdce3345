"""Waiting in real time where trio's clock jumps."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio


async def until(true: Callable[[], bool]) -> None:
    """Wait in real time while the clock stands: a jumping clock does not wait for the journal."""
    end_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end_s, "not within 20 s"
        await trio.lowlevel.checkpoint()
