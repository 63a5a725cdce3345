"""What an envelope lets through, and in which order it looks."""

from __future__ import annotations

from typing import Any

import pytest
import wire_samples as good

from zerostate_node.errors import WireError
from zerostate_node.wire import codec, envelope, ids
from zerostate_node.wire.messages import NodeAdvert


def opened(data: bytes, **changed: Any) -> envelope.Opened:
    fields: dict[str, Any] = {
        "type": ids.NODE,
        "network": good.NETWORK,
        "now_ms": good.NOW_MS,
        "bytes_max": ids.NODE_ADVERT_BYTES_MAX,
    }
    return envelope.unseal(data, NodeAdvert, **(fields | changed))


def code_of(data: bytes, **changed: Any) -> str:
    with pytest.raises(WireError) as caught:
        opened(data, **changed)
    return caught.value.code


def forged() -> bytes:
    body, signature = codec.decode(good.SEALED_ADVERT, tuple[bytes, bytes], bytes_max=4096)
    return codec.encode((body, bytes([signature[0] ^ 1]) + signature[1:]))


def test_what_was_sealed_is_opened() -> None:
    found = opened(good.SEALED_ADVERT)
    assert (found.value, found.sender, found.id) == (good.ADVERT, good.OWNER, good.ULID)
    assert found.raw == good.SEALED_ADVERT


@pytest.fixture
def no_signature_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the signature was checked although something cheaper was wrong")

    monkeypatch.setattr(envelope, "verify", fail)


@pytest.mark.usefixtures("no_signature_checks")
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"bytes_max": 10}, "too_large"),
        ({"type": ids.RECEIPT}, "wrong_type"),
        ({"network": "main"}, "wrong_network"),
        ({"now_ms": good.NOW_MS + good.TTL_MS + 1}, "expired"),
        ({"now_ms": good.NOW_MS - envelope.CLOCK_SKEW_MS_MAX - 1}, "from_the_future"),
        ({"seen": lambda _: True}, "seen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_cheap_to_refuse_is_refused_before_the_signature_is_checked(
    changed: dict[str, Any], code: str
) -> None:
    assert code_of(forged(), **changed) == code


def test_a_forged_message_is_not_asked_about_twice_and_never_accepted() -> None:
    asked: list[str] = []

    def seen(message_id: str) -> bool:
        asked.append(message_id)
        return False

    assert code_of(forged(), seen=seen) == "bad_signature"
    assert asked == [good.ULID]


def test_a_replay_is_dropped_once_its_id_was_seen() -> None:
    ids_seen: set[str] = set()
    for expected in (None, "seen"):
        if expected is None:
            ids_seen.add(opened(good.SEALED_ADVERT, seen=ids_seen.__contains__).id)
        else:
            assert code_of(good.SEALED_ADVERT, seen=ids_seen.__contains__) == expected


def test_clocks_may_differ_by_two_minutes() -> None:
    assert opened(good.SEALED_ADVERT, now_ms=good.NOW_MS - 120_000).sender == good.OWNER
    assert opened(good.SEALED_ADVERT, now_ms=good.NOW_MS + good.TTL_MS).sender == good.OWNER


def test_an_old_envelope_can_be_looked_at_without_a_clock() -> None:
    assert opened(good.SEALED_ADVERT, now_ms=None, network=None).value == good.ADVERT


def test_a_signature_made_for_another_domain_is_refused() -> None:
    body, _ = codec.decode(good.SEALED_ADVERT, tuple[bytes, bytes], bytes_max=4096)
    for domain in (b"", b"zerostate/envelope/2\x00"):
        data = codec.encode((body, good.key_of("owner").sign(domain + body)))
        assert code_of(data) == "bad_signature"


def test_a_signature_for_one_type_is_none_for_another() -> None:
    body_bytes, signature = codec.decode(good.SEALED_ADVERT, tuple[bytes, bytes], bytes_max=4096)
    moved = body_bytes.replace(b"node/1", b"tale/1")
    assert code_of(codec.encode((moved, signature)), type="tale/1") == "bad_signature"


def test_every_single_bit_of_an_envelope_matters() -> None:
    for at in range(0, len(good.SEALED_ADVERT)):
        data = bytearray(good.SEALED_ADVERT)
        data[at] ^= 1 << (at % 8)
        with pytest.raises(WireError):
            opened(bytes(data))


@pytest.mark.parametrize("y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_a_key_of_small_order_signs_nothing(y: int, sign: int) -> None:
    key = (y | sign).to_bytes(32, "little")
    body = envelope.Body(
        type=ids.NODE,
        network=good.NETWORK,
        sender=ids.peer_id_of(key),
        id=good.ULID,
        issued_ms=good.NOW_MS,
        expires_ms=good.NOW_MS + 1,
        payload=codec.encode(good.ADVERT),
    )
    identity = bytes([1]) + bytes(31)
    assert code_of(codec.encode((codec.encode(body), identity + bytes(32)))) == "bad_key"


def test_equal_envelopes_are_stored_as_equal_bytes_whatever_their_framing() -> None:
    body, signature = codec.decode(good.SEALED_ADVERT, tuple[bytes, bytes], bytes_max=4096)
    long = b"\xdc\x00\x03\xc6" + len(body).to_bytes(4, "big") + body
    long += b"\xc5\x00\x40" + signature + b"\xa4junk"
    assert long != good.SEALED_ADVERT
    assert opened(long).raw == good.SEALED_ADVERT
