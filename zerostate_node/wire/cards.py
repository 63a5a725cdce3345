"""
Manifests: what an agent is, signed by its publisher.

A manifest is an A2A 1.0 AgentCard (JSON) with a JWS over its canonical form (A2A 8.4: RFC 8785,
defaults left out) and one required extension that says what A2A has no words for. The signature
covers the meaning, not the spelling: any program may re-serve a card, in any JSON spelling, and it
still verifies. `Manifest.raw` is the one spelling this program stores, compares and passes on.

`alg` is written as `EdDSA` (RFC 8037), because that is what A2A verifiers accept today (PyJWT
2.15 in the A2A Python SDK knows no other name for it); `Ed25519` (RFC 9864) is accepted as well.

Which card stands, per (agent id, version): see `supersedes`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import WireError
from zerostate_node.units import AgentId, Did, PeerId
from zerostate_node.wire import codec, ids, strictjson
from zerostate_node.wire.cardshape import (
    ARGS_BYTES_MAX,
    BINDING_URI,
    EXTENSION_URI,
    AgentCard,
    CardSignature,
    WasmAgent,
    refuse_empties,
    without_defaults,
)
from zerostate_node.wire.drafts import draft_card, reissue_card
from zerostate_node.wire.envelope import CLOCK_SKEW_MS_MAX, verify
from zerostate_node.wire.messages import BlobRef, Limits, Price

__all__ = [
    "BINDING_URI",
    "EXTENSION_URI",
    "Manifest",
    "capability_of",
    "draft_card",
    "open_card",
    "reissue_card",
    "sign_card",
    "supersedes",
]

KEY_BYTES = 8
SIGNATURES_MAX = 4
CAPABILITY_CHARS_MAX = 128
_ALGS = ("EdDSA", "Ed25519")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A verified card: what services need of it, and its canonical bytes."""

    agent_id: AgentId
    name: str
    version: str
    description: str
    publisher: Did
    peer: PeerId  # the same key as `publisher`
    module: BlobRef
    script: BlobRef | None
    args: tuple[str, ...]
    limits: Limits
    price: Price
    capabilities: tuple[str, ...]  # skill ids and tags, as `capability_of` spells them, sorted
    sequence: int
    issued_ms: int
    expires_ms: int
    status: str  # active | deprecated | revoked
    reason: str
    sources: tuple[str, ...]  # https URLs that may serve the module; check the digest
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    raw: bytes  # canonical: equal cards have equal bytes, however they were spelled on arrival
    key: bytes  # first 8 bytes of sha256(raw): the item's key in sync


def capability_of(text: str) -> str:
    """A capability as it is compared: case folded, white space runs as one hyphen."""
    return "-".join(text.casefold().split())[:CAPABILITY_CHARS_MAX]


def sign_card(card: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """
    A signed card as it travels: canonical JSON.

    Args:
        card: from `draft_card` or `reissue_card`; its `publisher` must be the DID of `key`.
        key: the publisher's.

    Raises:
        WireError: what `open_card` would refuse (wrong_shape, wrong_signer, too_large, ...).
    """
    did = ids.did_of(ids.peer_id_of(key.public_key().public_bytes_raw()))
    header = {"alg": "EdDSA", "kid": f"{did}#{did.removeprefix('did:key:')}", "typ": "JOSE"}
    protected = _b64(strictjson.canonical(header))
    bare = {name: member for name, member in card.items() if name != "signatures"}
    payload = strictjson.canonical(without_defaults(bare))
    signature = _b64(key.sign(_signing_input(protected, payload)))
    signed = bare | {"signatures": [{"protected": protected, "signature": signature}]}
    return open_card(strictjson.canonical(signed), now_ms=None).raw


def open_card(data: bytes, *, now_ms: int | None) -> Manifest:
    """
    Check a stranger's card and read it. Expensive checks come last.

    Args:
        data: JSON in any spelling, at most `MANIFEST_BYTES_MAX` bytes.
        now_ms: wall clock, ms; None skips expiry (looking at an old card).

    Raises:
        WireError: with a code: too_large, malformed, wrong_shape, unsupported (guest ABI, alg),
            bad_did, wrong_signer, expired, from_the_future, bad_signature.
    """
    value = strictjson.parse(data, bytes_max=ids.MANIFEST_BYTES_MAX)
    if not isinstance(value, dict):
        raise WireError("a card is a JSON object", code="wrong_shape")
    signatures = value.pop("signatures", None)
    value = without_defaults(value)
    refuse_empties(value)
    card: AgentCard = codec.convert(value, AgentCard)
    params = _params(card)
    peer = ids.peer_of_did(params.publisher)
    chosen = _signature_of(signatures, params.publisher)
    if params.expires_ms < params.issued_ms:
        raise WireError("expires before it was issued", code="expired")
    if now_ms is not None:
        if params.expires_ms < now_ms:
            raise WireError(f"expired {now_ms - params.expires_ms} ms ago", code="expired")
        if params.issued_ms > now_ms + CLOCK_SKEW_MS_MAX:
            raise WireError(
                f"issued {params.issued_ms - now_ms} ms in the future", code="from_the_future"
            )
    members = strictjson.canonical_members(value)
    payload = strictjson.join_members(members)
    verify(peer, _unb64(chosen.signature), _signing_input(chosen.protected, payload))
    kept = [{"protected": chosen.protected, "signature": chosen.signature}]
    members.append(("signatures", b'"signatures":' + strictjson.canonical(kept)))
    members.sort(key=lambda member: member[0].encode("utf-16-be"))
    raw = strictjson.join_members(members)
    return Manifest(
        agent_id=ids.agent_id_of(Did(params.publisher), card.name),
        name=card.name,
        version=card.version,
        description=card.description,
        publisher=Did(params.publisher),
        peer=peer,
        module=params.module(),
        script=params.script(),
        args=params.args,
        limits=params.limits.limits(),
        price=params.price.price(),
        capabilities=_capabilities(card),
        sequence=params.sequence,
        issued_ms=params.issued_ms,
        expires_ms=params.expires_ms,
        status=params.status,
        reason=params.reason,
        sources=params.sources,
        input_schema=params.input_schema,
        output_schema=params.output_schema,
        raw=raw,
        key=hashlib.sha256(raw).digest()[:KEY_BYTES],
    )


def supersedes(old: Manifest, new: Manifest) -> bool:
    """
    Whether `new` takes the place of `old`.

    Only ever within one (agent id, version); versions stand beside each other.
    A revocation is final: it wins over any card that is not one, whatever their sequence, and
    nothing but a later revocation follows it. What a version runs (module, script, args, limits)
    never changes: a card that changes it is not believed, the known one stands. Otherwise the
    highest sequence wins, and of two with one sequence the larger key, so that all nodes agree.
    """
    if (old.agent_id, old.version) != (new.agent_id, new.version):
        return False
    if (old.status == "revoked") != (new.status == "revoked"):
        return new.status == "revoked"
    if new.status != "revoked" and _what_runs(old) != _what_runs(new):
        return False
    return (new.sequence, new.key) > (old.sequence, old.key)


def _what_runs(manifest: Manifest) -> tuple[Any, ...]:
    return (manifest.module, manifest.script, manifest.args, manifest.limits)


def _params(card: AgentCard) -> WasmAgent:
    ours = [item for item in card.capabilities.extensions if item.uri == EXTENSION_URI]
    if len(ours) != 1 or not ours[0].required or ours[0].params is None:
        raise WireError(f"one required extension {EXTENSION_URI} is wanted", code="wrong_shape")
    params: WasmAgent = codec.convert(ours[0].params, WasmAgent)
    if params.guest_abi != ids.GUEST_ABI:
        raise WireError(f"guest ABI {params.guest_abi!r} is not known here", code="unsupported")
    if (params.script_digest is None) != (params.script_bytes is None):
        raise WireError("scriptDigest and scriptBytes go together", code="wrong_shape")
    if sum(len(arg.encode()) for arg in params.args) > ARGS_BYTES_MAX:
        raise WireError(f"args take more than {ARGS_BYTES_MAX} bytes", code="wrong_shape")
    return params


def _signature_of(signatures: Any, publisher: str) -> CardSignature:
    """The publisher's own signature; those of others (a registry, a gateway) are not read."""
    entries: tuple[CardSignature, ...] = codec.convert(signatures or [], tuple[CardSignature, ...])
    if not 1 <= len(entries) <= SIGNATURES_MAX:
        raise WireError(f"1 to {SIGNATURES_MAX} signatures are wanted", code="wrong_shape")
    kid = f"{publisher}#{publisher.removeprefix('did:key:')}"
    for entry in entries:
        header = strictjson.parse(_unb64(entry.protected), bytes_max=1_024)
        if not isinstance(header, dict):
            raise WireError("a protected header is a JSON object", code="wrong_shape")
        if header.get("kid") != kid:
            continue
        if header.get("alg") not in _ALGS or "crit" in header:
            raise WireError("signature alg or crit is not known here", code="unsupported")
        return entry
    raise WireError("not signed by its publisher", code="wrong_signer")


def _capabilities(card: AgentCard) -> tuple[str, ...]:
    texts = (text for skill in card.skills for text in (skill.id, *skill.tags))
    return tuple(sorted({spelled for text in texts if (spelled := capability_of(text))}))


def _signing_input(protected: str, payload: bytes) -> bytes:
    return protected.encode() + b"." + _b64(payload).encode()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    """Base64url without padding, in the one spelling that encoding gives."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error) as error:
        raise WireError("not base64url", code="wrong_shape") from error
    if _b64(data) != text:
        raise WireError("base64url in another spelling", code="wrong_shape")
    return data
