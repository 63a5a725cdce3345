"""
Numbered SQL files, applied once each, in order, each in one transaction under an exclusive lock.

Why not a library: docs/adr/0004-migrations.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sqlite3
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import structlog

from zerostate_node.errors import ConfigError
from zerostate_node.ledger import database

log = structlog.get_logger()

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql\Z")
_BOOK = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  checksum TEXT NOT NULL,
  applied_ms INTEGER NOT NULL
) STRICT
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema: its number, its file name, its statements."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, so that an edit of an applied step is noticed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def carried(kind: str) -> tuple[Migration, ...]:
    """The migrations in this package for `sqlite` (the ledger) or `journal`, in order."""
    found = []
    for entry in resources.files("zerostate_node.ledger").joinpath("migrations", kind).iterdir():
        match = _NAME.match(entry.name)
        if match:
            found.append(Migration(int(match[1]), entry.name, entry.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)) or not found:
        raise ConfigError(
            f"the {kind} migrations of this installation are not numbered 1, 2, 3...: "
            f"{', '.join(migration.name for migration in found) or 'none'}",
            code="bad_migrations",
            hint="reinstall zerostate-node",
        )
    return tuple(found)


def applied(path: Path) -> list[str]:
    """Names of the migrations that a database has; empty when there is no file yet."""
    if not path.exists():
        return []
    try:
        conn = database.connect(path, read_only=True)
        try:
            return [name for _, name, _ in _book(conn)]
        finally:
            conn.close()
    except sqlite3.Error as error:
        raise _explained(path, error) from error


def pending(path: Path, migrations: Sequence[Migration]) -> list[str]:
    """Names of the migrations that `migrate` would apply."""
    done = set(applied(path))
    return [migration.name for migration in migrations if migration.name not in done]


def migrate(path: Path, migrations: Sequence[Migration], *, now_ms: int) -> list[str]:
    """
    Bring a database up to date; the names of what was applied now.

    Raises:
        ConfigError: `newer_database`, `edited_migration`, `failed_migration` (rolled back; the
            message holds the statement), `bad_database`.
        Unavailable: disk full, locked by another process, and the like.
    """
    names = []
    try:
        conn = database.connect(path)
        try:
            while (migration := _next(path, conn, migrations, now_ms)) is not None:
                names.append(migration.name)
                log.info("Migration applied", file=path.name, migration=migration.name)
        finally:
            conn.close()
    except (sqlite3.Error, OSError) as error:
        raise _explained(path, error) from error
    return names


def _next(
    path: Path, conn: sqlite3.Connection, migrations: Sequence[Migration], now_ms: int
) -> Migration | None:
    # The lock is taken before the book is read, so two processes never apply the same step.
    conn.execute("BEGIN EXCLUSIVE")
    try:
        book = _book(conn)
        _compare(path, book, migrations)
        if len(book) == len(migrations):
            conn.execute("ROLLBACK")
            return None
        migration = migrations[len(book)]
        conn.execute(_BOOK)
        _run(path, conn, migration)
        conn.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
            (migration.number, migration.name, migration.checksum, now_ms),
        )
        conn.execute("COMMIT")
        return migration
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _book(conn: sqlite3.Connection) -> list[tuple[int, str, str]]:
    known = conn.execute(
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"
    ).fetchone()
    if known is None:
        return []
    return conn.execute(
        "SELECT number, name, checksum FROM schema_migrations ORDER BY number"
    ).fetchall()


def _compare(path: Path, book: list[tuple[int, str, str]], migrations: Sequence[Migration]) -> None:
    if len(book) > len(migrations):
        raise ConfigError(
            f"{path} was written by a newer zerostate-node (it has {book[-1][1]}, "
            f"this program knows {len(migrations)} migrations)",
            code="newer_database",
            hint="install the version that wrote it, or restore the backup made before it",
        )
    for (number, name, checksum), migration in zip(book, migrations, strict=False):
        if (number, checksum) != (migration.number, migration.checksum):
            raise ConfigError(
                f"{path} was migrated with another text of {name} than this program carries "
                f"({migration.name})",
                code="edited_migration",
                hint="reinstall the released version; put changes in a new migration instead",
            )


def _run(path: Path, conn: sqlite3.Connection, migration: Migration) -> None:
    for position, statement in enumerate(statements(migration.sql), start=1):
        try:
            conn.execute(statement)
        except (sqlite3.Error, sqlite3.Warning) as error:
            disk = isinstance(error, sqlite3.Error) and database.code_of(error) not in (0, 1, 19)
            if disk:
                raise
            raise ConfigError(
                f"{path}: statement {position} of {migration.name} failed, nothing of it was kept: "
                f"{error}: {' '.join(statement.split())[:200]}",
                code="failed_migration",
                hint="report it with this message; the database is as it was before",
            ) from error
        if not conn.in_transaction:
            raise ConfigError(
                f"statement {position} of {migration.name} ends the transaction it runs in",
                code="bad_migrations",
            )


def statements(sql: str) -> list[str]:
    """The statements of a script; a trigger's body stays in one piece."""
    found, start = [], 0
    for match in re.finditer(";", sql):
        piece = sql[start : match.end()]
        if sqlite3.complete_statement(piece):
            found.append(piece.strip())
            start = match.end()
    rest = re.sub(r"--[^\n]*", "", sql[start:]).strip()
    if rest:
        found.append(rest)
    return found


def _explained(path: Path, error: BaseException) -> Exception:
    if isinstance(error, sqlite3.Error) and database.code_of(error) in (11, 26):
        return ConfigError(
            f"{path} is not a sound SQLite database: {error}",
            code="bad_database",
            hint="restore a backup, or move the file away to start empty",
        )
    return database.unavailable(path, error)
