"""Names that cross a boundary have one spelling, and known values."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from zerostate_node.errors import WireError
from zerostate_node.wire import ids

# An Ed25519 example of the W3C did:key specification, and the public key of RFC 8032's test 1
DID_KEY_SPEC = (
    "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp",
    "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
)
RFC8032 = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
# libp2p peer-ids specification, its Ed25519 example
PEER_SPEC = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"


def test_the_did_key_of_the_specification_is_read_and_written() -> None:
    did, key = DID_KEY_SPEC
    peer = ids.peer_of_did(did)
    assert ids.public_key_of(peer).hex() == key
    assert ids.did_of(peer) == did


def test_the_peer_id_of_the_specification_is_read_and_written() -> None:
    assert ids.peer_id_of(ids.public_key_of(PEER_SPEC)) == PEER_SPEC
    assert ids.peer_of_did(ids.did_of(PEER_SPEC)) == PEER_SPEC


def test_a_known_key_has_its_known_names() -> None:
    peer = ids.peer_id_of(bytes.fromhex(RFC8032))
    assert peer == "12D3KooWQK1wnefoLrcVHbbnf5tLzbopUd3K3bFAoJpA7YJgL5pV"
    assert ids.public_key_of(peer).hex() == RFC8032


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_and_did_are_two_spellings_of_one_key(key: bytes) -> None:
    peer = ids.peer_id_of(key)
    try:
        ids.check_public_key(key)
    except WireError:
        return
    assert ids.public_key_of(peer) == key
    assert ids.peer_of_did(ids.did_of(peer)) == peer


@pytest.mark.parametrize(
    "peer",
    [
        "",
        " " + PEER_SPEC,
        PEER_SPEC + " ",
        PEER_SPEC + "\n",
        PEER_SPEC[:-1],
        "Q" * 52,
        "é" * 52,
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA one
    ],
)
def test_a_peer_id_in_any_other_spelling_is_refused(peer: str) -> None:
    with pytest.raises(WireError) as caught:
        ids.public_key_of(peer)
    assert caught.value.code == "bad_peer_id"


@pytest.mark.parametrize(
    "did",
    [
        "",
        DID_KEY_SPEC[0] + " ",
        DID_KEY_SPEC[0].upper(),
        "did:web:example.com",
        "did:key:z" * 8,
        DID_KEY_SPEC[0] + "#" + DID_KEY_SPEC[0][8:],
    ],
)
def test_a_did_in_any_other_spelling_is_refused(did: str) -> None:
    with pytest.raises(WireError) as caught:
        ids.peer_of_did(did)
    assert caught.value.code == "bad_did"


P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + t, P - 2, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - t, P - 2, P) % P


def x_of(y: int) -> int:
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - x2) % P == 0
    return x


def test_the_keys_refused_as_small_order_are_exactly_the_points_of_small_order() -> None:
    for y in ids._SMALL_ORDER_Y:
        point = (x_of(y), y)
        for _ in range(3):
            point = add(point, point)
        assert point == (0, 1), "eight times the point is not the identity"
    # eight points: y = 1 and -1 once each, the other three y with two x each
    assert len(ids._SMALL_ORDER_Y) == 5


def test_a_key_that_is_not_reduced_is_refused() -> None:
    for y in range(P, 2**255):
        with pytest.raises(WireError):
            ids.check_public_key(y.to_bytes(32, "little"))


def test_a_ulid_sorts_by_time_and_has_its_known_spelling() -> None:
    # the time part of the ULID specification's example
    assert ids.ulid(1469918176385, bytes(10)) == "01ARYZ6S41" + "0" * 16
    assert ids.ulid((1 << 48) - 1, b"\xff" * 10) == "7" + "Z" * 25
    assert ids.ulid(1, b"\xff" * 10) < ids.ulid(2, bytes(10))
    assert ids.is_task_id(ids.ulid(5, b"0123456789"))
    with pytest.raises(ValueError, match="entropy"):
        ids.ulid(1, b"")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (ids.is_task_id, "01ARYZ6S410000000000000000", "01ARYZ6S410000000000000000\n"),
        (ids.is_task_id, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ"),
        (ids.is_digest, "sha256:" + "0a" * 32, "sha256:" + "0A" * 32),
        (ids.is_digest, "sha256:" + "0a" * 32, "sha256:" + "0a" * 32 + "\n"),
        (ids.is_network, "test-1", "test\n"),
        (ids.is_network, "a", "-a"),
        (ids.is_agent_name, "word-count.v2", "Word"),
        (ids.is_agent_name, "a", "a/b"),
    ],
)
def test_names_have_one_spelling(check: object, good: str, bad: str) -> None:
    assert callable(check)
    assert check(good)
    assert not check(bad)


def test_an_agent_id_comes_apart_as_it_was_put_together() -> None:
    did = ids.did_of(PEER_SPEC)
    assert ids.split_agent_id(ids.agent_id_of(did, "a-b")) == (did, "a-b")
    for bad in ("", did, did + "/", did + "/A", "did:key:zz/a", did + "/a/b"):
        with pytest.raises(WireError):
            ids.split_agent_id(bad)


def test_the_seed_of_a_run_is_the_one_that_the_contract_says() -> None:
    module, script, input_digest = (ids.digest_of(x) for x in (b"module", b"script", b"input"))
    seed = ids.run_seed(module, script, ("a", "b"), input_digest)
    parts = ["zerostate/seed/1", module, script, "2", "a", "b", input_digest]
    assert seed == hashlib.sha256(b"\x00".join(p.encode() for p in parts)).digest()
    assert seed.hex() == "66b904474f4c49e667ff793a5c6a7398ecc94c8a28c78159334e5af78e71a0ad"
    assert (
        ids.run_seed(module, "", (), input_digest).hex()
        == "0c7dd385a51de4c0feca37613edd29a7b1de71e36929e2c664a74ea7c9cf7f78"
    )
    assert ids.run_seed(module, "", ("a", "b"), input_digest) != ids.run_seed(
        module, "", ("a\x00b",), input_digest
    )


def test_topics_and_shards_are_stable() -> None:
    assert ids.topic("main", "work", 3) == "/zerostate/main/work/1/3"
    assert [ids.shard_of(key, 16) for key in ("", "text/count", "did:key:z/a")] == [2, 3, 14]
    assert {ids.shard_of(str(n), 4) for n in range(100)} == {0, 1, 2, 3}
