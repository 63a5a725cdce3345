"""The `Journal` on SQLite: a node's own memory, in a file of its own beside the ledger."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import trio

from zerostate_node.errors import Refused, Unavailable
from zerostate_node.ledger import database, migrate
from zerostate_node.ledger.writer import Writer
from zerostate_node.ports.ledger import OwedReceipt
from zerostate_node.units import KIB

T = TypeVar("T")

KINDS = ("nodes", "manifests")
HEARD_MAX = 20_000  # per kind; past it the ones that expire first go
HEARD_BYTES_MAX = 64 * KIB  # per item; twice the largest signed thing there is
HEARD_KEY_CHARS_MAX = 512
ACKS_MAX = 50_000  # the newest are kept, for a person who asks what became of a receipt


@dataclasses.dataclass(frozen=True, slots=True)
class _Owe:
    receipt: OwedReceipt


@dataclasses.dataclass(frozen=True, slots=True)
class _Paid:
    task_id: str
    fence: int
    verdict: str
    voucher: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Hear:
    kind: str
    key: str
    item: bytes
    expires_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Forget:
    kind: str
    key: str


_Write = _Owe | _Paid | _Hear | _Forget


class _JournalWrites:
    """The applier of the journal's writer."""

    def __init__(self, *, heard_max: int, acks_max: int) -> None:
        self._heard_max = heard_max
        self._acks_max = acks_max
        self._heard: set[str] = set()
        self._acked = False

    def begin(self) -> None:
        self._heard.clear()
        self._acked = False

    def apply(self, cursor: sqlite3.Cursor, write: _Write) -> None:
        match write:
            case _Owe(receipt):
                cursor.execute(
                    "INSERT INTO owed (task_id, fence, owner, envelope, output_inline, finished_ms)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (task_id, fence) DO NOTHING",
                    (
                        receipt.task_id,
                        receipt.fence,
                        receipt.owner,
                        receipt.envelope,
                        receipt.output_inline,
                        receipt.finished_ms,
                    ),
                )
            case _Paid():
                self._pay(cursor, write)
            case _Hear(kind, key, item, expires_ms):
                cursor.execute(
                    "INSERT INTO heard (kind, key, item, expires_ms) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (kind, key) DO UPDATE SET item = excluded.item, "
                    "expires_ms = excluded.expires_ms",
                    (kind, key, item, expires_ms),
                )
                self._heard.add(kind)
            case _Forget(kind, key):
                cursor.execute("DELETE FROM heard WHERE kind = ? AND key = ?", (kind, key))

    def _pay(self, cursor: sqlite3.Cursor, write: _Paid) -> None:
        # An answer to what was never owed is not kept: else any owner could fill the disk.
        known = cursor.execute(
            "SELECT owner, finished_ms FROM owed WHERE task_id = ? AND fence = ?",
            (write.task_id, write.fence),
        ).fetchone()
        if known is None:
            return
        owner, finished_ms = known
        cursor.execute(
            "INSERT INTO acks (task_id, fence, owner, verdict, finished_ms) VALUES (?, ?, ?, ?, ?)",
            (write.task_id, write.fence, owner, write.verdict, finished_ms),
        )
        cursor.execute(
            "DELETE FROM owed WHERE task_id = ? AND fence = ?", (write.task_id, write.fence)
        )
        if write.voucher:
            cursor.execute(
                "INSERT INTO vouchers (owner, task_id, fence, voucher) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (owner) DO UPDATE SET task_id = excluded.task_id, "
                "fence = excluded.fence, voucher = excluded.voucher",
                (owner, write.task_id, write.fence, write.voucher),
            )
        self._acked = True

    def finish(self, cursor: sqlite3.Cursor) -> None:
        for kind in self._heard:
            (count,) = cursor.execute(
                "SELECT count(*) FROM heard WHERE kind = ?", (kind,)
            ).fetchone()
            if count > self._heard_max:
                cursor.execute(
                    "DELETE FROM heard WHERE rowid IN (SELECT rowid FROM heard WHERE kind = ? "
                    "ORDER BY expires_ms LIMIT ?)",
                    (kind, count - self._heard_max),
                )
        if self._acked:
            cursor.execute(
                "DELETE FROM acks WHERE number <= (SELECT max(number) FROM acks) - ?",
                (self._acks_max,),
            )


class SqliteJournal:
    """
    What this node still owes and what it heard (`ports.ledger.Journal`), durable.

    Use it as `async with SqliteJournal(path)`, or call `open` and `aclose`.

    Args:
        path: the file; its directory exists and is private (`ledger.datadir`).
        now_ms: wall clock, ms since 1970; stamps migrations.
        heard_max: heard things kept per kind; the ones that expire first go.
        acks_max: answers kept; the newest stay.
    """

    def __init__(
        self,
        path: Path,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        heard_max: int = HEARD_MAX,
        acks_max: int = ACKS_MAX,
    ) -> None:
        self._path = path
        self._now_ms = now_ms
        writes = _JournalWrites(heard_max=heard_max, acks_max=acks_max)
        self._writer: Writer[_Write] = Writer(path, writes)
        self._limiter = trio.CapacityLimiter(1)  # one reading connection, used by one thread
        self._reader: sqlite3.Connection | None = None
        self._open = False

    async def open(self) -> None:
        """Apply migrations, start the writer. Raises ConfigError; Unavailable."""
        migrations = migrate.carried("journal")
        await trio.to_thread.run_sync(
            lambda: migrate.migrate(self._path, migrations, now_ms=self._now_ms())
        )
        self._writer.open()
        self._open = True

    async def aclose(self) -> None:
        """Commit what waits, then close. Idempotent."""
        self._open = False
        with trio.CancelScope(shield=True):
            async with self._limiter:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
            await self._writer.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- receipts ----------------------------------------------------------------------------------

    async def owe(self, receipts: Sequence[OwedReceipt]) -> None:
        """Store receipts before they are sent; durable on return. Raises Unavailable."""
        await self._write([_Owe(receipt) for receipt in receipts])

    async def paid(self, acks: Sequence[tuple[str, int, str, bytes]]) -> None:
        """Forget receipts that were answered: (task_id, fence, verdict, voucher)."""
        await self._write([_Paid(*ack) for ack in acks])

    async def owed(self, owner: str = "") -> list[OwedReceipt]:
        """What is still owed, oldest first; all owners when `owner` is empty."""

        def read(conn: sqlite3.Connection) -> list[OwedReceipt]:
            found = conn.execute(
                "SELECT task_id, fence, owner, envelope, output_inline, finished_ms FROM owed "
                "WHERE ? = '' OR owner = ? ORDER BY finished_ms, task_id, fence",
                (owner, owner),
            )
            return [
                OwedReceipt(
                    task_id=task_id,
                    fence=fence,
                    owner=whom,
                    envelope=envelope,
                    output_inline=output_inline,
                    finished_ms=finished_ms,
                )
                for task_id, fence, whom, envelope, output_inline, finished_ms in found
            ]

        return await self._read(read)

    async def verdict(self, task_id: str, fence: int) -> str | None:
        """What an owner answered to a receipt: settled, stale, rejected; None when unknown."""

        def read(conn: sqlite3.Connection) -> str | None:
            found = conn.execute(
                "SELECT verdict FROM acks WHERE task_id = ? AND fence = ? ORDER BY number DESC",
                (task_id, fence),
            ).fetchone()
            return found[0] if found else None

        return await self._read(read)

    async def voucher(self, owner: str) -> bytes | None:
        """The last payment proof that an owner gave: cumulative, so it covers all before it."""

        def read(conn: sqlite3.Connection) -> bytes | None:
            found = conn.execute(
                "SELECT voucher FROM vouchers WHERE owner = ?", (owner,)
            ).fetchone()
            return found[0] if found else None

        return await self._read(read)

    # -- heard things ------------------------------------------------------------------------------

    async def remember(self, kind: str, items: Sequence[tuple[str, bytes, int]]) -> None:
        """
        Keep heard things: (key, signed bytes, expires_ms).

        Raises: Refused (bad_kind, too_large); Unavailable.
        """
        _check_kind(kind)
        for key, item, _ in items:
            if len(item) > HEARD_BYTES_MAX or len(key) > HEARD_KEY_CHARS_MAX:
                raise Refused(
                    f"{kind} {key[:80]!r}: {len(item)} bytes, at most {HEARD_BYTES_MAX} are kept",
                    code="too_large",
                )
        await self._write([_Hear(kind, *item) for item in items])

    async def recall(self, kind: str, now_ms: int) -> list[tuple[str, bytes, int]]:
        """Heard things that have not expired, the longest lived first."""
        _check_kind(kind)

        def read(conn: sqlite3.Connection) -> list[tuple[str, bytes, int]]:
            return conn.execute(
                "SELECT key, item, expires_ms FROM heard WHERE kind = ? AND expires_ms > ? "
                "ORDER BY expires_ms DESC",
                (kind, now_ms),
            ).fetchall()

        return await self._read(read)

    async def forget(self, kind: str, keys: Sequence[str]) -> None:
        """Drop heard things."""
        _check_kind(kind)
        await self._write([_Forget(kind, key) for key in keys])

    async def _write(self, writes: Sequence[_Write]) -> None:
        if not writes:
            return
        for result in await self._writer.write(writes):
            if isinstance(result, Refused):
                raise result

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if not self._open:
            raise Unavailable(f"{self._path.name} is closed", code="closed")

        def in_thread() -> T:
            try:
                if self._reader is None:
                    self._reader = database.connect(self._path, read_only=True)
                return read(self._reader)
            except sqlite3.Error as error:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                raise database.unavailable(self._path, error) from error

        return await trio.to_thread.run_sync(in_thread, limiter=self._limiter)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise Refused(f"{kind!r} is none of {', '.join(KINDS)}", code="bad_kind")
