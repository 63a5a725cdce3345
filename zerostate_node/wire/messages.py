"""
Every message that crosses between nodes, as frozen values.

The specs, JSON schemas and vectors are in `protocols/`; tests bind the two both ways. Unknown
fields are ignored, so that a newer node may say more. Lengths and ranges here are part of the
contract: a value that breaks one never reaches a service.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from zerostate_node.units import GIB, MIB
from zerostate_node.wire import ids

# -- field types -----------------------------------------------------------------------------
# `$(?!\n)`: Python's `$` also matches before a final newline, other regex engines' does not.
Text128 = Annotated[str, Meta(max_length=128)]
Text512 = Annotated[str, Meta(max_length=512)]
DigestText = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)", max_length=71)]
UlidText = Annotated[str, Meta(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$(?!\n)", max_length=26)]
PeerText = Annotated[str, Meta(min_length=46, max_length=64)]
AgentText = Annotated[str, Meta(min_length=10, max_length=160)]
NetworkText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$(?!\n)", max_length=32)]
AddrText = Annotated[str, Meta(max_length=256)]
TraceText = Annotated[str, Meta(max_length=64)]  # W3C traceparent
ServesText = Annotated[str, Meta(min_length=1, max_length=160)]  # an agent id, `cap:...`, or `*`
Tag = Annotated[str, Meta(min_length=1, max_length=64)]
Ms = Annotated[int, Meta(ge=0, le=1 << 53)]
Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Size = Annotated[int, Meta(ge=0, le=1 << 43)]
Credits = Annotated[int, Meta(ge=0, le=1 << 53)]
Fuel = Annotated[int, Meta(ge=0, le=1 << 53)]
FenceNumber = Annotated[int, Meta(ge=1, le=1 << 53)]
Inline = Annotated[bytes, Meta(max_length=ids.INLINE_BYTES_MAX)]

# Limits of one run; a card spells the same ones in camelCase
FuelMax = Annotated[int, Meta(ge=1, le=10**14)]
WallMsMax = Annotated[int, Meta(ge=1, le=3_600_000)]
MemoryBytesMax = Annotated[int, Meta(ge=64 * 1024, le=4 * GIB)]
TableElementsMax = Annotated[int, Meta(ge=0, le=1 << 20)]
StdinBytesMax = Annotated[int, Meta(ge=0, le=GIB)]
StdoutBytesMax = Annotated[int, Meta(ge=0, le=GIB)]
StderrBytesMax = Annotated[int, Meta(ge=0, le=16 * MIB)]


class Outcome(enum.Enum):
    """How a run, or a task, ended. A guest's failure is one of these, never an exception."""

    COMPLETED = "completed"
    TRAPPED = "trapped"
    OUT_OF_FUEL = "out_of_fuel"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    OUTPUT_TOO_LARGE = "output_too_large"
    REFUSED = "refused"
    UNFETCHABLE = "unfetchable"
    CANCELLED = "cancelled"
    LOST = "lost"


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all wire values."""


class BlobRef(_Message, frozen=True, kw_only=True):
    """Bytes by their content address."""

    digest: DigestText
    size_bytes: Size


class Limits(_Message, frozen=True, kw_only=True):
    """What one run may use. Part of what a receipt signs, since fuel and memory decide outcomes."""

    fuel_max: FuelMax = 20_000_000_000
    wall_ms_max: WallMsMax = 30_000
    memory_bytes_max: MemoryBytesMax = 128 * MIB
    table_elements_max: TableElementsMax = 1 << 16
    stdin_bytes_max: StdinBytesMax = 16 * MIB
    stdout_bytes_max: StdoutBytesMax = 16 * MIB
    stderr_bytes_max: StderrBytesMax = 256 * 1024


class Price(_Message, frozen=True, kw_only=True):
    """What a call costs: integer micro-credits, never a float."""

    per_call_ucr: Credits = 0
    per_mfuel_ucr: Credits = 0


class RetryPolicy(_Message, frozen=True, kw_only=True):
    """How often a task is tried, and on which failures of the guest beside those of a worker."""

    attempts_max: Annotated[int, Meta(ge=1, le=16)] = 3
    backoff_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0
    on_guest_failure: bool = False  # deterministic guests fail the same way everywhere


class TaskSpec(_Message, frozen=True, kw_only=True):
    """
    The immutable description of one task: what to run, on what, within what.

    `deadline_ms` is wall-clock time of the owner; workers use only the lease's relative time.
    """

    task_id: UlidText
    agent_id: AgentText
    agent_version: Text128
    module: BlobRef
    script: BlobRef | None = None
    args: Annotated[tuple[Text512, ...], Meta(max_length=32)] = ()
    input: BlobRef
    limits: Limits = Limits()
    price: Price = Price()
    budget_ucr: Credits = 0
    capability: Text128 = ""  # as asked for, when the agent was chosen by capability
    created_ms: Ms
    deadline_ms: Ms
    retry: RetryPolicy = RetryPolicy()
    trace: TraceText = ""


class Receipt(_Message, frozen=True, kw_only=True):
    """
    What a worker signs after a run: enough to check it and to run it again bit for bit.

    Signed as the payload of an envelope of type `receipt/1`; the envelope's sender is the worker.
    """

    task_id: UlidText
    attempt: Count
    fence: FenceNumber
    owner: PeerText
    agent_id: AgentText
    agent_version: Text128
    module: BlobRef
    script: BlobRef | None = None
    args: Annotated[tuple[Text512, ...], Meta(max_length=32)] = ()
    input: BlobRef
    limits: Limits
    outcome: Outcome
    exit_code: Annotated[int, Meta(ge=-1, le=0xFFFFFFFF)] = 0
    output: BlobRef
    fuel_used: Fuel
    memory_peak_bytes: Size
    wall_us: Ms
    started_ms: Ms
    finished_ms: Ms
    price_ucr: Credits
    detail: Text512 = ""
    engine: Text128


# -- gossip ----------------------------------------------------------------------------------
class NodeAdvert(_Message, frozen=True, kw_only=True):
    """What a node says of itself on `nodes`; payload of an envelope of type `node/1`."""

    addrs: Annotated[tuple[AddrText, ...], Meta(max_length=16)] = ()
    roles: Annotated[tuple[Tag, ...], Meta(max_length=8)] = ()
    region: Annotated[str, Meta(max_length=32)] = ""
    program: Text128 = ""  # "zerostate-node/0.1.0"
    owns: bool = False  # accepts tasks, so workers should dial it
    works: bool = False  # runs tasks
    relays: bool = False  # grants relay reservations
    slots: Count = 0
    leaving: bool = False


class OpenWork(_Message, frozen=True, kw_only=True):
    """One kind of open work: an agent, how much of it waits."""

    agent_id: AgentText
    count: Count


class Announcement(_Message, frozen=True, kw_only=True):
    """`I own open work of these kinds`: payload of an envelope of type `announcement/1`."""

    kinds: Annotated[tuple[OpenWork, ...], Meta(min_length=1, max_length=16)]
    addrs: Annotated[tuple[AddrText, ...], Meta(max_length=8)] = ()


# -- work stream: worker dials owner -----------------------------------------------------------
class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """First message each way. A network or version that differs is answered with `Bye`."""

    network: NetworkText
    program: Text128
    region: Annotated[str, Meta(max_length=32)] = ""
    slots: Count = 0
    addrs: Annotated[tuple[AddrText, ...], Meta(max_length=16)] = ()


class Claim(_Message, frozen=True, kw_only=True, tag="claim"):
    """
    Worker: I can take up to `credits` more leases, of these kinds.

    `credits` is absolute (it replaces what was claimed before), so a lost update heals itself.
    `serves`: agent ids, `cap:<capability>`, or `*`; empty means nothing.
    """

    credits: Annotated[int, Meta(ge=0, le=4096)]
    serves: Annotated[tuple[ServesText, ...], Meta(max_length=256)] = ("*",)
    load: Annotated[int, Meta(ge=0, le=100)] = 0  # per cent of slots busy
    seen: Count = 0  # leases received on this stream so far: leases in flight are not lost count of


class Lease(_Message, frozen=True, kw_only=True):
    """
    Owner: run this until `ttl_ms` from now. Travels inside a signed envelope (`lease/1`).

    Relative time, since clocks of strangers differ; the owner keeps the absolute one.
    """

    attempt: Count
    fence: FenceNumber
    ttl_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)]
    spec: TaskSpec
    input: Inline | None = None


class LeaseBatch(_Message, frozen=True, kw_only=True):
    """Up to 64 leases under one signature: payload of an envelope of type `lease/1`."""

    leases: Annotated[tuple[Lease, ...], Meta(min_length=1, max_length=64)]


class Leases(_Message, frozen=True, kw_only=True, tag="leases"):
    """Owner to worker: a signed batch of leases."""

    envelope: Annotated[bytes, Meta(max_length=ids.LEASE_BYTES_MAX)]


class Renew(_Message, frozen=True, kw_only=True, tag="renew"):
    """Worker: still running; progress in per cent where the guest says so (else -1)."""

    task_id: UlidText
    fence: FenceNumber
    progress: Annotated[int, Meta(ge=-1, le=100)] = -1


class Renewed(_Message, frozen=True, kw_only=True, tag="renewed"):
    """Owner: the lease now lasts `ttl_ms` from now; 0 means it is no longer yours: stop."""

    task_id: UlidText
    fence: FenceNumber
    ttl_ms: Annotated[int, Meta(ge=0, le=3_600_000)]


class Log(_Message, frozen=True, kw_only=True, tag="log"):
    """Worker: lines that the guest wrote to stderr, `seq` counts messages from 0."""

    task_id: UlidText
    fence: FenceNumber
    seq: Count
    text: Annotated[str, Meta(max_length=16 * 1024)]


class Done(_Message, frozen=True, kw_only=True, tag="done"):
    """Worker: the signed receipt (`receipt/1` envelope), the output inline when it is small."""

    receipt: Annotated[bytes, Meta(max_length=ids.RECEIPT_BYTES_MAX)]
    output: Inline | None = None


class Ack(_Message, frozen=True, kw_only=True, tag="ack"):
    """
    Owner: this receipt is settled (`settled`), or it will never be (`stale`, `rejected`).

    Sent after the commit. `voucher` is the cumulative payment proof; empty where nothing is owed.
    """

    task_id: UlidText
    fence: FenceNumber
    verdict: Annotated[str, Meta(pattern=r"^(settled|stale|rejected)$(?!\n)", max_length=16)]
    reason: Text512 = ""
    voucher: Annotated[bytes, Meta(max_length=ids.VOUCHER_BYTES_MAX)] = b""


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    """Owner: stop this run; answer with a receipt whose outcome is `cancelled`."""

    task_id: UlidText
    fence: FenceNumber
    reason: Text512 = ""


class Release(_Message, frozen=True, kw_only=True, tag="release"):
    """Worker: this lease did not start and never will here; not a failure of anyone."""

    task_id: UlidText
    fence: FenceNumber


class Bye(_Message, frozen=True, kw_only=True, tag="bye"):
    """Either side: no more from me on this stream. What runs goes on; receipts come later."""

    code: Tag  # wrong_network, draining, banned, too_many, malformed, idle
    reason: Text512 = ""
    retry_after_ms: Ms = 0


WorkMessage = Hello | Claim | Leases | Renew | Renewed | Log | Done | Ack | Cancel | Release | Bye
WorkFrame = Annotated[tuple[WorkMessage, ...], Meta(min_length=1, max_length=256)]


# -- blob stream -------------------------------------------------------------------------------
class BlobGet(_Message, frozen=True, kw_only=True, tag="get"):
    """Bytes `[offset, offset + length)` of a blob; length 0 = to the end."""

    digest: DigestText
    offset: Size = 0
    length: Size = 0


class BlobHead(_Message, frozen=True, kw_only=True, tag="head"):
    """First answer: how long the whole blob is."""

    size_bytes: Size


class BlobRefused(_Message, frozen=True, kw_only=True, tag="refused"):
    """No: `not_found`, `too_large` (for a limited relay circuit), `busy`, `not_allowed`."""

    code: Tag
    reason: Text512 = ""


class BlobChunk(_Message, frozen=True, kw_only=True, tag="chunk"):
    """The next bytes, in order; the requester checks the digest of the whole."""

    offset: Size
    data: Annotated[bytes, Meta(max_length=ids.BLOB_CHUNK_BYTES_MAX)]


BlobMessage = BlobGet | BlobHead | BlobRefused | BlobChunk


# -- sync ----------------------------------------------------------------------------------------
BucketSums = Annotated[tuple[Annotated[bytes, Meta(max_length=8)], ...], Meta(max_length=256)]


class SyncHello(_Message, frozen=True, kw_only=True, tag="hello"):
    """First message each way: who I am on which network, and a summary of what I know."""

    network: NetworkText
    program: Text128
    advert: Annotated[bytes, Meta(max_length=ids.NODE_ADVERT_BYTES_MAX)] = b""
    manifests: Annotated[
        tuple[Annotated[bytes, Meta(max_length=8)], ...], Meta(max_length=256)
    ] = ()
    nodes: Annotated[tuple[Annotated[bytes, Meta(max_length=8)], ...], Meta(max_length=256)] = ()


class SyncWant(_Message, frozen=True, kw_only=True, tag="want"):
    """Send me what is in these buckets; `have` lists the item keys I hold there already."""

    kind: Annotated[str, Meta(pattern=r"^(manifests|nodes)$(?!\n)", max_length=16)]
    buckets: Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(max_length=256)]
    have: Annotated[tuple[Annotated[bytes, Meta(max_length=8)], ...], Meta(max_length=16_384)] = ()


class SyncItems(_Message, frozen=True, kw_only=True, tag="items"):
    """Signed items as their authors signed them; `more` says that another message follows."""

    kind: Annotated[str, Meta(pattern=r"^(manifests|nodes)$(?!\n)", max_length=16)]
    items: Annotated[
        tuple[Annotated[bytes, Meta(max_length=ids.MANIFEST_BYTES_MAX)], ...], Meta(max_length=256)
    ]
    more: bool = False


SyncMessage = SyncHello | SyncWant | SyncItems | Bye
