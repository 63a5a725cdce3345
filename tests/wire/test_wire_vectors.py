"""The vectors under `protocols/` and this program say the same thing, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import msgspec
import pytest
import wire_vectors
import wire_vectors_cards
from wire_catalogue import CARRIERS, CONTRACTS, PROTOCOLS

from zerostate_node.errors import WireError
from zerostate_node.wire import cards, codec, envelope, ids

FOLDERS = [contract.folder for contract in CONTRACTS]
FILES = sorted(
    path for folder in FOLDERS for path in (PROTOCOLS / folder / "vectors").glob("*/*.json")
)
VECTORS = {str(path.relative_to(PROTOCOLS)): json.loads(path.read_text()) for path in FILES}
VALID = {name: vector for name, vector in VECTORS.items() if "error" not in vector}
INVALID = {name: vector for name, vector in VECTORS.items() if "error" in vector}


def read(vector: dict[str, Any]) -> Any:
    """Read a vector as a node would; the value found in it."""
    data = bytes.fromhex(vector["hex"]) if "hex" in vector else vector["json"].encode()
    if vector["type"] == ids.MANIFEST:
        return cards.open_card(data, now_ms=vector["now_ms"])
    carrier = CARRIERS[vector["type"]]
    if not carrier.envelope:
        return codec.decode(data, carrier.kind, bytes_max=carrier.bytes_max)
    return envelope.unseal(
        data,
        carrier.kind,
        type=vector["type"],
        network=vector["network"],
        now_ms=vector["now_ms"],
        bytes_max=carrier.bytes_max,
    )


@pytest.mark.parametrize("name", VALID)
def test_a_valid_vector_is_read_as_it_says_and_written_back_to_its_very_bytes(name: str) -> None:
    vector = VALID[name]
    found = read(vector)
    if isinstance(found, cards.Manifest):
        assert wire_vectors_cards.shown(found) == vector["value"]
        assert cards.open_card(found.raw, now_ms=vector["now_ms"]) == found
        return
    carrier = CARRIERS[vector["type"]]
    wanted = msgspec.convert(vector["value"], carrier.kind)
    if isinstance(found, envelope.Opened):
        assert found.sender == vector["sender"]
        assert found.raw.hex() == vector["hex"]
        assert found.value == wanted
    else:
        assert found == wanted
        assert codec.encode(wanted).hex() == vector["hex"]


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_vector_is_refused_with_the_code_it_names(name: str) -> None:
    with pytest.raises(WireError) as caught:
        read(INVALID[name])
    assert caught.value.code == INVALID[name]["error"]


def test_the_vectors_checked_in_are_the_ones_the_generator_makes() -> None:
    wanted = wire_vectors.vectors()
    assert {path for path in FILES} == set(wanted)
    assert [p.name for p, text in wanted.items() if p.read_text() != text] == []


@pytest.mark.parametrize("contract", CONTRACTS, ids=FOLDERS)
def test_every_message_has_a_valid_and_an_invalid_vector(contract: Any) -> None:
    names = {message.__name__ for message in contract.messages}
    bad = {v["message"] for n, v in INVALID.items() if n.startswith(contract.folder)}
    assert names - bad == set()
    seen: set[str] = set()
    for name, vector in VALID.items():
        if name.startswith(contract.folder):
            seen.add(vector["message"])
            _names_in(read(vector), seen)
    if contract.folder == "manifest/1":
        seen |= {"AgentCard", "WasmAgent"}  # a Manifest is made of both
    assert names - seen == set()


def _names_in(value: Any, seen: set[str]) -> None:
    if isinstance(value, tuple):
        for item in value:
            _names_in(item, seen)
    elif isinstance(value, msgspec.Struct):
        seen.add(type(value).__name__)
        for field in value.__struct_fields__:
            _names_in(getattr(value, field), seen)


SCHEMA_OF = {
    "work/1 frame": "work/1/frame",
    "blob/1 frame": "blob/1/frame",
    "sync/1 frame": "sync/1/frame",
    ids.NODE: "node/1/node",
    ids.ANNOUNCEMENT: "announcement/1/announcement",
    ids.LEASE: "work/1/lease-batch",
    ids.RECEIPT: "receipt/1/receipt",
}


def schema(name: str) -> jsonschema.Draft202012Validator:
    value = json.loads((PROTOCOLS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(value)
    return jsonschema.Draft202012Validator(value)


@pytest.mark.parametrize("name", VALID)
def test_the_schema_accepts_every_valid_vector(name: str) -> None:
    vector = VALID[name]
    if vector["type"] == ids.MANIFEST:
        card = json.loads(read(vector).raw)
        schema("manifest/1/card").validate(card)
        schema("manifest/1/wasm-agent").validate(card["capabilities"]["extensions"][0]["params"])
    else:
        schema(SCHEMA_OF[vector["type"]]).validate(vector["value"])


# What JSON cannot show: msgpack's own types (text for bytes), 25.0 (an integer in JSON), lengths of
# bytes to the byte (base64), and headers that no value stands behind.
BEYOND_JSON = {
    "leases-text",
    "chunk-data-text",
    "log-text-bytes",
    "claim-load-float",
    "hello-sum-too-long",
    "done-output-too-long",
    "frame-huge-header",
}
VISIBLE = [
    name
    for name, vector in INVALID.items()
    if vector["error"] == "wrong_shape"
    and vector["type"] in SCHEMA_OF
    and vector["message"] != "Body"
    and vector["name"] not in BEYOND_JSON
]


@pytest.mark.parametrize("name", VISIBLE)
def test_the_schema_refuses_what_has_the_wrong_shape(name: str) -> None:
    vector = INVALID[name]
    value = msgpack.unpackb(bytes.fromhex(vector["hex"]))
    if CARRIERS[vector["type"]].envelope:
        value = msgpack.unpackb(msgpack.unpackb(value[0])["payload"])
    with pytest.raises(jsonschema.ValidationError):
        schema(SCHEMA_OF[vector["type"]]).validate(_as_json(value))


def _as_json(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def test_there_is_a_readme_in_every_contract_folder() -> None:
    for contract in CONTRACTS:
        assert Path(PROTOCOLS / contract.folder / "README.md").is_file()
