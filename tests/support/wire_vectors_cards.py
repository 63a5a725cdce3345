"""Vectors of manifests. A card is given as the text that travels (`json`), or as `hex`."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import wire_samples as good

from zerostate_node.wire import cards, ids, strictjson

Vector = dict[str, Any]


def resigned(card: dict[str, Any], by: str = "author", **header: Any) -> str:
    """Any card at all, signed."""
    did = good.did_of(by)
    fields = {"alg": "EdDSA", "kid": f"{did}#{did[8:]}", "typ": "JOSE"} | header
    protected = _b64(json.dumps(fields, separators=(",", ":")).encode())
    bare = {key: member for key, member in card.items() if key != "signatures"}
    message = f"{protected}.{_b64(strictjson.canonical(bare))}".encode()
    signature = _b64(good.key_of(by).sign(message))
    return json.dumps(bare | {"signatures": [{"protected": protected, "signature": signature}]})


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_params(card: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A card with members of the extension's params changed; None takes one out."""
    out = copy.deepcopy(card)
    params = out["capabilities"]["extensions"][0]["params"]
    params |= changed
    for key in [key for key, member in params.items() if member is None]:
        del params[key]
    return out


def shown(manifest: cards.Manifest) -> dict[str, Any]:
    """What a reader must find in a card."""
    return {
        "agent_id": manifest.agent_id,
        "version": manifest.version,
        "peer": manifest.peer,
        "module": manifest.module.digest,
        "script": manifest.script.digest if manifest.script else None,
        "capabilities": list(manifest.capabilities),
        "sequence": manifest.sequence,
        "status": manifest.status,
        "key": manifest.key.hex(),
    }


def card_vectors() -> Iterator[tuple[str, Vector]]:
    """All of them."""
    yield from _valid()
    yield from _invalid()


def _vector(
    name: str, why: str, text: str | bytes, message: str, **more: Any
) -> tuple[str, Vector]:
    vector: Vector = {"name": name, "why": why, "type": ids.MANIFEST, "message": message}
    vector["now_ms"] = more.pop("now_ms", good.NOW_MS)
    if isinstance(text, bytes):
        vector["hex"] = text.hex()
    else:
        vector["json"] = text
    return "manifest/1", vector | more


def _valid() -> Iterator[tuple[str, Vector]]:
    card, key = good.card_of(), good.key_of("author")
    signed = good.CARD.decode()
    value = json.loads(signed)
    backwards = json.dumps(dict(reversed(value.items())), indent=1, ensure_ascii=True)
    protobuf = signed.replace(":1000000000,", ":1000000000.0,").replace(
        ':"1.0.0"', ':"1.0.0","iconUrl":null,"securitySchemes":{}'
    )
    script = cards.sign_card(good.card_of(script=good.SCRIPT), key).decode()
    revoked = cards.reissue_card(
        good.CARD, sequence=2, now_ms=good.NOW_MS, ttl_ms=1, status="revoked", reason="a bug"
    )
    extra = card | {"x-new": {"inner": [1.5, True, "é"]}}
    for name, why, text in (
        ("canonical", "as this program sends it", signed),
        ("respelled", "other order, white space, escapes: one card", backwards),
        ("through-protobuf", "integral doubles and defaults: one card", protobuf),
        ("script-agent", "an engine and a script", script),
        ("revoked", "a status like any other", cards.sign_card(revoked, key).decode()),
        ("unknown-member", "signed, not read", cards.sign_card(extra, key).decode()),
    ):
        manifest = cards.open_card(text.encode(), now_ms=good.NOW_MS)
        yield _vector(name, why, text, "AgentCard", value=shown(manifest))


def _invalid() -> Iterator[tuple[str, Vector]]:
    card = good.card_of()
    signed = good.CARD.decode()
    value = json.loads(signed)

    def bad(name: str, why: str, text: str | bytes, error: str, **more: Any) -> tuple[str, Vector]:
        return _vector(name, why, text, more.pop("message", "AgentCard"), **more, error=error)

    def params(name: str, why: str, error: str, **changed: Any) -> tuple[str, Vector]:
        text = resigned(with_params(card, **changed))
        return bad(name, why, text, error, message="WasmAgent")

    limits = card["capabilities"]["extensions"][0]["params"]["limits"]
    yield bad("too-large", "checked before it is parsed", signed + " " * 32_768, "too_large")
    yield bad("not-utf8", "JSON is UTF-8", b"\xff" + good.CARD, "malformed")
    yield bad("cut-short", "bytes are missing", signed[:-1], "malformed")
    yield bad(
        "key-twice",
        "readers disagree which one counts",
        signed[:-1] + ',"version":"2"}',
        "malformed",
    )
    yield bad("nan", "NaN is not JSON", signed[:-1] + ',"x":NaN}', "malformed")
    yield bad(
        "integer-too-big", "no double holds it", signed[:-1] + ',"x":9007199254740993}', "malformed"
    )
    yield bad("lone-surrogate", "no UTF-8 holds it", signed[:-1] + ',"x":"\\ud800"}', "malformed")
    yield bad(
        "deep", "at most 24 levels", signed[:-1] + ',"x":' + "[" * 30 + "]" * 30 + "}", "malformed"
    )
    yield bad("very-deep", "at most 24 levels", "[" * 30_000, "malformed")
    yield bad("not-an-object", "a card is an object", "[]", "wrong_shape")
    yield bad("unsigned", "a manifest is signed", json.dumps(card), "wrong_shape")
    yield bad(
        "empty-member",
        "verifiers disagree whether it is signed",
        resigned(card | {"x": {"y": ""}}),
        "wrong_shape",
    )
    yield bad(
        "name-upper-case",
        "names are lower case",
        resigned(card | {"name": "Word-Count"}),
        "wrong_shape",
    )
    yield bad(
        "version-star", "a version is one version", resigned(card | {"version": "*"}), "wrong_shape"
    )
    yield bad(
        "no-skills", "an agent can do something", resigned(card | {"skills": []}), "wrong_shape"
    )
    yield bad(
        "no-extension",
        "then it is no manifest",
        resigned(card | {"capabilities": {"streaming": False}}),
        "wrong_shape",
    )
    optional = copy.deepcopy(card)
    optional["capabilities"]["extensions"][0]["required"] = False
    yield bad("extension-optional", "clients must understand it", resigned(optional), "wrong_shape")
    yield params("digest-short", "64 hex digits", "wrong_shape", moduleDigest="sha256:ab")
    yield params(
        "script-without-size", "they go together", "wrong_shape", scriptDigest=good.SCRIPT.digest
    )
    yield params(
        "limit-missing", "a signature covers no default", "wrong_shape", limits={"fuelMax": 1}
    )
    yield params("limit-fraction", "fuel is whole", "wrong_shape", limits=limits | {"fuelMax": 1.5})
    yield params(
        "price-negative",
        "nobody is paid to call",
        "wrong_shape",
        price={"perCall": -1, "perMillionFuel": 0},
    )
    yield params(
        "price-bool",
        "a bool is not a number",
        "wrong_shape",
        price={"perCall": True, "perMillionFuel": 0},
    )
    yield params("status-unknown", "active, deprecated or revoked", "wrong_shape", status="paused")
    yield params("source-http", "https only", "wrong_shape", sources=["http://example.com/x.wasm"])
    yield params(
        "source-userinfo",
        "no credentials in URLs",
        "wrong_shape",
        sources=["https://a@example.com/"],
    )
    yield params("args-too-long", "4 KiB together", "wrong_shape", args=["x" * 500] * 9)
    yield params("abi-unknown", "this program runs guest/1", "unsupported", guestAbi="guest/2")
    yield params(
        "publisher-not-a-key",
        "right alphabet, no Ed25519 key",
        "bad_did",
        publisher="did:key:z6Mk" + "1" * 44,
    )
    yield params(
        "wrong-signer",
        "signed by another key than the publisher's",
        "wrong_signer",
        publisher=good.did_of("worker"),
    )
    yield bad(
        "kid-lies",
        "kid says author, the key is another",
        resigned(card, "worker", kid=f"{good.did_of('author')}#{good.did_of('author')[8:]}"),
        "bad_signature",
    )
    yield bad("alg-none", "no signature is no signature", resigned(card, alg="none"), "unsupported")
    yield bad(
        "crit",
        "a critical header nobody knows",
        resigned(card, crit=["b64"], b64=False),
        "unsupported",
    )
    yield bad("expired", "its time is over", signed, "expired", now_ms=good.NOW_MS + 86_400_001)
    forged = signed.replace("Counts the", "Counts all")
    yield bad(
        "expired-and-forged",
        "expiry is checked before the signature",
        forged,
        "expired",
        now_ms=good.NOW_MS + 86_400_001,
    )
    yield bad(
        "from-the-future",
        "issued more than two minutes from now",
        signed,
        "from_the_future",
        now_ms=good.NOW_MS - 120_001,
    )
    yield bad("description-changed", "the signature covers it", forged, "bad_signature")
    yield bad(
        "unknown-member-added", "the signature covers all", signed[:-1] + ',"x":1}', "bad_signature"
    )
    padded = copy.deepcopy(value)
    padded["signatures"][0]["signature"] += "=="
    yield bad("base64-padded", "base64url has one spelling", json.dumps(padded), "wrong_shape")
    spare = copy.deepcopy(value)
    text = spare["signatures"][0]["signature"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare["signatures"][0]["signature"] = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
    yield bad(
        "base64-spare-bits",
        "the last character holds bits that no byte has",
        json.dumps(spare),
        "wrong_shape",
    )
    again = copy.deepcopy(value)
    again["signatures"] = again["signatures"] * 5
    yield bad("signatures-five", "at most 4", json.dumps(again), "wrong_shape")
