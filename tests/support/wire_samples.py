"""
Fixed keys and one good value of every message. Nothing here is random.

A test key is `Ed25519(seed = sha256("zerostate test key " + name))`; protocols/README.md says so.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.units import Did, PeerId
from zerostate_node.wire import cards, envelope, ids
from zerostate_node.wire.messages import (
    Ack,
    Announcement,
    BlobChunk,
    BlobGet,
    BlobHead,
    BlobRef,
    BlobRefused,
    Bye,
    Cancel,
    Claim,
    Done,
    Hello,
    Lease,
    LeaseBatch,
    Leases,
    Limits,
    Log,
    NodeAdvert,
    OpenWork,
    Outcome,
    Price,
    Receipt,
    Release,
    Renew,
    Renewed,
    SyncHello,
    SyncItems,
    SyncWant,
    TaskSpec,
)

NOW_MS = 1_760_000_000_000
TTL_MS = 600_000
NETWORK = "test"
ULID = "01K73ZBZ00ABCDEFGHJKMNPQRS"
ULID_2 = "01K73ZBZ00ABCDEFGHJKMNPQRT"
INPUT = b'{"text":"two words"}'
OUTPUT = b'{"words":2}'
MODULE = BlobRef(digest=ids.digest_of(b"a module"), size_bytes=8)
SCRIPT = BlobRef(digest=ids.digest_of(b"a script"), size_bytes=8)


def key_of(name: str) -> Ed25519PrivateKey:
    """The test key called `name`."""
    seed = hashlib.sha256(b"zerostate test key " + name.encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(seed)


def peer_of(name: str) -> PeerId:
    """The peer id of a test key."""
    return ids.peer_id_of(key_of(name).public_key().public_bytes_raw())


def did_of(name: str) -> Did:
    """The DID of a test key."""
    return ids.did_of(peer_of(name))


OWNER, WORKER = peer_of("owner"), peer_of("worker")
AGENT_ID = ids.agent_id_of(did_of("author"), "word-count")
SPEC = TaskSpec(
    task_id=ULID,
    agent_id=AGENT_ID,
    agent_version="1.0.0",
    module=MODULE,
    args=("--json",),
    input=BlobRef(digest=ids.digest_of(INPUT), size_bytes=len(INPUT)),
    limits=Limits(fuel_max=1_000_000_000),
    price=Price(per_call_ucr=100, per_mfuel_ucr=3),
    budget_ucr=5_000,
    capability="text/count",
    created_ms=NOW_MS,
    deadline_ms=NOW_MS + 60_000,
    trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
LEASE = Lease(attempt=1, fence=1, ttl_ms=30_000, spec=SPEC, input=INPUT)
RECEIPT = Receipt(
    task_id=ULID,
    attempt=1,
    fence=1,
    owner=OWNER,
    agent_id=AGENT_ID,
    agent_version="1.0.0",
    module=MODULE,
    args=("--json",),
    input=SPEC.input,
    limits=SPEC.limits,
    outcome=Outcome.COMPLETED,
    output=BlobRef(digest=ids.digest_of(OUTPUT), size_bytes=len(OUTPUT)),
    fuel_used=1_234_567,
    memory_peak_bytes=1_114_112,
    wall_us=2_345,
    started_ms=NOW_MS + 10,
    finished_ms=NOW_MS + 12,
    price_ucr=103,
    engine="wasmtime/50.0.1",
)


def seal(value: Any, type: str, by: str, **changed: Any) -> bytes:
    """An envelope by a test key, every field of which may be changed."""
    fields: dict[str, Any] = {
        "type": type,
        "network": NETWORK,
        "key": key_of(by),
        "sender": peer_of(by),
        "id": ULID,
        "now_ms": NOW_MS,
        "ttl_ms": TTL_MS,
    }
    return envelope.seal(value, **(fields | changed))


BATCH = LeaseBatch(leases=(LEASE,))
SEALED_BATCH = seal(BATCH, ids.LEASE, "owner")
SEALED_RECEIPT = seal(RECEIPT, ids.RECEIPT, "worker")

ADVERT = NodeAdvert(
    addrs=("/ip4/192.0.2.1/tcp/4001",),
    roles=("edge", "gateway"),
    region="eu",
    program="zerostate-node/0.1.0",
    owns=True,
    works=True,
    slots=4,
)
ANNOUNCEMENT = Announcement(
    kinds=(OpenWork(agent_id=AGENT_ID, count=12),), addrs=("/ip4/192.0.2.1/tcp/4001",)
)

WORK_MESSAGES = (
    Hello(
        network=NETWORK,
        program="zerostate-node/0.1.0",
        region="eu",
        slots=4,
        addrs=("/ip4/192.0.2.1/tcp/4001",),
    ),
    Claim(credits=8, serves=(AGENT_ID, "cap:text/count"), load=25, seen=3),
    Leases(envelope=SEALED_BATCH),
    Renew(task_id=ULID, fence=1, progress=40),
    Renewed(task_id=ULID, fence=1, ttl_ms=30_000),
    Log(task_id=ULID, fence=1, seq=0, text="counted two wörds\n"),
    Done(receipt=SEALED_RECEIPT, output=OUTPUT),
    Ack(task_id=ULID, fence=1, verdict="settled"),
    Cancel(task_id=ULID, fence=1, reason="the client asked"),
    Release(task_id=ULID, fence=1),
    Bye(code="draining", reason="shutting down", retry_after_ms=5_000),
)
BLOB_MESSAGES = (
    BlobGet(digest=MODULE.digest, offset=4, length=4),
    BlobHead(size_bytes=8),
    BlobRefused(code="not_found", reason="not here"),
    BlobChunk(offset=4, data=b"dule"),
)
SEALED_ADVERT = seal(ADVERT, ids.NODE, "owner")

DRAFT = {
    "name": "word-count",
    "version": "1.0.0",
    "description": "Counts the wörds of a text.",
    "skills": [
        {
            "id": "text/count",
            "name": "Count words",
            "description": "Counts the words of a text.",
            "tags": ["Text", "word count"],
            "examples": ["How many words has this?"],
        }
    ],
    "args": ["--json"],
    "limits": {"fuel_max": 1_000_000_000},
    "price": {"per_call": 100, "per_million_fuel": 3},
    "input_schema": {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 65536}},
        "required": ["text"],
    },
    "sources": ["https://example.com/word-count.wasm"],
}


def card_of(**changed: Any) -> dict[str, Any]:
    """The sample card, unsigned; keyword arguments go to `draft_card`."""
    fields: dict[str, Any] = {
        "module": MODULE,
        "script": None,
        "publisher": did_of("author"),
        "sequence": 1,
        "now_ms": NOW_MS,
        "ttl_ms": 86_400_000,
    }
    draft = changed.pop("draft", DRAFT)
    return cards.draft_card(draft, **(fields | changed))


CARD = cards.sign_card(card_of(), key_of("author"))
SYNC_MESSAGES = (
    SyncHello(
        network=NETWORK,
        program="zerostate-node/0.1.0",
        advert=SEALED_ADVERT,
        manifests=(bytes(8), bytes(range(8))),
        nodes=(b"\xff" * 8,),
    ),
    SyncWant(kind="manifests", buckets=(0, 255), have=(bytes(range(8)),)),
    SyncItems(kind="manifests", items=(CARD,), more=False),
    Bye(code="wrong_network", reason="this node is on main"),
)
