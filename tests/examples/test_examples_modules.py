"""What the committed modules are: the bytes on record, their imports, the features they need."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import examples_guest as guest
import pytest
import wasmtime

from zerostate_node.wire import messages
from zerostate_node.wire.ids import is_agent_name

RECORDED = {
    line.split()[1]: line.split()[0]
    for line in (guest.EXAMPLES / "SHA256SUMS").read_text().splitlines()
}


def test_every_module_has_a_recorded_digest_and_a_card() -> None:
    assert sorted(RECORDED) == [f"{name}/{name}.wasm" for name in guest.MODULES]
    assert set(guest.MODULES) == set(guest.AGENTS)
    assert len(guest.AGENTS) >= 7


@pytest.mark.parametrize("name", guest.MODULES)
def test_a_module_is_the_one_on_record(name: str) -> None:
    data = (guest.EXAMPLES / name / f"{name}.wasm").read_bytes()
    assert hashlib.sha256(data).hexdigest() == RECORDED[f"{name}/{name}.wasm"]


@pytest.mark.parametrize("name", guest.MODULES)
def test_a_module_imports_nothing_that_guest_1_does_not_offer(name: str) -> None:
    imports = {f"{i.module}.{i.name}" for i in guest.module(name).imports}
    assert imports <= guest.ALLOWED_IMPORTS
    assert {"_start", "memory"} <= {e.name for e in guest.module(name).exports}


@pytest.mark.parametrize("name", guest.MODULES)
def test_a_module_carries_no_path_of_the_machine_that_built_it(name: str) -> None:
    data = (guest.EXAMPLES / name / f"{name}.wasm").read_bytes()
    for trace in (str(guest.EXAMPLES), str(Path.home()), "/tmp/", ".toolchains"):
        assert trace.encode() not in data


def test_all_modules_together_stay_small() -> None:
    total = sum((guest.EXAMPLES / n / f"{n}.wasm").stat().st_size for n in guest.MODULES)
    assert total < 3 * 1024 * 1024


def test_the_strict_engine_refuses_what_it_must_so_that_passing_it_means_something() -> None:
    # (module (func (drop (v128.const i64x2 0 0)) )): SIMD
    simd = bytes.fromhex("0061736d01000000010401600000030201000a1701150000fd0c") + bytes(16)
    simd = simd.replace(b"\x0a\x17\x01\x15\x00\x00", b"\x0a\x17\x01\x15\x00") + b"\x1a\x0b"
    wasmtime.Module.validate(wasmtime.Engine(), simd)
    with pytest.raises(wasmtime.WasmtimeError, match="SIMD"):
        wasmtime.Module.validate(guest.engine(exceptions=False), simd)


@pytest.mark.parametrize("name", [*guest.AGENTS, *guest.SCRIPTS])
def test_a_card_says_what_a_manifest_needs(name: str) -> None:
    card = guest.card(name)
    assert card["name"] == name
    assert is_agent_name(card["name"])
    assert card["abi"] == "guest/1"
    assert (guest.EXAMPLES / name / (card.get("module") or card["script"])).is_file()
    assert ("{script}" in card["args"]) == ("script" in card)
    assert (guest.EXAMPLES / name / "README.md").is_file()
    assert card["description"]
    assert card["version"].count(".") == 2
    assert set(card["limits"]) <= set(messages.Limits.__struct_fields__)
    assert set(card["price"]) <= set(messages.Price.__struct_fields__)
    assert card["input"]["mediaType"]
    assert card["output"]["mediaType"]
    assert card["examples"]
    for skill in card["skills"]:
        assert set(skill) == {"id", "name", "description", "tags", "examples"}


@pytest.mark.skipif(
    os.environ.get("ZEROSTATE_BUILD_EXAMPLES") != "1",
    reason="ZEROSTATE_BUILD_EXAMPLES=1 builds every module from source; it needs the toolchains",
)
def test_building_from_source_elsewhere_gives_the_bytes_on_record(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(
        guest.EXAMPLES, copy, ignore=shutil.ignore_patterns(".toolchains", "*.wasm"), symlinks=True
    )
    toolchains = os.environ.get("ZEROSTATE_TOOLCHAINS", str(guest.EXAMPLES / ".toolchains"))
    subprocess.run(
        ["make", "-C", str(copy), f"TOOLCHAINS={toolchains}"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=1800,
    )
    built = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.glob("*/*.wasm")}
    assert {k: hashlib.sha256(v).hexdigest() for k, v in built.items()} == RECORDED
