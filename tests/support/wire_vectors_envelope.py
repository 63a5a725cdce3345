"""Vectors of what travels in an envelope, and of the envelope itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import wire_samples as good

from zerostate_node.wire import codec, envelope, ids
from zerostate_node.wire.messages import TaskSpec

Vector = dict[str, Any]
structs = msgspec.structs


def sealed(
    folder: str,
    message: str,
    name: str,
    why: str,
    type: str,
    data: bytes,
    *,
    value: msgspec.Struct | None = None,
    error: str = "",
    now_ms: int = good.NOW_MS,
    network: str = good.NETWORK,
    by: str = "",
) -> tuple[str, Vector]:
    """A vector of a whole envelope, to be opened by a node on `network` at `now_ms`."""
    vector: Vector = {"name": name, "why": why, "type": type, "message": message}
    vector |= {"network": network, "now_ms": now_ms, "hex": data.hex()}
    if error:
        vector["error"] = error
    else:
        vector |= {"sender": good.peer_of(by), "value": msgspec.to_builtins(value)}
    return folder, vector


def resealed(body: envelope.Body, by: str) -> bytes:
    """Any body at all, signed."""
    data = codec.encode(body)
    return codec.encode((data, good.key_of(by).sign(ids.ENVELOPE_DOMAIN + data)))


def envelope_vectors() -> Iterator[tuple[str, Vector]]:
    """All of them."""
    yield from _payloads()
    yield from _envelopes()


def _payloads() -> Iterator[tuple[str, Vector]]:
    for folder, message, type, value, by in (
        ("node/1", "NodeAdvert", ids.NODE, good.ADVERT, "owner"),
        ("announcement/1", "Announcement", ids.ANNOUNCEMENT, good.ANNOUNCEMENT, "owner"),
        ("work/1", "LeaseBatch", ids.LEASE, good.BATCH, "owner"),
        ("receipt/1", "Receipt", ids.RECEIPT, good.RECEIPT, "worker"),
    ):
        data = good.seal(value, type, by)
        name = message.lower()
        yield sealed(folder, message, name, "as sent", type, data, value=value, by=by)
    refused = structs.replace(
        good.RECEIPT, outcome=good.Outcome.REFUSED, fuel_used=0, price_ucr=0, detail="full"
    )
    yield sealed(
        "receipt/1",
        "Receipt",
        "receipt-refused",
        "a run that never started is signed for too",
        ids.RECEIPT,
        good.seal(refused, ids.RECEIPT, "worker"),
        value=refused,
        by="worker",
    )
    bad_spec: TaskSpec = structs.replace(good.SPEC, agent_id="short")
    for folder, message, name, why, type, broken, by in (
        (
            "node/1",
            "NodeAdvert",
            "slots-negative",
            "counts are not negative",
            ids.NODE,
            structs.replace(good.ADVERT, slots=-1),
            "owner",
        ),
        (
            "announcement/1",
            "Announcement",
            "kinds-empty",
            "it says something",
            ids.ANNOUNCEMENT,
            structs.replace(good.ANNOUNCEMENT, kinds=()),
            "owner",
        ),
        (
            "work/1",
            "LeaseBatch",
            "lease-batch-empty",
            "1 to 64 leases",
            ids.LEASE,
            structs.replace(good.BATCH, leases=()),
            "owner",
        ),
        (
            "work/1",
            "LeaseBatch",
            "lease-batch-65",
            "1 to 64 leases",
            ids.LEASE,
            structs.replace(good.BATCH, leases=(good.LEASE,) * 65),
            "owner",
        ),
        (
            "work/1",
            "Lease",
            "lease-ttl-short",
            "a lease lasts at least a second",
            ids.LEASE,
            structs.replace(good.BATCH, leases=(structs.replace(good.LEASE, ttl_ms=999),)),
            "owner",
        ),
        (
            "work/1",
            "TaskSpec",
            "spec-agent-id",
            "an agent id has at least 10 characters",
            ids.LEASE,
            structs.replace(good.BATCH, leases=(structs.replace(good.LEASE, spec=bad_spec),)),
            "owner",
        ),
        (
            "receipt/1",
            "Receipt",
            "receipt-price-negative",
            "nobody is paid backwards",
            ids.RECEIPT,
            structs.replace(good.RECEIPT, price_ucr=-1),
            "worker",
        ),
        (
            "receipt/1",
            "Receipt",
            "receipt-exit-code",
            "32 bits, or -1",
            ids.RECEIPT,
            structs.replace(good.RECEIPT, exit_code=1 << 32),
            "worker",
        ),
    ):
        data = good.seal(broken, type, by)
        yield sealed(folder, message, name, why, type, data, error="wrong_shape")


def _envelopes() -> Iterator[tuple[str, Vector]]:
    advert = good.SEALED_ADVERT

    def bad(name: str, why: str, data: bytes, error: str, **more: Any) -> tuple[str, Vector]:
        return sealed("envelope/1", "Body", name, why, ids.NODE, data, error=error, **more)

    yield sealed(
        "envelope/1", "Body", "good", "as sent", ids.NODE, advert, value=good.ADVERT, by="owner"
    )
    body_bytes, signature = codec.decode(advert, tuple[bytes, bytes], bytes_max=len(advert))
    body: envelope.Body = codec.decode(body_bytes, envelope.Body, bytes_max=len(body_bytes))
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    malleable = signature[:32] + s.to_bytes(32, "little")
    forged = codec.encode((body_bytes, flipped))
    identity = bytes([1]) + bytes(31)
    small = structs.replace(body, sender=ids.peer_id_of(identity))

    yield bad("too-large", "checked before it is parsed", advert + bytes(4096), "too_large")
    yield bad("trailing", "bytes behind the value", advert + b"\x00", "malformed")
    yield bad("cut-short", "bytes are missing", advert[:-1], "malformed")
    yield bad("not-a-pair", "body and signature", codec.encode((body_bytes,)), "wrong_shape")
    yield bad(
        "signature-short", "64 bytes", codec.encode((body_bytes, signature[:63])), "wrong_shape"
    )
    yield bad(
        "body-not-msgpack", "the body is msgpack", codec.encode((b"\xc1", signature)), "malformed"
    )
    yield bad(
        "wrong-type",
        "a signature for one type is none for another",
        good.seal(good.ADVERT, ids.ANNOUNCEMENT, "owner"),
        "wrong_type",
    )
    yield bad("wrong-network", "networks do not mix", advert, "wrong_network", network="main")
    yield bad("expired", "its time is over", advert, "expired", now_ms=body.expires_ms + 1)
    yield bad(
        "expired-and-forged",
        "expiry is checked before the signature",
        forged,
        "expired",
        now_ms=body.expires_ms + 1,
    )
    yield bad(
        "expires-before-issued",
        "a life shorter than none",
        good.seal(good.ADVERT, ids.NODE, "owner", ttl_ms=-1),
        "expired",
    )
    yield bad(
        "from-the-future",
        "issued more than two minutes from now",
        advert,
        "from_the_future",
        now_ms=good.NOW_MS - 120_001,
    )
    yield bad("bad-signature", "one bit of it differs", forged, "bad_signature")
    yield bad(
        "signature-malleable",
        "S plus the group order: a second spelling",
        codec.encode((body_bytes, malleable)),
        "bad_signature",
    )
    yield bad(
        "signed-by-another",
        "the sender did not sign this",
        good.seal(good.ADVERT, ids.NODE, "worker", sender=good.OWNER),
        "bad_signature",
    )
    yield bad(
        "no-domain",
        "signed without the domain tag",
        codec.encode((body_bytes, good.key_of("owner").sign(body_bytes))),
        "bad_signature",
    )
    yield bad(
        "body-changed",
        "one byte of the signed body differs",
        codec.encode((body_bytes.replace(b"eu", b"us"), signature)),
        "bad_signature",
    )
    yield bad(
        "small-order-key",
        "under this key one signature fits all",
        codec.encode((codec.encode(small), identity + bytes(32))),
        "bad_key",
    )
    yield bad(
        "sender-not-a-peer-id",
        "46 characters, but no key",
        resealed(structs.replace(body, sender="Q" * 46), "owner"),
        "bad_peer_id",
    )
    yield bad(
        "sender-with-space",
        "a peer id has one spelling",
        resealed(structs.replace(body, sender=good.OWNER + " "), "owner"),
        "bad_peer_id",
    )
    yield bad(
        "payload-not-the-type",
        "signed, but no advert",
        resealed(structs.replace(body, payload=b"\x93\x01\x02\x03"), "owner"),
        "wrong_shape",
    )
