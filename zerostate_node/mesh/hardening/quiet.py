"""
What libp2p logs: little, one line each, at a bounded rate.

As shipped it writes a seven-line ERROR for each stream a peer refuses or garbles, calls the root
logger, and opens a file in /tmp when LIBP2P_DEBUG is set: any peer could fill a disk.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import structlog

LINES_PER_MINUTE = 20
LINE_CHARS_MAX = 300

log = structlog.get_logger()


class Throttled(logging.Handler):
    """
    Pass records on to structlog: bounded in rate and length, never a traceback.

    At debug level: what libp2p calls an error is mostly a peer that refused, left or lied. Where it
    matters an exception or a callback tells us.
    """

    def __init__(self, *, lines_per_minute: int = LINES_PER_MINUTE) -> None:
        super().__init__(logging.ERROR)
        self._lines_per_minute = lines_per_minute
        self._tokens = float(lines_per_minute)
        self._filled = time.monotonic()
        self.suppressed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record, or count it as suppressed."""
        now = time.monotonic()
        filled = self._tokens + (now - self._filled) * self._lines_per_minute / 60
        self._tokens, self._filled = min(filled, float(self._lines_per_minute)), now
        if self._tokens < 1:
            self.suppressed += 1
            return
        self._tokens -= 1
        suppressed, self.suppressed = self.suppressed, 0
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a format string that does not fit its arguments
            text = str(record.msg)
        log.debug(
            "libp2p reported an error",
            source=record.name,
            text=one_line(text),
            suppressed=suppressed,
        )


def one_line(text: str) -> str:
    """Cut `text` to one printable line: peers choose parts of what libp2p logs."""
    cut = text[: LINE_CHARS_MAX + 1]
    line = "".join(char if char.isprintable() else " " for char in cut)
    return line if len(line) <= LINE_CHARS_MAX else line[:LINE_CHARS_MAX] + "..."


def apply() -> None:
    """Take over every "libp2p" logger, whatever LIBP2P_DEBUG said when it was imported."""
    os.environ.pop("LIBP2P_DEBUG", None)
    os.environ.pop("LIBP2P_DEBUG_FILE", None)
    import libp2p.network.connection.swarm_connection as swarm_connection
    import libp2p.utils.logging as libp2p_logging

    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith("libp2p."):
            child = logging.getLogger(name)
            child.handlers.clear()
            child.setLevel(logging.NOTSET)
            child.propagate = True
    top = logging.getLogger("libp2p")
    top.handlers.clear()
    top.addHandler(Throttled())
    top.setLevel(logging.ERROR)
    top.propagate = False
    libp2p_logging.cleanup_logging()
    # This module logs through the root logger (`logging.debug(...)`), which installs a handler on
    # it behind our back; a Logger has the same methods.
    namespace: Any = swarm_connection
    namespace.logging = logging.getLogger("libp2p.network.connection.swarm_connection")
