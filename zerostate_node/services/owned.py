"""
What an owner holds of its tasks, and how a decision becomes a row in the ledger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from zerostate_node.machines import task as machine
from zerostate_node.machines.admission import price_of
from zerostate_node.ports.ledger import (
    CancelTask,
    LeaseTask,
    ReopenTask,
    SettleTask,
    TaskRow,
    Write,
)
from zerostate_node.wire.messages import BlobRef, Outcome, TaskSpec


@dataclasses.dataclass(frozen=True, slots=True)
class DriverSettings:
    """What an operator may set about owning tasks."""

    lease_ttl_ms: int = 15_000
    unstarted_ms_max: int = 240_000  # queueing, fetching and compiling, before a guest's own time
    tasks_open_max: int = 100_000
    region: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPayload:
    """What a receipt brings beside the fact: stored when it settles the task."""

    envelope: bytes
    output: BlobRef
    output_inline: bytes | None
    fuel_used: int
    price_ucr: int


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseOut:
    """A lease to be signed and sent: everything that the worker needs."""

    spec: TaskSpec
    input_inline: bytes | None
    attempt: int
    fence: int
    ttl_ms: int


class Outlet(Protocol):
    """Where effects for one worker go: its work stream. Never blocks; drops itself when slow."""

    def lease(self, leases: Sequence[LeaseOut]) -> None:
        """Send leases."""

    def renewed(self, task_id: str, fence: int, ttl_ms: int) -> None:
        """Answer a renewal."""

    def ack(self, task_id: str, fence: int, verdict: str, reason: str) -> None:
        """Answer a receipt."""

    def cancel(self, task_id: str, fence: int, reason: str) -> None:
        """Ask for a stop."""


@dataclasses.dataclass(slots=True)
class Entry:
    """A task that is not settled, as this owner holds it."""

    spec: TaskSpec
    actor: str
    state: machine.State
    input_inline: bytes | None = None
    progress: int = -1
    log_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A task moved; `ended` is how an attempt ended, where this step opens the task again."""

    task_id: str
    entry: Entry
    before: machine.State
    after: machine.State
    ended: Outcome | None


def settled_state(row: TaskRow) -> machine.Settled | None:
    """The state of a task that its ledger row says is over."""
    if row.outcome is None:
        return None
    return machine.Settled(row.outcome, row.attempt, row.fence, row.worker, row.detail)


def write_of(
    task_id: str,
    entry: Entry,
    effect: machine.Effect,
    payload: ReceiptPayload | None,
    now_ms: int,
) -> Write | None:
    """The ledger write behind a `Record…` effect; None for the others."""
    match effect:
        case machine.RecordLease(attempt, fence, worker, until_ms):
            return LeaseTask(
                task_id=task_id,
                attempt=attempt,
                fence=fence,
                worker=worker,
                until_ms=until_ms,
                now_ms=now_ms,
            )
        case machine.RecordReopen(fence, outcome, detail, excluded, not_before_ms):
            return ReopenTask(
                task_id=task_id,
                fence=fence,
                outcome=outcome,
                detail=detail,
                excluded=excluded,
                not_before_ms=not_before_ms,
                now_ms=now_ms,
                receipt=payload.envelope if payload else b"",
            )
        case machine.RecordSettle(fence, worker, outcome, detail, by_receipt):
            took = payload if by_receipt and payload else None
            price = entry.spec.price
            return SettleTask(
                task_id=task_id,
                fence=fence,
                worker=worker,
                outcome=outcome,
                detail=detail,
                now_ms=now_ms,
                receipt=took.envelope if took else b"",
                output=took.output if took else None,
                output_inline=took.output_inline if took else None,
                fuel_used=took.fuel_used if took else 0,
                price_ucr=price_of(
                    per_call_ucr=price.per_call_ucr,
                    per_mfuel_ucr=price.per_mfuel_ucr,
                    fuel_used=took.fuel_used if took else 0,
                    budget_ucr=entry.spec.budget_ucr,
                    completed=outcome is Outcome.COMPLETED,
                ),
            )
        case machine.RecordCancel(reason):
            return CancelTask(task_id=task_id, reason=reason, now_ms=now_ms)
        case _:
            return None


def row_of(spec: TaskSpec, actor: str, now_ms: int) -> TaskRow:
    """The ledger row of a task that was just submitted."""
    return TaskRow(spec=spec, actor=actor, phase="open", updated_ms=now_ms)
