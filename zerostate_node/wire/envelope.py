"""
Signed bytes: who said this, on which network, until when.

On the wire an envelope is msgpack `[body, signature]`. The signature covers
`ENVELOPE_DOMAIN + body`: the very bytes that travel, never a re-encoding of them. Order of checks:
size, shape, network and type, expiry, seen (the caller's), signature, then authority and state
(the caller's). The expensive one is last of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from zerostate_node.errors import WireError
from zerostate_node.units import PeerId
from zerostate_node.wire import codec, ids
from zerostate_node.wire.messages import Ms, NetworkText, PeerText, Tag, UlidText

T = TypeVar("T")

CLOCK_SKEW_MS_MAX = 120_000  # a message from further in the future than this is refused


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The signed part."""

    type: Tag
    network: NetworkText
    sender: PeerText
    id: UlidText
    issued_ms: Ms
    expires_ms: Ms
    payload: Annotated[bytes, Meta(max_length=ids.WORK_FRAME_BYTES_MAX)]


class _Sealed(msgspec.Struct, frozen=True, array_like=True):
    body: Annotated[bytes, Meta(max_length=ids.WORK_FRAME_BYTES_MAX)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """
    A verified envelope: payload as a value, sender, and the bytes to pass on or store.

    `raw` is canonical: whatever the framing it came in, equal envelopes have equal bytes.
    """

    value: Any
    sender: PeerId
    id: str
    issued_ms: int
    expires_ms: int
    raw: bytes


def seal(
    value: Any,
    *,
    type: str,
    network: str,
    key: Ed25519PrivateKey,
    sender: PeerId,
    id: str,
    now_ms: int,
    ttl_ms: int,
) -> bytes:
    """
    Sign a value as `sender`.

    Args:
        value: a `wire.messages` struct.
        type: what it is, `receipt/1` for example; a signature for one type is none for another.
        key: the private key that `sender` is the peer id of.
        id: a fresh ULID; receivers drop one that they have seen.
        now_ms: wall clock, ms.
        ttl_ms: how long receivers may act on it, ms.
    """
    body = codec.encode(
        Body(
            type=type,
            network=network,
            sender=sender,
            id=id,
            issued_ms=now_ms,
            expires_ms=now_ms + ttl_ms,
            payload=codec.encode(value),
        )
    )
    return codec.encode(_Sealed(body, key.sign(ids.ENVELOPE_DOMAIN + body)))


def unseal(
    data: bytes,
    kind: Any,
    *,
    type: str,
    network: str | None,
    now_ms: int | None,
    bytes_max: int = ids.ENVELOPE_BYTES_MAX,
    seen: Callable[[str], bool] | None = None,
) -> Opened:
    """
    Check a stranger's envelope and give its payload as a value of `kind`.

    Args:
        network: the network we are in; None accepts any (checking an old receipt offline).
        now_ms: wall clock; None skips expiry (a receipt stays true after it expires).
        seen: told the id before the signature is checked; True drops the message.

    Raises:
        WireError: with a code: too_large, malformed, wrong_shape, wrong_type, wrong_network,
            expired, from_the_future, seen, bad_peer_id, bad_key, bad_signature.
    """
    sealed = codec.decode(data, _Sealed, bytes_max=bytes_max)
    body: Body = codec.decode(sealed.body, Body, bytes_max=bytes_max)
    if body.type != type:
        raise WireError(f"a {body.type} where a {type} belongs", code="wrong_type")
    if network is not None and body.network != network:
        raise WireError(
            f"signed for network {body.network!r}, this node is on {network!r}",
            code="wrong_network",
        )
    if body.expires_ms < body.issued_ms:
        raise WireError("expires before it was issued", code="expired")
    if now_ms is not None:
        if body.expires_ms < now_ms:
            raise WireError(f"expired {now_ms - body.expires_ms} ms ago", code="expired")
        if body.issued_ms > now_ms + CLOCK_SKEW_MS_MAX:
            raise WireError(
                f"issued {body.issued_ms - now_ms} ms in the future", code="from_the_future"
            )
    if seen is not None and seen(body.id):
        raise WireError("seen before", code="seen")
    verify(body.sender, sealed.signature, ids.ENVELOPE_DOMAIN + sealed.body)
    value = codec.decode(body.payload, kind, bytes_max=bytes_max)
    return Opened(
        value=value,
        sender=PeerId(body.sender),
        id=body.id,
        issued_ms=body.issued_ms,
        expires_ms=body.expires_ms,
        raw=codec.encode(sealed),  # msgpack spells one thing in many ways: keep one of them
    )


@lru_cache(maxsize=1024)
def _public_key(peer: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(ids.public_key_of(peer))


def verify(peer: str, signature: bytes, message: bytes) -> None:
    """Raise WireError (`bad_signature`) unless `peer` signed `message`."""
    try:
        _public_key(peer).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise WireError(f"signature is not {peer}'s", code="bad_signature") from error
