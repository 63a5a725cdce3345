"""A card means one thing, however it is spelled and whoever serves it."""

from __future__ import annotations

import base64
import json
import random
import time
from typing import Any

import hypothesis.strategies as st
import pytest
import rfc8785
import wire_samples as good
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from wire_vectors_cards import with_params

from zerostate_node.errors import Refused, WireError
from zerostate_node.wire import cards, ids, strictjson
from zerostate_node.wire.messages import Limits, Price

KEY = good.key_of("author")
MANIFEST = cards.open_card(good.CARD, now_ms=good.NOW_MS)


def issued(**changed: Any) -> cards.Manifest:
    return cards.open_card(cards.sign_card(good.card_of(**changed), KEY), now_ms=None)


def reissued(old: cards.Manifest, **changed: Any) -> cards.Manifest:
    fields: dict[str, Any] = {"sequence": 2, "now_ms": good.NOW_MS + 1, "ttl_ms": 1_000}
    card = cards.reissue_card(old.raw, **(fields | changed))
    return cards.open_card(cards.sign_card(card, KEY), now_ms=None)


def test_a_card_says_what_its_draft_said() -> None:
    assert MANIFEST.agent_id == f"{good.did_of('author')}/word-count"
    assert (MANIFEST.version, MANIFEST.sequence, MANIFEST.status) == ("1.0.0", 1, "active")
    assert MANIFEST.peer == good.peer_of("author")
    assert (MANIFEST.module, MANIFEST.script) == (good.MODULE, None)
    assert MANIFEST.limits == Limits(fuel_max=1_000_000_000)
    assert MANIFEST.price == Price(per_call_ucr=100, per_mfuel_ucr=3)
    assert MANIFEST.args == ("--json",)
    assert MANIFEST.capabilities == ("text", "text/count", "word-count")
    assert MANIFEST.sources == ("https://example.com/word-count.wasm",)
    assert MANIFEST.input_schema == good.DRAFT["input_schema"]
    assert MANIFEST.expires_ms == good.NOW_MS + 86_400_000


def test_signing_the_same_card_again_gives_the_same_bytes() -> None:
    assert cards.sign_card(good.card_of(), KEY) == good.CARD == MANIFEST.raw


def shuffled(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        dice.shuffle(items)
        return {key: shuffled(member, dice) for key, member in items}
    if isinstance(value, list):
        return [shuffled(item, dice) for item in value]
    return value


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), ascii_only=st.booleans(), indent=st.sampled_from([None, 1, 4]))
def test_a_card_that_another_library_wrote_again_is_the_same_card(
    seed: int, ascii_only: bool, indent: int | None
) -> None:
    value = shuffled(json.loads(good.CARD), random.Random(seed))
    spelled = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert cards.open_card(spelled, now_ms=good.NOW_MS) == MANIFEST


def test_a_card_that_protobuf_wrote_again_is_the_same_card() -> None:
    """What the A2A Python SDK (1.3.0) makes of a card: doubles in params, defaults written out."""

    def doubled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: doubled(member) for key, member in value.items()}
        if isinstance(value, list):
            return [doubled(item) for item in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    value = doubled(json.loads(good.CARD))
    value |= {"securitySchemes": {}, "securityRequirements": []}
    value["supportedInterfaces"][0]["tenant"] = ""
    value["skills"][0] |= {"inputModes": [], "outputModes": [], "securityRequirements": []}
    value["signatures"][0]["header"] = None
    del value["signatures"][0]["header"]
    assert cards.open_card(json.dumps(value).encode(), now_ms=None) == MANIFEST


def test_an_independent_jws_verifier_agrees() -> None:
    """RFC 7515 by hand over the payload that A2A 8.4 describes, with the key out of `kid`."""
    value = json.loads(good.CARD)
    entry = value.pop("signatures")[0]
    header = json.loads(base64.urlsafe_b64decode(entry["protected"] + "=="))
    assert (header["alg"], header["typ"]) == ("EdDSA", "JOSE")
    did, _, fragment = header["kid"].partition("#")
    assert did == f"did:key:{fragment}"
    payload = base64.urlsafe_b64encode(rfc8785.dumps(value)).rstrip(b"=")
    key = Ed25519PublicKey.from_public_bytes(ids.public_key_of(ids.peer_of_did(did)))
    signature = base64.urlsafe_b64decode(entry["signature"] + "==")
    key.verify(signature, entry["protected"].encode() + b"." + payload)


def test_no_byte_of_a_card_can_be_changed_unnoticed() -> None:
    dice = random.Random(3)
    for at in range(0, len(good.CARD), 3):
        data = bytearray(good.CARD)
        data[at] ^= 1 << dice.randrange(8)
        try:
            found = cards.open_card(bytes(data), now_ms=None)
        except WireError:
            continue
        assert found == MANIFEST, f"byte {at} changed the meaning"


def test_random_and_mutated_text_raises_wire_error_and_nothing_else() -> None:
    dice = random.Random(5)
    for _ in range(1_500):
        data = bytearray(good.CARD)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randint(1, 40)]
                case 2:
                    data[at:at] = dice.choice([b"[" * 30, b"1e999", b"null", b"{}", b'"\\ud800"'])
                case _:
                    data[at:at] = dice.randbytes(3)
        try:
            cards.open_card(bytes(data), now_ms=None)
        except WireError:
            continue


def test_other_signatures_are_carried_by_others_but_not_kept() -> None:
    value = json.loads(good.CARD)
    did = good.did_of("worker")
    header = json.dumps({"alg": "EdDSA", "kid": f"{did}#{did[8:]}"}).encode()
    extra = {
        "protected": base64.urlsafe_b64encode(header).rstrip(b"=").decode(),
        "signature": "AAAA",
    }
    value["signatures"].insert(0, extra)
    assert cards.open_card(json.dumps(value).encode(), now_ms=None) == MANIFEST


def test_a_card_cannot_be_signed_for_another_publisher() -> None:
    with pytest.raises(WireError) as caught:
        cards.sign_card(good.card_of(), good.key_of("worker"))
    assert caught.value.code == "wrong_signer"


def test_opening_an_ordinary_card_takes_about_a_millisecond_at_most() -> None:
    best = min(_timed(lambda: cards.open_card(good.CARD, now_ms=good.NOW_MS)) for _ in range(40))
    assert best < 0.003  # 0.5 ms on a quiet core; room for a loaded one


def test_a_hostile_card_costs_little_before_its_signature_fails() -> None:
    value = json.loads(good.CARD) | {"x": [1.5] * 1_800}
    data = json.dumps(value).encode()

    def refused() -> None:
        with pytest.raises(WireError):
            cards.open_card(data, now_ms=None)

    assert min(_timed(refused) for _ in range(5)) < 0.1


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# -- which card stands --------------------------------------------------------------------------


def test_the_highest_sequence_wins_in_whatever_order_cards_come() -> None:
    later = reissued(MANIFEST)
    assert cards.supersedes(MANIFEST, later)
    assert not cards.supersedes(later, MANIFEST)
    assert not cards.supersedes(MANIFEST, MANIFEST)


def test_of_two_cards_with_one_sequence_all_nodes_keep_the_same_one() -> None:
    one, other = (reissued(MANIFEST, reason=reason) for reason in ("a", "b"))
    assert cards.supersedes(one, other) != cards.supersedes(other, one)


def test_a_revocation_is_final_and_wins_over_any_sequence() -> None:
    revoked = reissued(MANIFEST, status="revoked", reason="a bug")
    later = reissued(MANIFEST, sequence=9)
    assert (revoked.status, revoked.reason) == ("revoked", "a bug")
    assert cards.supersedes(MANIFEST, revoked)
    assert cards.supersedes(later, revoked)
    assert not cards.supersedes(revoked, later)
    assert cards.supersedes(revoked, reissued(MANIFEST, sequence=3, status="revoked"))


def test_a_reissue_outlives_the_card_it_follows() -> None:
    assert reissued(MANIFEST, status="revoked").expires_ms == MANIFEST.expires_ms
    assert reissued(MANIFEST, ttl_ms=10**9).expires_ms == good.NOW_MS + 1 + 10**9


def test_versions_stand_beside_each_other() -> None:
    second = issued(draft=good.DRAFT | {"version": "2.0.0"}, sequence=2)
    assert not cards.supersedes(MANIFEST, second)
    assert not cards.supersedes(second, MANIFEST)


@pytest.mark.parametrize(
    "changed",
    [
        {"module": good.SCRIPT},
        {"script": good.SCRIPT},
        {"draft": good.DRAFT | {"args": ["--xml"]}},
        {"draft": good.DRAFT | {"limits": {"fuel_max": 5}}},
    ],
)
def test_what_a_version_runs_never_changes(changed: dict[str, Any]) -> None:
    assert not cards.supersedes(MANIFEST, issued(**changed, sequence=7))


def test_the_price_of_a_version_may_change() -> None:
    cheaper = issued(draft=good.DRAFT | {"price": {"per_call": 1}}, sequence=2)
    assert cards.supersedes(MANIFEST, cheaper)


# -- drafts ---------------------------------------------------------------------------------------


def test_a_draft_needs_only_a_name_a_version_and_a_description() -> None:
    found = issued(draft={"name": "echo", "version": "1", "description": "Echoes."})
    assert found.capabilities == ("echo",)
    assert found.limits == Limits()
    assert found.price == Price()
    assert found.args == ()


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"name": "Word Count"}, "bad_name"),
        ({"name": None}, "bad_name"),
        ({"version": "*"}, "bad_version"),
        ({"version": "1.0 beta"}, "bad_version"),
        ({"description": ""}, "bad_description"),
        ({"description": "x" * 4_097}, "bad_description"),
        ({"limits": {"fuel_max": 0}}, "bad_limits"),
        ({"limits": {"fuel": 1}}, "bad_limits"),
        ({"limits": {"fuel_max": True}}, "bad_limits"),
        ({"limits": {"fuel_max": 1.5}}, "bad_limits"),
        ({"limits": [1]}, "bad_limits"),
        ({"price": {"per_call": -1}}, "bad_price"),
        ({"price": {"per_call": 0.5}}, "bad_price"),
        ({"args": ["a\x00b"]}, "bad_args"),
        ({"args": [""]}, "bad_args"),
        ({"args": "--json"}, "bad_args"),
        ({"args": ["é" * 500] * 5}, "bad_args"),
        ({"args": ["a"] * 33}, "bad_args"),
        ({"skills": [{"id": ""}, {"id": "word-count"}]}, "bad_skills"),
        ({"skills": [{"id": "a", "color": "red"}]}, "bad_skills"),
        ({"skills": [{"id": str(n)} for n in range(33)]}, "bad_skills"),
        ({"skills": "text"}, "bad_skills"),
        ({"input_modes": ["json"]}, "bad_modes"),
        ({"input_schema": []}, None),
        ({"input_schema": "x"}, "bad_schema"),
        ({"input_schema": {"properties": {}}}, "bad_schema"),
        ({"input_schema": {"x": "y" * 8_193}}, "bad_schema"),
        ({"input_schema": {"x": float("nan")}}, "bad_schema"),
        ({"input_schema": {"x": 2**60}}, "bad_schema"),
        ({"input_schema": {"x": b"bytes"}}, "bad_schema"),
        ({"sources": ["http://example.com/a"]}, "bad_sources"),
        ({"sources": ["https://a:b@example.com/"]}, "bad_sources"),
        ({"sources": ["https://example.com/ \n"]}, "bad_sources"),
        ({"sources": ["https://example.com/"] * 9}, "bad_sources"),
        ({"documentation_url": "javascript:alert(1)"}, "bad_url"),
        ({"provider": {"organization": "Us"}}, "bad_provider"),
        ({"colour": "red"}, "unknown_field"),
        ({"skills": [{"id": f"s{n}", "examples": ["x" * 2_000]} for n in range(20)]}, "too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_draft_with_a_bad_field_is_refused_by_the_name_of_it(
    changed: dict[str, Any], code: str | None
) -> None:
    draft = good.DRAFT | changed
    if code is None:
        issued(draft=draft)
        return
    with pytest.raises(Refused) as caught:
        good.card_of(draft=draft)
    assert caught.value.code == code


def test_what_a_draft_lets_through_can_be_signed_and_read() -> None:
    full = good.DRAFT | {
        "inputModes": "text/plain",
        "documentationUrl": "https://example.com/docs",
        "provider": {"organization": "Us", "url": "https://example.com/"},
        "description": 'quotes " \\ \u2028 \x7f 🎉',
    }
    assert issued(draft=full, script=good.SCRIPT).script == good.SCRIPT


def test_a_capability_is_compared_in_one_spelling() -> None:
    assert cards.capability_of("  Word \t Count ") == "word-count"
    assert cards.capability_of("STRASSE") == cards.capability_of("straße")
    assert cards.capability_of(" \n ") == ""
    assert len(cards.capability_of("x" * 500)) == 128


# -- strict JSON ----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON)
def test_canonical_json_survives_any_other_writer(value: Any) -> None:
    try:
        canonical = strictjson.canonical(value)
    except WireError:
        return  # a lone surrogate in a key
    again = strictjson.parse(json.dumps(json.loads(canonical)).encode(), bytes_max=1 << 20)
    assert strictjson.canonical(again) == canonical
    if isinstance(value, dict):
        members = strictjson.canonical_members(value)
        assert strictjson.join_members(members) == canonical


@pytest.mark.parametrize("text", ["9007199254740992", "9007199254740992.0", "-1e17", "1e300"])
def test_a_number_that_readers_would_round_is_refused_in_every_spelling(text: str) -> None:
    with pytest.raises(WireError) as caught:
        strictjson.parse(text.encode(), bytes_max=100)
    assert caught.value.code == "malformed"


def test_a_card_with_changed_params_is_refused() -> None:
    """A card re-signed by nobody: params are under the signature like all else."""
    signed = json.loads(good.CARD)
    cheaper = with_params(signed, price={"perCall": 0, "perMillionFuel": 0})
    with pytest.raises(WireError) as caught:
        cards.open_card(json.dumps(cheaper).encode(), now_ms=None)
    assert caught.value.code == "bad_signature"
