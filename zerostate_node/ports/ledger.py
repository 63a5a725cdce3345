"""
Durable truth of an owner (`Ledger`) and a node's own memory (`Journal`), as services see them.

Writes are values. A batch of them is one transaction group: each write succeeds or is refused on
its own (a savepoint), all that succeed are durable together when `commit` returns. That is the
group commit that the node's throughput rests on; nothing is acknowledged before it returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from zerostate_node.wire.messages import BlobRef, Outcome, TaskSpec

# -- rows ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task as the ledger keeps it. `phase`: open | leased | settled."""

    spec: TaskSpec
    actor: str  # who submitted it: "operator", later a user id
    phase: str
    attempt: int = 0
    fence: int = 0
    worker: str = ""  # holder of the current lease, or of the one that settled it
    lease_until_ms: int = 0
    not_before_ms: int = 0
    excluded: tuple[str, ...] = ()  # workers that failed it
    cancel_reason: str = ""
    outcome: Outcome | None = None
    detail: str = ""
    output: BlobRef | None = None
    fuel_used: int = 0
    price_ucr: int = 0
    updated_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One lease of a task and how it ended (`outcome` None: still running)."""

    task_id: str
    attempt: int
    fence: int
    worker: str
    leased_ms: int
    ended_ms: int = 0
    outcome: Outcome | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """One published version of an agent: its signed card and what queries need of it."""

    agent_id: str
    version: str
    sequence: int
    name: str
    publisher: str  # did:key
    status: str  # active | deprecated | revoked
    card: bytes  # signed JSON, as it travels
    published_ms: int


# -- writes ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenTask:
    """
    Create a task; with `key`, at most once per (actor, key).

    Result: the task id: the new one, or the one that this key opened before. Refused
    (code=idempotency_conflict) when the key was used with another `request_digest`.
    """

    row: TaskRow
    input_inline: bytes | None = None
    key: str = ""
    request_digest: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTask:
    """Record a lease. Refused(stale_fence) unless the task is unsettled and `fence` is greater."""

    task_id: str
    attempt: int
    fence: int
    worker: str
    until_ms: int
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReopenTask:
    """End the current attempt without settling: back to open. Refused(stale_fence) on mismatch."""

    task_id: str
    fence: int
    outcome: Outcome
    detail: str
    excluded: tuple[str, ...]
    not_before_ms: int
    now_ms: int
    receipt: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SettleTask:
    """
    The end of a task: outcome, receipt, output, in one transaction with the end of its attempt.

    Refused(stale_fence) unless the task is unsettled and `fence` is its current one.
    """

    task_id: str
    fence: int
    worker: str
    outcome: Outcome
    detail: str
    now_ms: int
    receipt: bytes = b""  # signed envelope; empty when no worker signed (cancelled, expired)
    output: BlobRef | None = None
    output_inline: bytes | None = None
    fuel_used: int = 0
    price_ucr: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """Note that a cancel was asked for, so that a restart still honours it."""

    task_id: str
    reason: str
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishAgent:
    """
    Store a version of an agent. Result: True when new, False when the same bytes were there.

    Refused: version_exists (other bytes under that version, unless it is a renewal of the same
    code), stale_sequence, revoked.
    """

    row: AgentRow
    renewal: bool = False


Write = OpenTask | LeaseTask | ReopenTask | SettleTask | CancelTask | PublishAgent
WriteResult = object  # per write: its documented result, or the Refused that it met


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of tasks, newest first; `cursor` continues, empty at the end."""

    rows: tuple[TaskRow, ...]
    cursor: str


class Ledger(Protocol):
    """Tasks, attempts, receipts, agents, idempotency keys: durable, one writer."""

    async def commit(self, writes: Sequence[Write]) -> list[WriteResult]:
        """
        Apply writes in order, durable when it returns; results match `writes` one to one.

        Raises:
            Unavailable: nothing of the group is certain; the caller may ask again (writes are
                idempotent under their keys and fences).
        """

    async def task(self, task_id: str) -> TaskRow | None:
        """One task."""

    async def tasks(
        self, *, actor: str | None = None, phase: str = "", limit: int = 50, cursor: str = ""
    ) -> Page:
        """Tasks, newest first."""

    async def live(self) -> list[TaskRow]:
        """Every task that is not settled, oldest first: what an owner resumes at start."""

    async def attempts(self, task_id: str) -> list[AttemptRow]:
        """The attempts of a task in order."""

    async def receipt(self, task_id: str) -> bytes | None:
        """The signed receipt that settled a task."""

    async def input_inline(self, task_id: str) -> bytes | None:
        """The input, where it is small enough to live in the row."""

    async def inline_blob(self, digest: str) -> bytes | None:
        """An input that lives in a task's row, by its digest: for peers that replay a receipt."""

    async def output_inline(self, task_id: str) -> bytes | None:
        """The output, where it is small enough to live in the row."""

    async def agents(self, *, publisher: str = "") -> list[AgentRow]:
        """Every stored version of every agent, newest sequence first."""

    async def counts(self) -> dict[str, int]:
        """Tasks by phase and outcome, for metrics: `{"open": 3, "completed": 120, ...}`."""

    async def check(self) -> None:
        """Prove that a commit works now; Unavailable with the cause when it does not."""


# -- Journal ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwedReceipt:
    """A receipt that its owner has not acknowledged yet."""

    task_id: str
    fence: int
    owner: str
    envelope: bytes
    output_inline: bytes | None
    finished_ms: int


class Journal(Protocol):
    """A node's own memory: what it still owes, whom it met, what it heard. Always local SQLite."""

    async def owe(self, receipts: Sequence[OwedReceipt]) -> None:
        """Store receipts before they are sent; durable when it returns."""

    async def paid(self, acks: Sequence[tuple[str, int, str, bytes]]) -> None:
        """Forget receipts that were answered: (task_id, fence, verdict, voucher)."""

    async def owed(self, owner: str = "") -> list[OwedReceipt]:
        """What is still owed, oldest first."""

    async def remember(self, kind: str, items: Sequence[tuple[str, bytes, int]]) -> None:
        """Keep heard things: (key, signed bytes, expires_ms) under `nodes` or `manifests`."""

    async def recall(self, kind: str, now_ms: int) -> list[tuple[str, bytes, int]]:
        """Heard things that have not expired."""

    async def forget(self, kind: str, keys: Sequence[str]) -> None:
        """Drop heard things."""
