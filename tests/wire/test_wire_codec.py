"""Every message survives the wire; nothing from the wire gets past with a surprise."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
import wire_samples as good
from hypothesis import HealthCheck, example, given, settings
from wire_catalogue import CARRIERS
from wire_strategies import values_of

from zerostate_node.errors import WireError
from zerostate_node.wire import codec, envelope
from zerostate_node.wire.messages import Claim, SyncMessage, WorkFrame

KINDS = {name: carrier for name, carrier in CARRIERS.items()}
SAMPLES: list[tuple[str, bytes]] = [
    ("work/1 frame", codec.encode(good.WORK_MESSAGES)),
    *[("blob/1 frame", codec.encode(message)) for message in good.BLOB_MESSAGES],
    *[("sync/1 frame", codec.encode(message)) for message in good.SYNC_MESSAGES],
]


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_message_comes_back_equal_and_is_written_the_same_again(
    name: str, data: st.DataObject
) -> None:
    carrier = KINDS[name]
    value = data.draw(values_of(carrier.kind))
    raw = codec.encode(value)
    back = codec.decode(raw, carrier.kind, bytes_max=len(raw))
    assert back == value
    assert codec.encode(back) == raw
    assert codec.decode(memoryview(raw), carrier.kind, bytes_max=len(raw)) == value


def decode_anything(name: str, data: bytes) -> None:
    """WireError or a value: whatever else is raised fails the test."""
    carrier = KINDS[name]
    with contextlib.suppress(WireError):
        codec.decode(data, carrier.kind, bytes_max=carrier.bytes_max)


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), data=st.binary(max_size=200))
@example(name="work/1 frame", data=b"")
@example(name="work/1 frame", data=b"\xc1")
@example(name="sync/1 frame", data=b"\x82\xa4type\xa5items\xa5items\xdd\xff\xff\xff\xff")
def test_random_bytes_raise_wire_error_and_nothing_else(name: str, data: bytes) -> None:
    decode_anything(name, data)


def test_mutated_messages_raise_wire_error_and_nothing_else() -> None:
    dice = random.Random(7)
    for _ in range(6_000):
        name, raw = dice.choice(SAMPLES)
        data = bytearray(raw)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randint(1, 8)]
                case 2:
                    data[at:at] = dice.randbytes(dice.randint(1, 8))
                case _:
                    data[at : at + 5] = b"\xdd\x7f\xff\xff\xff"
            if not data:
                break
        decode_anything(name, bytes(data))


def levels(header: bytes, depth: int, size: int) -> bytes:
    return header * depth + bytes(max(0, size - len(header) * depth))


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91\x82\xa4type\xa5claim\xa6serves\xdd\xff\xff\xff\xff",
        b"\x91\x82\xa4type\xa4done\xa7receipt\xc6\xff\xff\xff\xff",
        levels(b"\xdd" + struct.pack(">I", 1 << 22), 500, 1 << 22),
        b"\x91\x82\xa1x" + levels(b"\xdd" + struct.pack(">I", 1 << 22), 500, 1 << 20),
        b"\x91" * 100_000,
        b"\x81\xa1x" * 100_000,
    ],
    ids=lambda data: data[:12].hex(),
)
def test_what_a_header_promises_is_not_allocated(data: bytes) -> None:
    codec.decode(codec.encode(good.WORK_MESSAGES), WorkFrame, bytes_max=1 << 22)  # warm
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            codec.decode(data, WorkFrame, bytes_max=1 << 22)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 * 1024


def test_the_length_is_checked_before_anything_is_parsed() -> None:
    with pytest.raises(WireError) as caught:
        codec.decode(b"\xc1" * 11, WorkFrame, bytes_max=10)
    assert caught.value.code == "too_large"


class Probe(msgspec.Struct):
    number: int = 0
    text: str = ""
    data: bytes = b""
    flag: bool = False
    items: tuple[int, ...] = ()


@pytest.mark.parametrize(
    "field",
    [
        {"number": True},
        {"number": 1.0},
        {"number": "1"},
        {"number": None},
        {"text": b"x"},
        {"data": "x"},
        {"flag": 1},
        {"items": {"0": 1}},
        {"items": b"\x01"},
        {"items": (1, True)},
    ],
    ids=repr,
)
def test_one_type_is_never_taken_for_another(field: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        codec.decode(codec.encode(field), Probe, bytes_max=100)
    assert caught.value.code == "wrong_shape"


def test_a_message_of_one_protocol_is_none_of_another() -> None:
    with pytest.raises(WireError):
        codec.decode(codec.encode(Claim(credits=1)), SyncMessage, bytes_max=100)


def test_an_unknown_field_is_ignored_so_that_newer_nodes_may_say_more() -> None:
    raw = codec.encode({"type": "claim", "credits": 3, "mood": {"deep": [1, 2]}})
    frame = codec.decode(b"\x91" + raw, WorkFrame, bytes_max=100)
    assert frame == (Claim(credits=3),)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_envelopes_raise_wire_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(WireError):
        envelope.unseal(data, Claim, type="node/1", network=None, now_ms=None)
