"""
Every error this program raises on purpose, and the exit code each maps to.

    ZeroStateError                code, message, hint
    ├── ConfigError               settings, flags, files: yours to fix           exit 2
    ├── Busy                      a port, a data directory: held by another      exit 7
    ├── WireError                 their bytes are wrong: drop, count in conduct
    ├── ConductError              well-formed but not allowed: drop, count in conduct
    ├── Unavailable               a ledger, blob, peer is away: retry later      exit 3
    ├── NotFound                  no such agent, task, receipt, blob             exit 4
    ├── Refused                   the answer is no; asking again will not help   exit 5
    └── TaskFailed                the task ended, not completed                  exit 6

`message` says what, which, and what now. `code` is for programs and never changes once released.
A guest's failure is not an error: it is an outcome (`wire.messages.Outcome`).
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of `zerostate-node`, by name."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    TASK_FAILED = 6
    BUSY = 7
    TIMED_OUT = 8


class ZeroStateError(Exception):
    """The base of every error that this program raises on purpose."""

    exit = Exit.FAILED
    default_code = "failed"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ZeroStateError):
    """A setting, flag or file of yours is wrong; the message names it and what is allowed."""

    exit = Exit.USAGE
    default_code = "bad_config"


class Busy(ZeroStateError):
    """Something this node needs alone (a port, a data directory) is held by another process."""

    exit = Exit.BUSY
    default_code = "busy"


class WireError(ZeroStateError):
    """Bytes from outside do not have the shape the protocol promises."""

    default_code = "malformed"


class ConductError(ZeroStateError):
    """A peer sent something well-formed that it had no right to send."""

    default_code = "not_allowed"


class Unavailable(ZeroStateError):
    """A peer, ledger, store or node cannot answer now; try again after `retry_after_s`."""

    exit = Exit.UNREACHABLE
    default_code = "unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_s = retry_after_s


class NotFound(ZeroStateError):
    """There is no such agent, task, receipt or blob here."""

    exit = Exit.NOT_FOUND
    default_code = "not_found"


class Refused(ZeroStateError):
    """The answer is no, and asking again the same way will not change it."""

    exit = Exit.REFUSED
    default_code = "refused"


class TaskFailed(ZeroStateError):
    """The task ended with an outcome other than `completed`."""

    exit = Exit.TASK_FAILED
    default_code = "task_failed"
