"""What can go wrong with a benchmark, in words for the person who started it."""

from __future__ import annotations


class BenchError(Exception):
    """A cause, and what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
