"""
What each write of `ports/ledger.py` does to the tables.

A write first checks, by the WHERE of its first UPDATE or INSERT, and changes the rest only when
that one row changed: so a refusal leaves nothing to undo. A write that was applied before, to the
last field, succeeds again without effect, because a caller that met `Unavailable` asks again.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from zerostate_node.errors import Refused
from zerostate_node.ports.ledger import (
    CancelTask,
    LeaseTask,
    OpenTask,
    PublishAgent,
    ReopenTask,
    SettleTask,
    Write,
)
from zerostate_node.wire import codec
from zerostate_node.wire.messages import Outcome

_SUPERSEDED = "a newer lease was granted"

_OPEN = """
INSERT INTO tasks (task_id, actor, agent_id, phase, attempt, fence, worker, lease_until_ms,
  not_before_ms, excluded, cancel_reason, outcome, detail, output_digest, output_bytes, fuel_used,
  price_ucr, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (task_id) DO NOTHING
"""
_LEASE = """
UPDATE tasks SET phase = 'leased', attempt = ?, fence = ?, worker = ?, lease_until_ms = ?,
  not_before_ms = 0, updated_ms = ?
WHERE task_id = ? AND phase <> 'settled' AND fence < ?
"""
_LEASED_ALREADY = """
SELECT 1 FROM tasks t JOIN attempts a ON a.task_id = t.task_id AND a.fence = t.fence
WHERE t.task_id = ? AND t.fence = ? AND t.phase = 'leased' AND t.lease_until_ms = ?
  AND a.attempt = ? AND a.worker = ? AND a.leased_ms = ?
"""
_REOPEN = """
UPDATE tasks SET phase = 'open', excluded = ?, not_before_ms = ?, lease_until_ms = 0, updated_ms = ?
WHERE task_id = ? AND phase = 'leased' AND fence = ?
"""
_REOPENED_ALREADY = """
SELECT 1 FROM tasks t JOIN attempts a ON a.task_id = t.task_id AND a.fence = t.fence
WHERE t.task_id = ? AND t.fence = ? AND t.phase = 'open' AND t.excluded = ?
  AND t.not_before_ms = ? AND t.updated_ms = ? AND a.outcome = ? AND a.detail = ?
"""
_SETTLE = """
UPDATE tasks SET phase = 'settled', worker = CASE WHEN ? = '' THEN worker ELSE ? END,
  lease_until_ms = 0, outcome = ?, detail = ?, output_digest = ?, output_bytes = ?, fuel_used = ?,
  price_ucr = ?, receipted = ?, updated_ms = ?
WHERE task_id = ? AND phase = ? AND fence = ?
"""
_SETTLED_ALREADY = """
SELECT 1 FROM tasks t LEFT JOIN receipts r ON r.task_id = t.task_id AND r.fence = t.fence
WHERE t.task_id = ? AND t.fence = ? AND t.phase = 'settled' AND t.outcome = ? AND t.detail = ?
  AND t.output_digest IS ? AND t.fuel_used = ? AND t.price_ucr = ? AND t.updated_ms = ?
  AND (t.receipted = 0 OR r.envelope = ?) AND t.receipted = ?
"""
_END_ATTEMPT = """
UPDATE attempts SET ended_ms = ?, outcome = ?, detail = ?
WHERE task_id = ? AND fence = ? AND (outcome IS NULL OR ?)
"""
_KEEP_RECEIPT = """
INSERT INTO receipts (task_id, fence, envelope) VALUES (?, ?, ?)
ON CONFLICT (task_id, fence) DO UPDATE SET envelope = excluded.envelope
"""
_PUBLISH = """
INSERT INTO agents (agent_id, version, sequence, name, publisher, status, card, published_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (agent_id, version) DO UPDATE SET sequence = excluded.sequence,
  status = excluded.status, card = excluded.card, published_ms = excluded.published_ms
"""
_TALLY = """
INSERT INTO tallies (name, n) VALUES (?, max(0, ?)) ON CONFLICT (name) DO UPDATE SET n = n + ?
"""


class TaskWrites:
    """The applier of the ledger's writer."""

    def __init__(self) -> None:
        self._tally: Counter[str] = Counter()
        self._by_kind: dict[type, Callable[[sqlite3.Cursor, Any], object]] = {
            OpenTask: self._open,
            LeaseTask: self._lease,
            ReopenTask: self._reopen,
            SettleTask: self._settle,
            CancelTask: self._cancel,
            PublishAgent: self._publish,
        }

    def begin(self) -> None:
        """Forget the counts of a group that was rolled back."""
        self._tally.clear()

    def apply(self, cursor: sqlite3.Cursor, write: Write) -> object:
        """Do one write. Raises Refused before anything changed."""
        return self._by_kind[type(write)](cursor, write)

    def finish(self, cursor: sqlite3.Cursor) -> None:
        """Bring the counts up to date, once per group."""
        for name, change in self._tally.items():
            if change:
                cursor.execute(_TALLY, (name, change, change))

    # -- one method per write ----------------------------------------------------------------------

    def _open(self, cursor: sqlite3.Cursor, write: OpenTask) -> str:
        row, spec = write.row, write.row.spec
        if write.key:
            known = cursor.execute(
                "SELECT request_digest, task_id FROM idempotency WHERE actor = ? AND key = ?",
                (row.actor, write.key),
            ).fetchone()
            if known is not None:
                if known[0] != write.request_digest:
                    raise Refused(
                        f"this idempotency key opened {known[1]} with another request",
                        code="idempotency_conflict",
                        hint="use a new key for a new request",
                    )
                return str(known[1])
        encoded = codec.encode(spec)
        cursor.execute(
            _OPEN,
            (
                spec.task_id,
                row.actor,
                spec.agent_id,
                row.phase,
                row.attempt,
                row.fence,
                row.worker,
                row.lease_until_ms,
                row.not_before_ms,
                _json(row.excluded),
                row.cancel_reason,
                row.outcome.value if row.outcome else None,
                row.detail,
                row.output.digest if row.output else None,
                row.output.size_bytes if row.output else None,
                row.fuel_used,
                row.price_ucr,
                spec.created_ms,
                row.updated_ms or spec.created_ms,
            ),
        )
        if cursor.rowcount == 0:
            same = cursor.execute(
                "SELECT 1 FROM tasks JOIN specs USING (task_id) "
                "WHERE task_id = ? AND actor = ? AND spec = ? AND input_inline IS ?",
                (spec.task_id, row.actor, encoded, write.input_inline),
            ).fetchone()
            if same is None or write.key:
                raise Refused(f"task {spec.task_id} exists with other content", code="task_exists")
            return spec.task_id
        cursor.execute(
            "INSERT INTO specs (task_id, spec, input_inline, input_key) VALUES (?, ?, ?, ?)",
            (
                spec.task_id,
                encoded,
                write.input_inline,
                None if write.input_inline is None else digest_key(spec.input.digest),
            ),
        )
        if write.key:
            cursor.execute(
                "INSERT INTO idempotency (actor, key, request_digest, task_id, created_ms) "
                "VALUES (?, ?, ?, ?, ?)",
                (row.actor, write.key, write.request_digest, spec.task_id, spec.created_ms),
            )
        self._tally[row.outcome.value if row.outcome else row.phase] += 1
        return spec.task_id

    def _lease(self, cursor: sqlite3.Cursor, write: LeaseTask) -> None:
        was = _phase(cursor, write.task_id)
        cursor.execute(
            _LEASE,
            (
                write.attempt,
                write.fence,
                write.worker,
                write.until_ms,
                write.now_ms,
                write.task_id,
                write.fence,
            ),
        )
        if cursor.rowcount == 0:
            again = (
                write.task_id,
                write.fence,
                write.until_ms,
                write.attempt,
                write.worker,
                write.now_ms,
            )
            _unless_applied(cursor, _LEASED_ALREADY, again, write.task_id, write.fence)
            return
        if was == "leased":
            cursor.execute(
                "UPDATE attempts SET ended_ms = ?, outcome = ?, detail = ? "
                "WHERE task_id = ? AND outcome IS NULL",
                (write.now_ms, Outcome.LOST.value, _SUPERSEDED, write.task_id),
            )
        cursor.execute(
            "INSERT INTO attempts (task_id, fence, attempt, worker, leased_ms) "
            "VALUES (?, ?, ?, ?, ?)",
            (write.task_id, write.fence, write.attempt, write.worker, write.now_ms),
        )
        self._tally[was] -= 1
        self._tally["leased"] += 1

    def _reopen(self, cursor: sqlite3.Cursor, write: ReopenTask) -> None:
        excluded = _json(write.excluded)
        cursor.execute(
            _REOPEN, (excluded, write.not_before_ms, write.now_ms, write.task_id, write.fence)
        )
        if cursor.rowcount == 0:
            again = (
                write.task_id,
                write.fence,
                excluded,
                write.not_before_ms,
                write.now_ms,
                write.outcome.value,
                write.detail,
            )
            _unless_applied(cursor, _REOPENED_ALREADY, again, write.task_id, write.fence)
            return
        self._end(cursor, write)
        self._tally["leased"] -= 1
        self._tally["open"] += 1

    def _settle(self, cursor: sqlite3.Cursor, write: SettleTask) -> None:
        was = _phase(cursor, write.task_id)
        output = (write.output.digest, write.output.size_bytes) if write.output else (None, None)
        cursor.execute(
            _SETTLE,
            (
                write.worker,
                write.worker,
                write.outcome.value,
                write.detail,
                *output,
                write.fuel_used,
                write.price_ucr,
                bool(write.receipt),
                write.now_ms,
                write.task_id,
                was if was != "settled" else "",
                write.fence,
            ),
        )
        if cursor.rowcount == 0:
            again = (
                write.task_id,
                write.fence,
                write.outcome.value,
                write.detail,
                output[0],
                write.fuel_used,
                write.price_ucr,
                write.now_ms,
                write.receipt,
                bool(write.receipt),
            )
            _unless_applied(cursor, _SETTLED_ALREADY, again, write.task_id, write.fence)
            return
        self._end(cursor, write)
        if write.output_inline is not None:
            cursor.execute(
                "INSERT INTO outputs (task_id, output_inline) VALUES (?, ?)",
                (write.task_id, write.output_inline),
            )
        self._tally[was] -= 1
        self._tally[write.outcome.value] += 1

    def _end(self, cursor: sqlite3.Cursor, write: ReopenTask | SettleTask) -> None:
        # A lease that was given up as lost may still be answered before the next one is granted:
        # a signed receipt then replaces the owner's guess of how the attempt ended.
        cursor.execute(
            _END_ATTEMPT,
            (
                write.now_ms,
                write.outcome.value,
                write.detail,
                write.task_id,
                write.fence,
                bool(write.receipt),
            ),
        )
        if write.receipt:
            cursor.execute(_KEEP_RECEIPT, (write.task_id, write.fence, write.receipt))

    def _cancel(self, cursor: sqlite3.Cursor, write: CancelTask) -> None:
        cursor.execute(
            "UPDATE tasks SET cancel_reason = ?, updated_ms = ? "
            "WHERE task_id = ? AND phase <> 'settled'",
            (write.reason or "cancelled", write.now_ms, write.task_id),
        )
        if cursor.rowcount == 0:
            if _phase(cursor, write.task_id):
                raise Refused(f"task {write.task_id} has ended", code="already_settled")
            raise Refused(f"no task {write.task_id}", code="no_such_task")

    def _publish(self, cursor: sqlite3.Cursor, write: PublishAgent) -> bool:
        row = write.row
        known = cursor.execute(
            "SELECT status, sequence, card FROM agents WHERE agent_id = ? AND version = ?",
            (row.agent_id, row.version),
        ).fetchone()
        if known is not None and known[2] == row.card:
            return False
        newest = cursor.execute(
            "SELECT status, sequence, version FROM agents WHERE agent_id = ? "
            "ORDER BY sequence DESC LIMIT 1",
            (row.agent_id,),
        ).fetchone()
        if known is not None and known[0] == "revoked":
            raise Refused(
                f"{row.agent_id} {row.version} was revoked",
                code="revoked",
                hint="revocation is final: publish under a new version",
            )
        if known is not None and row.status == "active" and not write.renewal:
            raise Refused(
                f"{row.agent_id} has another version {row.version}",
                code="version_exists",
                hint="versions never change: publish under a new one",
            )
        if newest is not None and row.sequence <= newest[1]:
            raise Refused(
                f"{row.agent_id} is at sequence {newest[1]}, {row.sequence} is not newer",
                code="stale_sequence",
            )
        cursor.execute(
            _PUBLISH,
            (
                row.agent_id,
                row.version,
                row.sequence,
                row.name,
                row.publisher,
                row.status,
                row.card,
                row.published_ms,
            ),
        )
        return True


def digest_key(digest: str) -> int:
    """A digest's first 64 bits as SQLite's integer: a short index, checked against the bytes."""
    return int.from_bytes(bytes.fromhex(digest.removeprefix("sha256:")[:16]), "big", signed=True)


def _phase(cursor: sqlite3.Cursor, task_id: str) -> str:
    found = cursor.execute("SELECT phase FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
    return str(found[0]) if found else ""


def _unless_applied(
    cursor: sqlite3.Cursor, query: str, values: tuple[object, ...], task_id: str, fence: int
) -> None:
    if cursor.execute(query, values).fetchone() is None:
        raise Refused(
            f"fence {fence} of task {task_id} is not the one that may do this", code="stale_fence"
        )


def _json(texts: tuple[str, ...]) -> str:
    return msgspec.json.encode(texts).decode()
