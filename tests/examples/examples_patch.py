"""A unified diff applied as `patch` would, strictly: no fuzz, no offsets."""

from __future__ import annotations

import re

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n")


def apply(diff: bytes, a: bytes) -> bytes:
    """What `diff` makes of `a`. Raises ValueError when the two do not fit."""
    if not diff:
        return a
    source = _lines(a)
    lines = _lines(diff)
    out: list[bytes] = []
    at, i = 0, 2
    while i < len(lines):
        head = _HUNK.fullmatch(lines[i])
        if not head:
            raise ValueError(f"not a hunk: {lines[i]!r}")
        start, old, _, new = (int(g) if g else 1 for g in head.groups())
        start -= old > 0
        out += source[at:start]
        at, i = start, i + 1
        while old > 0 or new > 0:
            mark, body = lines[i][:1], lines[i][1:]
            if i + 1 < len(lines) and lines[i + 1].startswith(b"\\"):
                body, i = body[:-1], i + 1
            i += 1
            if mark in b" -":
                if source[at] != body:
                    raise ValueError(f"line {at + 1} is {source[at]!r}, not {body!r}")
                at, old = at + 1, old - 1
            if mark in b" +":
                out.append(body)
                new -= 1
    return b"".join(out + source[at:])


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]] + (
        [data.rsplit(b"\n", 1)[-1]] if data and not data.endswith(b"\n") else []
    )
