"""
What a guest says on stderr: log lines for people, and progress for programs.

A line `::progress N` (0 to 100) is progress and no log line. Pieces may end in the middle of a
line; only a beginning that may still become a progress line is held back.
"""

from __future__ import annotations

import re

MARK = "::progress "
_PROGRESS = re.compile(r"::progress (\d{1,3})\r?\Z")


class GuestLog:
    """One guest's stderr, in pieces."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False  # the start of the line that comes next is shown already

    def feed(self, text: str) -> tuple[str, int | None]:
        """The text to show of this piece, and the last progress in it, per cent."""
        lines = (self._held + text).split("\n")
        self._held = ""
        tail = lines.pop()
        shown, progress = [], None
        for line in lines:
            said = None if self._begun else _PROGRESS.match(line)
            self._begun = False
            if said and int(said[1]) <= 100:
                progress = int(said[1])
            else:
                shown.append(line + "\n")
        may_be_mark = MARK.startswith(tail[: len(MARK)]) and len(tail) < 2 * len(MARK)
        if tail and may_be_mark and not self._begun:
            self._held = tail
        elif tail:
            shown.append(tail)
            self._begun = True
        return "".join(shown), progress

    def end(self) -> str:
        """What was held back when the guest ended."""
        held, self._held = self._held, ""
        return "" if _PROGRESS.match(held) else held
