"""
What clients send and get as JSON: the schema of the API, and its validation.

Fields that are not known are refused by name, so that a typing error is not taken for consent.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from zerostate_node.gateway.problems import bad_request
from zerostate_node.ports.desk import AgentView, Check, PeerView, Submit
from zerostate_node.units import GIB, MIB
from zerostate_node.wire.messages import RetryPolicy

Ref = Annotated[str, Meta(max_length=300)]
Short = Annotated[str, Meta(max_length=128)]
Long = Annotated[str, Meta(max_length=512)]
DigestText = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what comes in."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what goes out."""


# -- in --------------------------------------------------------------------------------------------
class TaskInput(_Strict, frozen=True, kw_only=True):
    """The input of a task: exactly one of text, base64 and the digest of a stored blob."""

    text: str | None = None
    base64: str | None = None
    digest: DigestText | None = None


class TaskLimits(_Strict, frozen=True, kw_only=True):
    """Limits of one run, lower than the agent's own; the node cuts what is higher."""

    fuel_max: Annotated[int, Meta(ge=1, le=10**14)] | None = None
    wall_ms_max: Annotated[int, Meta(ge=1, le=3_600_000)] | None = None
    memory_bytes_max: Annotated[int, Meta(ge=64 * 1024, le=4 * GIB)] | None = None
    table_elements_max: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    stdin_bytes_max: Annotated[int, Meta(ge=0, le=GIB)] | None = None
    stdout_bytes_max: Annotated[int, Meta(ge=0, le=GIB)] | None = None
    stderr_bytes_max: Annotated[int, Meta(ge=0, le=16 * MIB)] | None = None


class TaskRetry(_Strict, frozen=True, kw_only=True):
    """How often a task is tried, and on which failures."""

    attempts_max: Annotated[int, Meta(ge=1, le=16)] = 3
    backoff_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0
    on_guest_failure: bool = False


class NewTask(_Strict, frozen=True, kw_only=True):
    """A task to run: exactly one of `agent` (id, name, or either@version) and `capability`."""

    agent: Ref = ""
    capability: Short = ""
    version: Short = ""
    input: TaskInput | None = None
    args: Annotated[tuple[Long, ...], Meta(max_length=32)] = ()
    limits: TaskLimits | None = None
    budget_ucr: Count | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=30 * 86_400_000)] | None = None
    retry: TaskRetry | None = None

    def input_bytes(self) -> bytes | None:
        """The inline input, None when there is none or it is a stored blob."""
        if self.input is None:
            return None
        given = self.input
        if sum(part is not None for part in (given.text, given.base64, given.digest)) != 1:
            raise bad_request("input takes exactly one of text, base64 and digest")
        if given.text is not None:
            return given.text.encode()
        if given.base64 is None:
            return None
        try:
            return base64.b64decode(given.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_request(f"input.base64 is not base64: {error}") from None

    def submit(self) -> Submit:
        """The same, as the desk takes it."""
        if bool(self.agent) == bool(self.capability):
            raise bad_request(
                "a task takes exactly one of agent and capability",
                hint='for example {"agent": "word-count", "input": {"text": "to be or not"}}',
            )
        limits = msgspec.structs.asdict(self.limits) if self.limits else {}
        return Submit(
            agent=self.agent,
            capability=self.capability,
            version=self.version,
            input_digest=(self.input.digest or "") if self.input else "",
            args=self.args,
            limits={name: value for name, value in limits.items() if value is not None},
            budget_ucr=self.budget_ucr,
            timeout_ms=self.timeout_ms,
            deadline_ms=self.deadline_ms,
            retry=RetryPolicy(**msgspec.structs.asdict(self.retry)) if self.retry else None,
        )


class NewAgent(_Strict, frozen=True, kw_only=True):
    """An agent to publish; `module` and `script` are blobs that are already here."""

    draft: dict[str, Any]
    module: DigestText
    script: Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""


class Reason(_Strict, frozen=True, kw_only=True):
    """Why, in words that others may read."""

    reason: Long = ""


class NoQuery(_Strict, frozen=True, kw_only=True):
    """No query parameters."""


class AgentsQuery(_Strict, frozen=True, kw_only=True):
    """Which agents: words in name or description, and an exact capability."""

    q: Short = ""
    capability: Short = ""


class TasksQuery(_Strict, frozen=True, kw_only=True):
    """Which tasks; `cursor` comes from the page before."""

    phase: Literal["", "open", "leased", "settled"] = ""
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(max_length=256)] = ""


class VerifyQuery(_Strict, frozen=True, kw_only=True):
    """`replay=1` also runs the same work here and compares."""

    replay: Literal["0", "1"] = "0"


class EventsQuery(_Strict, frozen=True, kw_only=True):
    """Of one task or of all, and after which number; Last-Event-ID wins over `after`."""

    task_id: Annotated[str, Meta(max_length=26)] = ""
    after: Annotated[int, Meta(ge=-1, le=1 << 53)] = -1


# -- out -------------------------------------------------------------------------------------------
class Health(_Answer, frozen=True, kw_only=True):
    """The loop turns."""

    status: Literal["ok"]
    peer: str
    version: str


class Ready(_Answer, frozen=True, kw_only=True):
    """Whether the node can take work, and why not."""

    ready: bool
    checks: tuple[Check, ...]


class Checks(_Answer, frozen=True, kw_only=True):
    """What `doctor` found."""

    checks: tuple[Check, ...]


class Peers(_Answer, frozen=True, kw_only=True):
    """Peers known, connected first."""

    peers: tuple[PeerView, ...]


class Agents(_Answer, frozen=True, kw_only=True):
    """Agents known, alive ones first."""

    agents: tuple[AgentView, ...]


class AgentAndCard(_Answer, frozen=True, kw_only=True):
    """An agent, and its card as its publisher signed it."""

    agent: AgentView
    card: msgspec.Raw


class Stored(_Answer, frozen=True, kw_only=True):
    """A blob that is now here."""

    digest: str
    size_bytes: int
