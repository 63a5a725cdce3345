"""The `Ledger` on SQLite: one writer with group commit, a few readers beside it."""

from __future__ import annotations

import base64
import binascii
import queue
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import trio

from zerostate_node.errors import Refused, Unavailable, WireError
from zerostate_node.ledger import database, migrate
from zerostate_node.ledger.writer import Writer
from zerostate_node.ledger.writes import TaskWrites, digest_key
from zerostate_node.ports.ledger import AgentRow, AttemptRow, Page, TaskRow, Write
from zerostate_node.units import MIB
from zerostate_node.wire import codec, ids
from zerostate_node.wire.messages import BlobRef, Outcome, TaskSpec

T = TypeVar("T")

READERS = 4  # threads and connections; more would only queue for the same two or four cores
PAGE_ROWS_MAX = 500
_SPEC_BYTES_MAX = 1 * MIB
_PHASES = ("open", "leased", "settled")

_COLUMNS = """
s.spec, t.actor, t.phase, t.attempt, t.fence, t.worker, t.lease_until_ms, t.not_before_ms,
t.excluded, t.cancel_reason, t.outcome, t.detail, t.output_digest, t.output_bytes, t.fuel_used,
t.price_ucr, t.updated_ms, t.task_id
"""
_RECEIPT = """
SELECT r.envelope FROM tasks t JOIN receipts r ON r.task_id = t.task_id AND r.fence = t.fence
WHERE t.task_id = ? AND t.receipted = 1
"""


class SqliteLedger:
    """
    Durable truth of an owner in one SQLite file (`ports.ledger.Ledger`).

    Use it as `async with SqliteLedger(path, now_ms=...)`, or call `open` and `aclose`.

    Args:
        path: the file; its directory exists and is private (`ledger.datadir`).
        now_ms: wall clock, ms since 1970; stamps migrations.
    """

    def __init__(self, path: Path, *, now_ms: Callable[[], int]) -> None:
        self._path = path
        self._now_ms = now_ms
        self._writer: Writer[Write] = Writer(path, TaskWrites())
        self._limiter = trio.CapacityLimiter(READERS)
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._open = False

    async def open(self) -> None:
        """Apply migrations, start the writer. Raises ConfigError; Unavailable."""
        migrations = migrate.carried("sqlite")
        await trio.to_thread.run_sync(
            lambda: migrate.migrate(self._path, migrations, now_ms=self._now_ms())
        )
        self._writer.open()
        self._open = True

    async def aclose(self) -> None:
        """Commit what waits, then close. Idempotent."""
        self._open = False
        with trio.CancelScope(shield=True):
            for _ in range(READERS):  # wait for reads under way
                await self._limiter.acquire_on_behalf_of(object())
            while not self._readers.empty():
                self._readers.get_nowait().close()
            await self._writer.aclose()
        self._limiter = trio.CapacityLimiter(READERS)

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

    # -- writes ------------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Write]) -> list[object]:
        """Apply writes in order; durable on return. See `ports.ledger.Ledger.commit`."""
        return await self._writer.write(tuple(writes))

    async def check(self) -> None:
        """Commit a change of the commit mark. Raises Unavailable with the cause."""
        await self._writer.write(())

    def stats(self) -> dict[str, int]:
        """Of the writer, since `open`: commits, writes, failed commits."""
        writer = self._writer
        return {"commits": writer.commits, "writes": writer.writes, "failures": writer.failures}

    # -- reads -------------------------------------------------------------------------------------

    async def task(self, task_id: str) -> TaskRow | None:
        """One task."""

        def read(conn: sqlite3.Connection) -> TaskRow | None:
            found = conn.execute(
                f"SELECT {_COLUMNS} FROM tasks t JOIN specs s USING (task_id) WHERE t.task_id = ?",
                (task_id,),
            ).fetchone()
            return _task_row(found) if found else None

        return await self._read(read)

    async def tasks(
        self, *, actor: str | None = None, phase: str = "", limit: int = 50, cursor: str = ""
    ) -> Page:
        """
        Tasks, newest first.

        Args:
            limit: rows, cut to 1..500.
            cursor: what an earlier page gave.

        Raises: Refused (bad_cursor, bad_phase); Unavailable.
        """
        if phase and phase not in _PHASES:
            raise Refused(f"phase is one of {', '.join(_PHASES)}", code="bad_phase")
        rows_max = max(1, min(limit, PAGE_ROWS_MAX))
        where, values = ["1"], list[object]()
        if cursor:
            where.append("t.task_id < ?")
            values.append(_task_of_cursor(cursor))
        if actor is not None:
            where.append("t.actor = ?")
            values.append(actor)
        if phase:
            if phase != "settled":
                where.append("t.phase <> 'settled'")  # lets SQLite use the index of live tasks
            where.append("t.phase = ?")
            values.append(phase)
        query = (
            f"SELECT {_COLUMNS} FROM tasks t JOIN specs s USING (task_id) "
            f"WHERE {' AND '.join(where)} ORDER BY t.task_id DESC LIMIT {rows_max + 1}"
        )

        def read(conn: sqlite3.Connection) -> Page:
            found = conn.execute(query, values).fetchall()
            more = len(found) > rows_max
            rows = tuple(_task_row(row) for row in found[:rows_max])
            return Page(rows=rows, cursor=_cursor_of(rows[-1].spec.task_id) if more else "")

        return await self._read(read)

    async def live(self) -> list[TaskRow]:
        """Every task that is not settled, oldest first."""

        def read(conn: sqlite3.Connection) -> list[TaskRow]:
            found = conn.execute(
                f"SELECT {_COLUMNS} FROM tasks t JOIN specs s USING (task_id) "
                "WHERE t.phase <> 'settled' ORDER BY t.task_id"
            )
            return [_task_row(row) for row in found]

        return await self._read(read)

    async def attempts(self, task_id: str) -> list[AttemptRow]:
        """The attempts of a task, in the order of their fences."""

        def read(conn: sqlite3.Connection) -> list[AttemptRow]:
            found = conn.execute(
                "SELECT attempt, fence, worker, leased_ms, ended_ms, outcome, detail "
                "FROM attempts WHERE task_id = ? ORDER BY fence",
                (task_id,),
            )
            return [
                AttemptRow(
                    task_id=task_id,
                    attempt=attempt,
                    fence=fence,
                    worker=worker,
                    leased_ms=leased_ms,
                    ended_ms=ended_ms,
                    outcome=Outcome(outcome) if outcome else None,
                    detail=detail,
                )
                for attempt, fence, worker, leased_ms, ended_ms, outcome, detail in found
            ]

        return await self._read(read)

    async def receipt(self, task_id: str) -> bytes | None:
        """The signed receipt that settled a task."""
        return await self._blob(_RECEIPT, task_id)

    async def input_inline(self, task_id: str) -> bytes | None:
        """The input, where it is small enough to live in the row."""
        return await self._blob("SELECT input_inline FROM specs WHERE task_id = ?", task_id)

    async def inline_blob(self, digest: str) -> bytes | None:
        """An input that lives in a task's row, by its digest."""

        def read(conn: sqlite3.Connection) -> bytes | None:
            found = conn.execute(
                "SELECT input_inline FROM specs WHERE input_key = ? LIMIT 4", (digest_key(digest),)
            ).fetchall()
            return next((data for (data,) in found if ids.digest_of(data) == digest), None)

        return await self._read(read)

    async def output_inline(self, task_id: str) -> bytes | None:
        """The output, where it is small enough to live in the row."""
        return await self._blob("SELECT output_inline FROM outputs WHERE task_id = ?", task_id)

    async def agents(self, *, publisher: str = "") -> list[AgentRow]:
        """Every stored version of every agent, newest sequence first."""

        def read(conn: sqlite3.Connection) -> list[AgentRow]:
            found = conn.execute(
                "SELECT agent_id, version, sequence, name, publisher, status, card, published_ms "
                "FROM agents WHERE ? = '' OR publisher = ? ORDER BY sequence DESC, agent_id",
                (publisher, publisher),
            )
            return [
                AgentRow(
                    agent_id=agent_id,
                    version=version,
                    sequence=sequence,
                    name=name,
                    publisher=by,
                    status=status,
                    card=card,
                    published_ms=published_ms,
                )
                for agent_id, version, sequence, name, by, status, card, published_ms in found
            ]

        return await self._read(read)

    async def counts(self) -> dict[str, int]:
        """Tasks by phase and outcome; a name is there once it was above zero."""

        def read(conn: sqlite3.Connection) -> dict[str, int]:
            return dict(conn.execute("SELECT name, n FROM tallies").fetchall())

        return await self._read(read)

    async def _blob(self, query: str, task_id: str) -> bytes | None:
        def read(conn: sqlite3.Connection) -> bytes | None:
            found = conn.execute(query, (task_id,)).fetchone()
            return found[0] if found else None

        return await self._read(read)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if not self._open:
            raise Unavailable(f"{self._path.name} is closed", code="closed")

        def in_thread() -> T:
            # Each thread takes a connection and gives it back; the limiter bounds how many exist.
            conn = None
            try:
                try:
                    conn = self._readers.get_nowait()
                except queue.Empty:
                    conn = database.connect(self._path, read_only=True)
                result = read(conn)
            except sqlite3.Error as error:
                if conn is not None:
                    conn.close()
                raise database.unavailable(self._path, error) from error
            except BaseException:
                if conn is not None:
                    conn.close()
                raise
            self._readers.put(conn)
            return result

        return await trio.to_thread.run_sync(in_thread, limiter=self._limiter)


def _task_row(found: tuple[Any, ...]) -> TaskRow:
    (
        encoded,
        actor,
        phase,
        attempt,
        fence,
        worker,
        lease_until_ms,
        not_before_ms,
        excluded,
        cancel_reason,
        outcome,
        detail,
        output_digest,
        output_bytes,
        fuel_used,
        price_ucr,
        updated_ms,
        task_id,
    ) = found
    try:
        return TaskRow(
            spec=codec.decode(encoded, TaskSpec, bytes_max=_SPEC_BYTES_MAX),
            actor=actor,
            phase=phase,
            attempt=attempt,
            fence=fence,
            worker=worker,
            lease_until_ms=lease_until_ms,
            not_before_ms=not_before_ms,
            excluded=msgspec.json.decode(excluded, type=tuple[str, ...]),
            cancel_reason=cancel_reason,
            outcome=Outcome(outcome) if outcome else None,
            detail=detail,
            output=_ref(output_digest, output_bytes),
            fuel_used=fuel_used,
            price_ucr=price_ucr,
            updated_ms=updated_ms,
        )
    except (WireError, ValueError, msgspec.MsgspecError) as error:
        raise Unavailable(
            f"task {task_id} is damaged in the ledger: {error}",
            code="corrupt",
            hint="stop the node and restore a backup",
        ) from error


def _ref(digest: object, size_bytes: object) -> BlobRef | None:
    if not isinstance(digest, str) or not isinstance(size_bytes, int):
        return None
    return BlobRef(digest=digest, size_bytes=size_bytes)


def _cursor_of(task_id: str) -> str:
    return base64.urlsafe_b64encode(f"t1:{task_id}".encode()).decode().rstrip("=")


def _task_of_cursor(cursor: str) -> str:
    try:
        if len(cursor) > 64:
            raise ValueError("too long")
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        head, _, task_id = text.decode("ascii").partition(":")
        if head != "t1" or not ids.is_task_id(task_id):
            raise ValueError("not a cursor")
    except (ValueError, binascii.Error) as error:
        raise Refused("this cursor is not one that a page gave", code="bad_cursor") from error
    return task_id
