"""A terminal for programs that stay: what they print, as a person would see it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

COLUMNS, LINES = 100, 50
_ERASE = re.compile(r"\x1b\[\d*K|\r")  # what was drawn before it is a line of its own here
_ANSI = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78])")


class Terminal:
    """One program under a pseudo-terminal; ended like Ctrl-C ends it."""

    def __init__(self, command: str, *, env: Mapping[str, str], cwd: Path) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._screen = bytearray()
        self._fd = ours
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm"},
            cwd=cwd,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._fd, 65_536):
                self._screen += data

    @property
    def text(self) -> str:
        """All that it printed, without colours and with the lines that it drew over."""
        return _ANSI.sub("", _ERASE.sub("\n", self._screen.decode("utf-8", "replace")))

    def until(self, look: Callable[[str], bool], *, within_s: float, what: str) -> str:
        """Its text once that says so."""
        end = time.monotonic() + within_s
        while not look(self.text):
            assert self.process.poll() is None, f"ended before {what}:\n{self.text[-3000:]}"
            assert time.monotonic() < end, f"not within {within_s} s: {what}:\n{self.text[-3000:]}"
            time.sleep(0.05)
        return self.text

    def end(self, *, within_s: float = 30) -> int:
        """Ctrl-C; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._reader.join(2)
            os.close(self._fd)
