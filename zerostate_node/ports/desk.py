"""
All that a client (browser, CLI, program) may ask of the node, and the views it gets back.

Views are JSON-ready: ids and digests as text, times in ms since 1970, bytes never inline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from zerostate_node.wire.messages import Limits, Price, RetryPolicy


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of views."""


class Submit(_View, frozen=True, kw_only=True):
    """
    A task to open. Exactly one of `agent` (id, name, or id@version) and `capability`.

    The input is `input_digest` (already a blob here) or what the caller passes beside this.
    """

    agent: str = ""
    version: str = ""
    capability: str = ""
    input_digest: str = ""
    args: tuple[str, ...] = ()
    limits: dict[str, int] = {}  # overrides, cut by the manifest's and the node's limits
    budget_ucr: int | None = None
    timeout_ms: int | None = None  # wall clock of one run
    deadline_ms: int | None = None  # from now, for the whole task
    retry: RetryPolicy | None = None


class Submitted(_View, frozen=True, kw_only=True):
    """What a client has after 202: it is durable, and this is where to look."""

    task_id: str
    created: bool  # False: this idempotency key opened it before
    agent_id: str
    agent_version: str


class AttemptView(_View, frozen=True, kw_only=True):
    """One lease of a task."""

    attempt: int
    fence: int
    worker: str
    leased_ms: int
    ended_ms: int | None
    outcome: str | None
    detail: str


class TaskView(_View, frozen=True, kw_only=True):
    """A task as a person sees it."""

    task_id: str
    phase: str  # open | leased | settled
    outcome: str | None
    detail: str
    agent_id: str
    agent_version: str
    agent_name: str
    capability: str
    owner: str
    worker: str
    attempt: int
    fence: int
    module_digest: str
    input_digest: str
    input_bytes: int
    output_digest: str | None
    output_bytes: int | None
    fuel_used: int
    price_ucr: int
    budget_ucr: int
    created_ms: int
    updated_ms: int
    deadline_ms: int
    progress: int  # per cent, -1 unknown
    waiting_for: str  # why it is not running, in words; "" otherwise
    trace: str
    attempts: tuple[AttemptView, ...] = ()


class TaskPage(_View, frozen=True, kw_only=True):
    """One page of tasks, newest first."""

    tasks: tuple[TaskView, ...]
    cursor: str


class AgentView(_View, frozen=True, kw_only=True):
    """An agent as the catalogue shows it."""

    agent_id: str
    name: str
    version: str
    description: str
    publisher: str
    status: str
    capabilities: tuple[str, ...]
    module_digest: str
    module_bytes: int
    script_digest: str | None
    limits: Limits
    price: Price
    sequence: int
    expires_ms: int
    local: bool  # published here
    versions: tuple[str, ...]


class PeerView(_View, frozen=True, kw_only=True):
    """A peer: what it says, and how it behaved."""

    peer: str
    did: str
    connected: bool
    via: str
    addrs: tuple[str, ...]
    roles: tuple[str, ...]
    region: str
    program: str
    owns: bool
    works: bool
    relays: bool
    slots: int
    score: int
    heard_ms: int
    work_stream: str  # "", "as owner", "as worker", "both"
    running: int  # leases it holds of ours


class Check(_View, frozen=True, kw_only=True):
    """One line of `doctor` or `/ready`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class Event(_View, frozen=True, kw_only=True):
    """
    What a watcher hears: `seq` grows by one; `kind` is `snapshot`, then deltas.

    Kinds: task.open, task.leased, task.progress, task.log, task.retry, task.settled,
    agent.published, agent.revoked, peer.connected, peer.gone.
    """

    seq: int
    at_ms: int
    kind: str
    task_id: str = ""
    body: dict[str, Any] = {}


class Download(_View, frozen=True, kw_only=True):
    """Bytes to stream to a client: inline or a verified local file."""

    digest: str
    size_bytes: int
    inline: bytes | None = None
    path: str = ""


class Desk(Protocol):
    """The node, as a client may use it. `actor` is who asks, already authenticated."""

    async def submit(
        self,
        request: Submit,
        *,
        actor: str,
        input: bytes | Path | None = None,
        key: str = "",
        trace: str = "",
    ) -> Submitted:
        """
        Open a task; durable when it returns.

        Raises: NotFound (no such agent, unknown digest), Refused (input_too_large, limits,
        idempotency_conflict, revoked, bad_request), Unavailable (ledger away, too many open).
        """

    async def task(self, task_id: str, *, actor: str) -> TaskView:
        """One task with its attempts. NotFound."""

    async def tasks(
        self, *, actor: str, phase: str = "", limit: int = 50, cursor: str = ""
    ) -> TaskPage:
        """Tasks, newest first."""

    async def result(self, task_id: str, *, actor: str) -> Download:
        """The output. NotFound; Refused(not_finished | no_output)."""

    async def receipt(self, task_id: str, *, actor: str) -> bytes:
        """The signed receipt, as it travels. NotFound; Refused(not_finished | no_receipt)."""

    async def cancel(self, task_id: str, *, actor: str, reason: str) -> TaskView:
        """Ask for the end of a task; Refused(already_settled)."""

    def watch(self, *, actor: str, task_id: str = "", after: int = -1) -> AsyncIterator[Event]:
        """A snapshot, then deltas, from `after` where the node still has them."""

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Store input or a module; `{"digest", "size_bytes"}`. Refused(too_large)."""

    async def blob(self, digest: str) -> Download:
        """The bytes of a blob that is here, checked against `digest`. NotFound."""

    async def publish(self, draft: dict[str, Any], *, module: str, script: str = "") -> AgentView:
        """
        Validate, sign as this node, store and gossip an agent.

        Args:
            draft: name, version, description, skills, limits, price, args (protocols/manifest/1).
            module: digest of a blob that is here.

        Raises: Refused with the validator's or the manifest's code; NotFound (module).
        """

    async def agents(self, *, query: str = "", capability: str = "") -> list[AgentView]:
        """The newest version of each agent known, alive ones first."""

    async def agent(self, ref: str) -> tuple[AgentView, bytes]:
        """
        An agent by id, unique name or id@version, with its signed card.

        Raises: NotFound; Refused(ambiguous).
        """

    async def revoke(self, ref: str, *, reason: str) -> AgentView:
        """Final: no node runs it again. Refused(not_yours)."""

    async def verify(self, receipt: bytes) -> dict[str, Any]:
        """
        Check a receipt's signature alone; nothing is run.

        `{"signature": bool, "worker": peer id, "receipt": {...}}`. WireError (not a receipt).
        """

    async def replay(self, receipt: bytes) -> dict[str, Any]:
        """
        Verify a receipt's signature, then run the same work here and compare.

        `{"signature": bool, "output_matches": bool, "fuel_matches": bool, "outcome_matches": bool,
        "expected": {...}, "got": {...}}`. NotFound (module or input cannot be fetched).
        """

    def peers(self) -> list[PeerView]:
        """Peers known, connected first."""

    async def doctor(self) -> list[Check]:
        """Reachability, relays, clock, disk, ledger, sandbox, and why there is no work."""

    async def ready(self) -> list[Check]:
        """Named causes; all ok means ready."""

    def info(self) -> dict[str, Any]:
        """Who this node is: peer, did, network, roles, region, version, addrs, data_dir, uptime."""
