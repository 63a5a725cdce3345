"""
Time that nobody sets: for leases and deadlines, which a stepped wall clock must neither end nor
stretch.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def _wall_ns() -> int:
    return time.time_ns()


def _since_boot_ns() -> int:
    """Goes on while the machine sleeps, where the system has such a clock."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


def steady_clock(
    wall_ns: Callable[[], int] = _wall_ns, since_ns: Callable[[], int] = _since_boot_ns
) -> Callable[[], int]:
    """
    A clock in ms that starts at the wall clock's time and then runs on its own.

    A lease that lives for 15 s lives for 15 s, whatever time service or operator do to the wall
    clock meanwhile; a restart takes the wall clock's time anew.
    """
    offset_ns = wall_ns() - since_ns()

    def now_ms() -> int:
        return (offset_ns + since_ns()) // 1_000_000

    return now_ms
