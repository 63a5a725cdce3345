"""What the wire contracts are made of: one entry per schema file and per kind of vector."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from zerostate_node.wire import ids
from zerostate_node.wire.cardshape import AgentCard, WasmAgent
from zerostate_node.wire.envelope import Body
from zerostate_node.wire.messages import (
    Ack,
    Announcement,
    BlobChunk,
    BlobGet,
    BlobHead,
    BlobMessage,
    BlobRefused,
    Bye,
    Cancel,
    Claim,
    Done,
    Hello,
    Lease,
    LeaseBatch,
    Leases,
    Log,
    NodeAdvert,
    Receipt,
    Release,
    Renew,
    Renewed,
    SyncHello,
    SyncItems,
    SyncMessage,
    SyncWant,
    TaskSpec,
    WorkFrame,
)

ROOT = Path(__file__).resolve().parents[2]
PROTOCOLS = ROOT / "protocols"


@dataclasses.dataclass(frozen=True)
class Contract:
    """One folder under `protocols/`, and what lives in it."""

    folder: str
    schemas: dict[str, Any]  # file name -> type
    messages: tuple[type, ...]  # each has a valid and an invalid vector
    limits: tuple[str, ...] = ()  # names of constants in wire.ids that its README states


CONTRACTS = (
    Contract("envelope/1", {"body": Body}, (Body,), ("ENVELOPE_BYTES_MAX",)),
    Contract(
        "manifest/1",
        {"card": AgentCard, "wasm-agent": WasmAgent},
        (AgentCard, WasmAgent),
        ("MANIFEST_BYTES_MAX",),
    ),
    Contract("node/1", {"node": NodeAdvert}, (NodeAdvert,), ("NODE_ADVERT_BYTES_MAX",)),
    Contract(
        "announcement/1",
        {"announcement": Announcement},
        (Announcement,),
        ("ANNOUNCEMENT_BYTES_MAX",),
    ),
    Contract(
        "work/1",
        {"frame": WorkFrame, "lease-batch": LeaseBatch},
        (
            Hello,
            Claim,
            Leases,
            Renew,
            Renewed,
            Log,
            Done,
            Ack,
            Cancel,
            Release,
            Bye,
            LeaseBatch,
            Lease,
            TaskSpec,
        ),
        ("WORK_FRAME_BYTES_MAX", "LEASE_BYTES_MAX", "RECEIPT_BYTES_MAX", "INLINE_BYTES_MAX"),
    ),
    Contract("receipt/1", {"receipt": Receipt}, (Receipt,), ("RECEIPT_BYTES_MAX",)),
    Contract(
        "blob/1",
        {"frame": BlobMessage},
        (BlobGet, BlobHead, BlobRefused, BlobChunk),
        ("BLOB_FRAME_BYTES_MAX", "BLOB_CHUNK_BYTES_MAX"),
    ),
    Contract(
        "sync/1",
        {"frame": SyncMessage},
        (SyncHello, SyncWant, SyncItems),
        ("SYNC_FRAME_BYTES_MAX", "MANIFEST_BYTES_MAX"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Carrier:
    """How a vector of one `type` is read: bare msgpack, or the payload of an envelope."""

    kind: Any
    bytes_max: int
    envelope: bool


CARRIERS = {
    "work/1 frame": Carrier(WorkFrame, ids.WORK_FRAME_BYTES_MAX, envelope=False),
    "blob/1 frame": Carrier(BlobMessage, ids.BLOB_FRAME_BYTES_MAX, envelope=False),
    "sync/1 frame": Carrier(SyncMessage, ids.SYNC_FRAME_BYTES_MAX, envelope=False),
    ids.NODE: Carrier(NodeAdvert, ids.NODE_ADVERT_BYTES_MAX, envelope=True),
    ids.ANNOUNCEMENT: Carrier(Announcement, ids.ANNOUNCEMENT_BYTES_MAX, envelope=True),
    ids.LEASE: Carrier(LeaseBatch, ids.LEASE_BYTES_MAX, envelope=True),
    ids.RECEIPT: Carrier(Receipt, ids.RECEIPT_BYTES_MAX, envelope=True),
}
