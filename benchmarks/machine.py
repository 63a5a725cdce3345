"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from pathlib import Path
from typing import Any


def facts(directory: Path) -> dict[str, Any]:
    """Cores, kernel, interpreter, load, and how fast this disk makes bytes durable."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_before": round(os.getloadavg()[0], 2),
        "fsync_per_s": fsync_per_s(directory),
    }


def fsync_per_s(directory: Path, seconds: float = 1.0) -> int:
    """Appends of 4 KiB that reach the disk, one after another, per second."""
    path = directory / "fsync.probe"
    block = b"\0" * 4096
    count = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            os.write(fd, block)
            os.fdatasync(fd)
            count += 1
        return round(count / (time.perf_counter() - started))
    finally:
        os.close(fd)
        path.unlink()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
