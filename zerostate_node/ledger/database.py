"""One way to open a SQLite file, and one way to say what went wrong with it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from zerostate_node.errors import ConfigError, Unavailable
from zerostate_node.units import MIB

BUSY_TIMEOUT_MS = 5_000  # another process (a backup, a shell) may hold the write lock this long
CACHE_BYTES = 16 * MIB  # page cache of the writer
WAL_BYTES_KEPT = 64 * MIB  # a WAL that grew past this is cut back when it restarts
AUTOCHECKPOINT_PAGES = 16_384  # the writer checkpoints sooner, by itself; this is the safety net

# Primary result codes that speak of the disk, the file or its locks and not of one write:
# sqlite.org/rescode.html. BUSY, LOCKED, NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN,
# PROTOCOL, NOLFS, NOTADB; and SCHEMA, ERROR, which mean that the tables are not the ones we made.
_GROUP_CODES = frozenset({1, 5, 6, 7, 8, 10, 11, 13, 14, 15, 17, 22, 26})
_WAIT_CODES = frozenset({5, 6})  # the connection is sound, somebody else holds the lock

_NAMES = {
    5: ("ledger_locked", "another process holds its write lock"),
    6: ("ledger_locked", "another connection holds its write lock"),
    7: ("no_memory", "out of memory"),
    8: ("read_only", "the file or its file system is read-only"),
    10: ("disk_error", "the disk or file system failed"),
    11: ("corrupt", "the file is damaged; stop the node and restore a backup"),
    13: ("disk_full", "no space is left; free some, the node goes on by itself"),
    14: ("cannot_open", "the file cannot be opened"),
    26: ("corrupt", "the file is not a database; stop the node and restore a backup"),
}


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """
    Open a database file, created with mode 0600 when a writer finds none.

    Durability: WAL with `synchronous=FULL`, so that a commit has reached the disk (one fsync) when
    it returns. Source: sqlite.org/pragma.html#pragma_synchronous.

    Raises:
        sqlite3.Error: as it is, `unavailable` words it.
        ConfigError: the path is a symbolic link or no regular file.
    """
    if not read_only:
        _create(path)
    conn = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1000,
        cached_statements=256,
    )
    try:
        conn.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        conn.execute("PRAGMA foreign_keys=ON")
        conn.execute("PRAGMA trusted_schema=OFF")
        if read_only:
            conn.execute("PRAGMA query_only=ON")
            return conn
        (mode,) = conn.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise ConfigError(
                f"{path}: this file system cannot hold a WAL (SQLite offers {mode})",
                code="no_wal",
                hint="put the data directory on a local disk",
            )
        conn.execute("PRAGMA synchronous=FULL")
        conn.execute(f"PRAGMA cache_size=-{CACHE_BYTES // 1024}")
        conn.execute(f"PRAGMA journal_size_limit={WAL_BYTES_KEPT}")
        conn.execute(f"PRAGMA wal_autocheckpoint={AUTOCHECKPOINT_PAGES}")
    except BaseException:
        conn.close()
        raise
    return conn


def _create(path: Path) -> None:
    # O_EXCL, so that only a file that was not there is opened here: closing a descriptor of a
    # database that this process has open elsewhere would drop SQLite's POSIX locks on it.
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        found = path.lstat()
    else:
        return
    if (found.st_mode & 0o170000) != 0o100000:
        raise ConfigError(f"{path} is not a regular file", code="bad_database")


def code_of(error: sqlite3.Error) -> int:
    """The primary SQLite result code of an error; 0 when Python raised it by itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def fails_the_group(error: sqlite3.Error) -> bool:
    """Whether an error is the disk's or the file's, so that no write of the group can succeed."""
    return code_of(error) in _GROUP_CODES


def needs_reopening(error: sqlite3.Error) -> bool:
    """Whether the connection cannot be trusted after this error."""
    return code_of(error) not in _WAIT_CODES


def unavailable(path: Path, error: BaseException) -> Unavailable:
    """An error of SQLite or of the operating system in words, with its own name as the detail."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    code, words = "unavailable", str(error)
    if isinstance(error, sqlite3.Error):
        code, words = _NAMES.get(code_of(error), (code, words))
    return Unavailable(f"{path.name}: {words}", code=code, hint=name, retry_after_s=2.0)
