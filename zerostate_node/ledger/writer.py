"""
Group commit: one thread owns one connection, and all callers that wait share one fsync.

    callers (trio) --bounded--> queue --> thread: BEGIN IMMEDIATE, apply..., COMMIT --> one wake-up

A group is whatever waits when the thread comes back from the last commit, so a lone caller pays
one fsync and a thousand callers pay one fsync together. Replies leave after COMMIT, never before.

Writes are values and `apply` is a function of the database and the write alone, because a group may
be applied twice: first without savepoints (each write checks before it changes, so a `Refused` has
nothing to undo); and when one write breaks half way, the group is rolled back and applied again
with a savepoint around each, so that the broken one alone is refused.

After a disk error nothing of the connection is believed: it is closed, opened again, and the
commit mark in the file is compared with the last commit that was acknowledged.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from zerostate_node.errors import Refused, Unavailable, ZeroStateError
from zerostate_node.ledger import database
from zerostate_node.units import MIB

log = structlog.get_logger()

W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)

REQUESTS_MAX = 1024  # callers that wait at once; more wait at the door, nothing is dropped
GROUP_WRITES_MAX = 4096  # bounds a transaction, and with it how long the first caller waits
CHECKPOINT_COMMITS = 1000  # move the WAL into the database after so many commits,
CHECKPOINT_CHANGES = 10_000  # or so many changed rows,
IDLE_S = 1.0  # or when nothing was asked for this long
QUICK_CHECK_BYTES_MAX = 256 * MIB  # a larger file is not scanned after a disk error


class Applier(Protocol[W_contra]):
    """What a writer does with one write, inside the transaction."""

    def begin(self) -> None:
        """A group starts, or starts again: forget what was counted."""

    def apply(self, cursor: sqlite3.Cursor, write: W_contra) -> object:
        """Check, then change. Raises Refused before the first change, or not at all."""

    def finish(self, cursor: sqlite3.Cursor) -> None:
        """The group is complete and about to commit."""


class _Request(Generic[W]):
    __slots__ = ("failure", "results", "task", "writes")

    def __init__(self, writes: Sequence[W], task: trio.lowlevel.Task) -> None:
        self.writes = writes
        self.task: trio.lowlevel.Task | None = task  # None: the caller was cancelled
        self.results: list[object] = []
        self.failure: Unavailable | None = None


class Writer(Generic[W]):
    """
    The only writer of one SQLite file.

    Args:
        path: the database; migrated before `open`.
        applier: what a write does.
    """

    def __init__(self, path: Path, applier: Applier[W]) -> None:
        self._path = path
        self._applier = applier
        self._queue: queue.SimpleQueue[_Request[W] | None] = queue.SimpleQueue()
        self._room = trio.Semaphore(REQUESTS_MAX)
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._conn: sqlite3.Connection | None = None
        self._mark = 0  # of the last commit that was acknowledged
        self._lost = False
        self._closed = True
        self._commits_due = 0
        self._changes_at = 0
        self.commits = 0
        self.writes = 0
        self.failures = 0

    def open(self) -> None:
        """Open the connection and start the thread. Raises Unavailable. Call it inside trio."""
        self._token = trio.lowlevel.current_trio_token()
        self._mark = -1
        self._reopen()
        self._closed = False
        self._thread = threading.Thread(
            target=self._serve, name=f"writer {self._path.name}", daemon=True
        )
        self._thread.start()

    async def aclose(self) -> None:
        """Commit what waits, answer it, close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        thread = self._thread
        assert thread is not None
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)

    async def write(self, writes: Sequence[W]) -> list[object]:
        """
        Apply writes in order, in one transaction with whoever else waits; durable on return.

        A caller that is cancelled while it waits leaves its writes behind: they are committed.

        Returns:
            For each write what `apply` gave, or the Refused that it raised.

        Raises:
            Unavailable: none of them is certain.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        if self._closed:
            self._room.release()
            raise Unavailable(f"{self._path.name} is closed", code="closed")
        request = _Request(writes, trio.lowlevel.current_task())

        def abandon(_: object) -> trio.lowlevel.Abort:
            request.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._queue.put(request)
        await trio.lowlevel.wait_task_rescheduled(abandon)
        if request.failure is not None:
            raise request.failure
        return request.results

    # -- trio's side of the reply ----------------------------------------------------------------

    def _wake(self, group: list[_Request[W]]) -> None:
        for request in group:
            self._room.release()
            if request.task is not None:
                trio.lowlevel.reschedule(request.task)

    # -- the thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        going = True
        while going:
            group: list[_Request[W]] = []
            count = 0
            try:
                first = self._queue.get(timeout=IDLE_S if self._commits_due else None)
                while first is not None:
                    group.append(first)
                    count += len(first.writes)
                    if count >= GROUP_WRITES_MAX:
                        break
                    first = self._queue.get_nowait()
                else:
                    going = False
            except queue.Empty:
                pass
            if group:
                self._answer(group)
            if going:
                self._checkpoint(idle=not group)
        if self._conn is not None:
            self._conn.close()

    def _answer(self, group: list[_Request[W]]) -> None:
        try:
            self._commit(group)
        except Exception as error:  # the bulkhead: the thread must outlive whatever one group does
            failure = (
                error if isinstance(error, Unavailable) else database.unavailable(self._path, error)
            )
            self.failures += 1
            log.error(
                "Commit failed, nothing of the group is certain",
                file=self._path.name,
                code=failure.code,
                cause=repr(error),
                writes=sum(len(request.writes) for request in group),
            )
            for request in group:  # each caller has its own, since each adds its own traceback
                request.failure = Unavailable(
                    failure.message,
                    code=failure.code,
                    hint=failure.hint,
                    retry_after_s=failure.retry_after_s,
                )
        assert self._token is not None
        # When trio has ended nobody is left to tell; what was committed is committed.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, group)

    def _commit(self, group: list[_Request[W]]) -> None:
        if self._conn is None:
            self._reopen()
        conn = self._conn
        assert conn is not None
        try:
            try:
                self._transact(conn, group, careful=False)
            except sqlite3.Error as error:
                if database.fails_the_group(error):
                    raise
                self._again(conn, group, error)
            except (OverflowError, ValueError, TypeError) as error:
                self._again(conn, group, error)
        except BaseException as error:
            self._give_up(conn, error)
            raise
        self._mark += 1
        self.commits += 1
        self._commits_due += 1
        self.writes += sum(len(request.writes) for request in group)

    def _again(self, conn: sqlite3.Connection, group: list[_Request[W]], error: Exception) -> None:
        log.warning("Write broke its group, applying one by one", cause=repr(error))
        conn.execute("ROLLBACK")
        self._transact(conn, group, careful=True)

    def _transact(
        self, conn: sqlite3.Connection, group: list[_Request[W]], *, careful: bool
    ) -> None:
        cursor = conn.cursor()
        applier = self._applier
        apply = self._apply_carefully if careful else applier.apply
        applier.begin()
        cursor.execute("BEGIN IMMEDIATE")
        for request in group:
            results: list[object] = []
            for write in request.writes:
                try:
                    results.append(apply(cursor, write))
                except Refused as refused:
                    results.append(refused)
            request.results = results
        applier.finish(cursor)
        cursor.execute("UPDATE commit_mark SET mark = ?", (self._mark + 1,))
        cursor.execute("COMMIT")

    def _apply_carefully(self, cursor: sqlite3.Cursor, write: W) -> object:
        cursor.execute("SAVEPOINT one")
        try:
            result = self._applier.apply(cursor, write)
        except Refused:
            cursor.execute("ROLLBACK TO one")
            raise
        except (sqlite3.Error, OverflowError, ValueError, TypeError) as error:
            if isinstance(error, sqlite3.Error) and database.fails_the_group(error):
                raise
            cursor.execute("ROLLBACK TO one")
            log.error("Write refused", write=type(write).__name__, cause=repr(error))
            raise Refused(
                f"cannot be stored: {error}", code="not_storable", hint=type(write).__name__
            ) from None
        finally:
            if cursor.connection.in_transaction:
                cursor.execute("RELEASE one")
        return result

    def _give_up(self, conn: sqlite3.Connection, error: BaseException) -> None:
        try:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # it is closed below in every case where this can happen
        if not isinstance(error, sqlite3.Error) or database.needs_reopening(error):
            self._conn = None
            try:
                conn.close()
            except sqlite3.Error as closing:
                log.warning("Closing after a disk error failed", cause=repr(closing))

    def _reopen(self) -> None:
        """Open, and prove that every commit that was acknowledged is in the file."""
        if self._lost:
            raise self._lost_error()
        first = self._mark < 0
        try:
            conn = database.connect(self._path)
        except (sqlite3.Error, OSError, ZeroStateError) as error:
            raise database.unavailable(self._path, error) from error
        try:
            (mark,) = conn.execute("SELECT mark FROM commit_mark").fetchone()
            if not first and self._path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
                (verdict,) = conn.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise Unavailable(
                        f"{self._path.name} is damaged: {verdict}",
                        code="corrupt",
                        hint="stop the node and restore a backup",
                    )
        except (sqlite3.Error, TypeError) as error:
            conn.close()
            raise database.unavailable(self._path, error) from error
        except Unavailable:
            conn.close()
            raise
        if mark < self._mark:
            conn.close()
            self._lost = True
            raise self._lost_error()
        self._mark = mark
        self._conn = conn
        self._changes_at = 0
        if not first:
            log.info("Database opened again after an error", file=self._path.name, mark=mark)

    def _lost_error(self) -> Unavailable:
        return Unavailable(
            f"{self._path.name} lacks commits that were acknowledged (up to {self._mark})",
            code="lost_commits",
            hint="the disk lied or the file was replaced: stop the node and restore a backup",
            retry_after_s=60.0,
        )

    def _checkpoint(self, *, idle: bool) -> None:
        # After the replies, so that nobody waits for it; passive, so that readers are not stopped.
        conn = self._conn
        if conn is None or self._commits_due == 0:
            return
        changed = conn.total_changes - self._changes_at
        if idle or self._commits_due >= CHECKPOINT_COMMITS or changed >= CHECKPOINT_CHANGES:
            self._commits_due = 0
            self._changes_at = conn.total_changes
            try:
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                # Every commit is safe in the WAL; the next checkpoint tries again.
                log.warning("Checkpoint failed", file=self._path.name, cause=repr(error))
                self._give_up(conn, error)
