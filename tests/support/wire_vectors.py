"""
Writes `protocols/*/*/vectors/{valid,invalid}/*.json`: `python wire_vectors.py --write`.

Deterministic: fixed keys, fixed times. A vector that is checked in and differs is a change of what
was promised, which is why a test compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import wire_samples as good
from wire_catalogue import CARRIERS, PROTOCOLS
from wire_vectors_cards import card_vectors
from wire_vectors_envelope import envelope_vectors

from zerostate_node.wire import codec, ids

Vector = dict[str, Any]


def frame(
    folder: str, message: str, name: str, why: str, wire: Any, *, error: str = "", raw: bytes = b""
) -> tuple[str, Vector]:
    """A vector of bare msgpack; `wire` is a struct, or for an invalid one plain values."""
    vector: Vector = {"name": name, "why": why, "type": f"{folder} frame", "message": message}
    data = raw or (codec.encode(wire) if not error else msgpack.packb(wire))
    vector["hex"] = data.hex()
    if error:
        vector["error"] = error
    else:
        vector["value"] = msgspec.to_builtins(wire)
    return folder, vector


def bent(value: msgspec.Struct, **changed: Any) -> dict[str, Any]:
    """A message as plain values with some fields changed; None takes one out."""
    plain: dict[str, Any] = msgpack.unpackb(codec.encode(value))
    plain |= changed
    return {key: member for key, member in plain.items() if member is not None}


# One broken promise per message: (message, name, why, changed fields)
BENT_WORK: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("Hello", "hello-network-newline", "a name has one spelling", {"network": "test\n"}),
    ("Claim", "claim-credits-bool", "a bool is not a number", {"credits": True}),
    ("Claim", "claim-credits-too-many", "at most 4,096", {"credits": 4_097}),
    ("Claim", "claim-load-float", "a float is not an integer", {"load": 25.0}),
    ("Leases", "leases-text", "bytes are msgpack bin, not text", {"envelope": "text"}),
    ("Renew", "renew-fence-zero", "fences start at 1", {"fence": 0}),
    ("Renewed", "renewed-ttl-missing", "a required field", {"ttl_ms": None}),
    ("Log", "log-text-bytes", "text is msgpack str, not bin", {"text": b"line"}),
    ("Done", "done-output-too-long", "inline output is limited", {"output": bytes(32_769)}),
    ("Ack", "ack-verdict", "settled, stale or rejected", {"verdict": "paid"}),
    (
        "Cancel",
        "cancel-task-id",
        "a ULID has no letter U",
        {"task_id": "01K73ZBZ00ABCDEFGHJKMNPQRU"},
    ),
    ("Release", "release-fence-negative", "fences start at 1", {"fence": -1}),
    ("Bye", "bye-code-empty", "the code is for programs", {"code": ""}),
)
BENT_BLOB: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "BlobGet",
        "get-digest-upper-case",
        "a digest has one spelling",
        {"digest": "sha256:" + "AB" * 32},
    ),
    ("BlobHead", "head-size-negative", "sizes are not negative", {"size_bytes": -1}),
    ("BlobRefused", "refused-code-missing", "a required field", {"code": None}),
    ("BlobChunk", "chunk-data-text", "bytes are msgpack bin, not text", {"data": "dule"}),
)
BENT_SYNC: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("SyncHello", "hello-sum-too-long", "a sum has at most 8 bytes", {"nodes": [bytes(9)]}),
    ("SyncWant", "want-bucket-256", "buckets are 0 to 255", {"buckets": [256]}),
    ("SyncItems", "items-kind", "manifests or nodes", {"kind": "tasks"}),
)


def frame_vectors() -> Iterator[tuple[str, Vector]]:
    """Work, blob and sync streams."""
    by_name = {type(message).__name__: message for message in good.WORK_MESSAGES}
    for name, message in by_name.items():
        yield frame("work/1", name, name.lower(), "the message alone in a frame", (message,))
    yield frame(
        "work/1", "Hello", "frame-of-many", "messages are batched", good.WORK_MESSAGES[3:10]
    )
    for message, name, why, changed in BENT_WORK:
        wire = [bent(by_name[message], **changed)]
        yield frame("work/1", message, name, why, wire, error="wrong_shape")
    hello = codec.encode(by_name["Hello"])
    for name, why, raw, error in (
        ("frame-empty", "a frame has at least one message", b"\x90", "wrong_shape"),
        ("frame-too-many", "at most 256 messages", b"\xdc\x01\x01" + hello * 257, "wrong_shape"),
        ("frame-not-an-array", "one message is a frame of one", hello, "wrong_shape"),
        (
            "frame-unknown-message",
            "an unknown type ends the stream",
            b"\x91\x81\xa4type\xa3pay",
            "wrong_shape",
        ),
        (
            "frame-huge-header",
            "a header that promises 2^32-1 items",
            b"\xdd\xff\xff\xff\xff",
            "wrong_shape",
        ),
        ("frame-cut-short", "bytes are missing", (b"\x91" + hello)[:-3], "malformed"),
        ("frame-trailing", "bytes behind the value", b"\x91" + hello + b"\x00", "malformed"),
        (
            "frame-text-not-utf8",
            "text is UTF-8",
            (b"\x91" + hello).replace(b"test", b"te\xff\xfe"),
            "malformed",
        ),
        ("frame-reserved-byte", "0xc1 is no msgpack", b"\x91\xc1", "malformed"),
        (
            "frame-deep",
            "nested ten thousand deep in a field nobody knows",
            b"\x91\x82\xa1x" + b"\x91" * 10_000 + b"\xc0\xa4type\xa3bye",
            "malformed",
        ),
    ):
        yield frame("work/1", "Hello", name, why, None, raw=raw, error=error)
    blobs = {type(message).__name__: message for message in good.BLOB_MESSAGES}
    for name, message in blobs.items():
        yield frame("blob/1", name, name[4:].lower(), "the message", message)
    for message, name, why, changed in BENT_BLOB:
        wire = bent(blobs[message], **changed)
        yield frame("blob/1", message, name, why, wire, error="wrong_shape")
    syncs = {type(message).__name__: message for message in good.SYNC_MESSAGES}
    for name, message in syncs.items():
        short = name.removeprefix("Sync").lower()
        yield frame("sync/1", name, short, "the message", message)
    for message, name, why, changed in BENT_SYNC:
        wire = bent(syncs[message], **changed)
        yield frame("sync/1", message, name, why, wire, error="wrong_shape")


def vectors() -> dict[Path, str]:
    """Each vector file and what it must hold."""
    out: dict[Path, str] = {}
    for folder, vector in (*frame_vectors(), *envelope_vectors(), *card_vectors()):
        assert vector["type"] in (*CARRIERS, ids.MANIFEST), vector["type"]
        kind = "invalid" if "error" in vector else "valid"
        path = PROTOCOLS / folder / "vectors" / kind / f"{vector['name']}.json"
        assert path not in out, f"two vectors are called {path}"
        out[path] = json.dumps(vector, indent=2, ensure_ascii=True) + "\n"
    return out


def main() -> None:
    """Write, or list what differs."""
    wanted = vectors()
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            print(path)
            if "--write" in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)


if __name__ == "__main__":
    main()
