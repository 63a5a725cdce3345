"""What a guest writes to standard error, as text, while it runs."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable

from zerostate_node.sandbox import limits


class LogTail:
    """
    Follows a growing file and hands on whole lines, in pieces of at most `LOG_CHUNK_BYTES`.

    Bytes that are not UTF-8 become replacement characters; control characters stay, since only
    who shows them knows what they would do. A line without an end is handed on when it is as long
    as a piece, and at the end of the run.
    """

    def __init__(self, fd: int, bytes_max: int, hear: Callable[[str], None]) -> None:
        self._fd = fd
        self._bytes_max = bytes_max
        self._hear = hear
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def pump(self, *, last: bool = False) -> bool:
        """Read one piece and hand on what is whole; False when nothing more is there now."""
        room = min(limits.LOG_CHUNK_BYTES, self._bytes_max - self._at)
        data = os.pread(self._fd, room, self._at) if room > 0 else b""
        self._at += len(data)
        finished = last and len(data) < limits.LOG_CHUNK_BYTES
        self._text += self._decoder.decode(data, finished)
        whole = self._text.rfind("\n") + 1
        if finished or (not whole and len(self._text) >= limits.LOG_CHUNK_BYTES):
            whole = len(self._text)
        text, self._text = self._text[:whole], self._text[whole:]
        for at in range(0, len(text), limits.LOG_CHUNK_BYTES):
            self._hear(text[at : at + limits.LOG_CHUNK_BYTES])
        return len(data) == limits.LOG_CHUNK_BYTES
