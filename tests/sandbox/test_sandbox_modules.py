"""What is refused before it runs, each under its own name; compiling once; the cache on disk."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import sandbox_guests as guests
import trio
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_guests import KEY, Bench, assemble, bench

from zerostate_node.ports.sandbox import Rejection
from zerostate_node.sandbox import abi, header, limits
from zerostate_node.units import MIB
from zerostate_node.wire.messages import Outcome

PROTOCOL = Path(__file__).resolve().parents[2] / "protocols" / "guest" / "1"


def leb(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + leb(len(body)) + body


MAGIC = b"\0asm\1\0\0\0"
NOOP = assemble(guests.NOOP)
TYPES = section(1, b"\1\x60\0\0")
_MEMORY = '(memory (export "memory") 1)'
_START = '(func (export "_start"))'

REFUSED: dict[str, tuple[bytes | str, str]] = {
    "nothing": (b"", "not_wasm"),
    "text": (b"#!/bin/sh\nrm -rf /\n", "not_wasm"),
    "a component": (b"\0asm\x0d\0\1\0", "not_wasm"),
    "cut in a section": (NOOP[:-3], "truncated"),
    "a section longer than the module": (MAGIC + b"\1\xff\xff\xff\xff\x0f", "truncated"),
    "an overlong number": (MAGIC + b"\1\x80\x80\x80\x80\x80\x00", "malformed"),
    "a number of 33 bits": (MAGIC + b"\1\xff\xff\xff\xff\x1f", "malformed"),
    "sections twice": (MAGIC + TYPES + TYPES, "malformed"),
    "an unknown section": (MAGIC + section(77, b""), "malformed"),
    "a section with bytes left": (MAGIC + section(1, b"\1\x60\0\0\0"), "malformed"),
    "a name that is not text": (MAGIC + section(2, b"\1\2\xff\xfe\1a\0\0"), "malformed"),
    "more types than bytes": (MAGIC + section(1, leb(40_000)), "truncated"),
    "a forbidden import": (guests.FORBIDDEN_IMPORT, "import_not_allowed"),
    "an import of another type": (guests.WRONG_IMPORT_TYPE, "import_not_allowed"),
    "an imported memory": (
        f'(module (import "wasi_snapshot_preview1" "fd_write" (memory 1)) {_START})',
        "import_not_allowed",
    ),
    "no start": (f"(module {_MEMORY})", "no_start"),
    "a start that takes something": (
        f'(module {_MEMORY} (func (export "_start") (param i32)))',
        "no_start",
    ),
    "no memory": (f"(module {_START})", "no_memory"),
    "a memory not exported": (f"(module (memory 1) {_START})", "no_memory"),
    "a memory of two gigabytes": (
        f'(module (memory (export "memory") 32768) {_START})',
        "memory_too_large",
    ),
    "two memories": (f"(module {_MEMORY} (memory 1) {_START})", "memory_unsupported"),
    "a 64-bit memory": (
        f'(module (memory (export "memory") i64 1) {_START})',
        "memory_unsupported",
    ),
    "a shared memory": (
        f'(module (memory (export "memory") 1 2 shared) {_START})',
        "memory_unsupported",
    ),
    "a huge table": (f"(module {_MEMORY} (table 2000000 funcref) {_START})", "table_too_large"),
    "many tables": (
        f"(module {_MEMORY} {'(table 1 funcref)' * 17} {_START})",
        "table_too_large",
    ),
    "many functions": (
        f"(module {_MEMORY} {_START} {'(func)' * 50_000})",
        "too_many_functions",
    ),
    "a large body": (
        f'(module {_MEMORY} (func (export "_start") {"(drop (i32.const 1))" * 90_000}))',
        "body_too_large",
    ),
    "SIMD in a type": (f"(module {_MEMORY} {_START} (func (param v128)))", "unsupported_type"),
    "SIMD in a body": (
        f"(module {_MEMORY} {_START} (func (drop (v128.const i64x2 0 0))))",
        "invalid",
    ),
    "a tail call": (f"(module {_MEMORY} {_START} (func $a (return_call $a)))", "invalid"),
    "a body that does not type": (
        MAGIC
        + TYPES
        + section(3, b"\1\0")
        + section(5, b"\1\0\1")
        + section(7, b"\2\6memory\2\0\6_start\0\0")
        + section(10, b"\1\3\0\x6a\x0b"),
        "invalid",
    ),
}


ENGINES_BUSINESS = (
    "an import of another type",
    "SIMD in a body",
    "a tail call",
    "a body that does not type",
)
BY_POLICY = [name for name in REFUSED if name not in ENGINES_BUSINESS]


@pytest.mark.parametrize("name", BY_POLICY)
def test_policy_refuses_by_name_what_cannot_be_an_agent(name: str) -> None:
    source, code = REFUSED[name]
    data = assemble(source) if isinstance(source, str) else source
    with pytest.raises(abi.Refusal) as refused:
        header.parse(data)
    assert (refused.value.code, bool(refused.value.message)) == (code, True)


@pytest.mark.parametrize("name", ENGINES_BUSINESS)
def test_policy_leaves_to_the_engine_what_it_does_not_know(name: str) -> None:
    source, _ = REFUSED[name]
    header.parse(assemble(source) if isinstance(source, str) else source)


async def test_preparing_refuses_each_by_its_name_and_goes_on(lab: Bench) -> None:
    seen = {}
    for name, (source, _) in REFUSED.items():
        with trio.fail_after(30), pytest.raises(Rejection) as refused:
            await lab.sandbox.prepare(*lab.module(source))
        seen[name] = refused.value.code
    assert seen == {name: code for name, (_, code) in REFUSED.items()}
    assert (await lab.sandbox.run(lab.order(guests.NOOP))).outcome is Outcome.COMPLETED


async def test_a_module_of_too_many_bytes_is_refused(shared_cache: Path, tmp_path: Path) -> None:
    async with bench(shared_cache, tmp_path, module_bytes_max=40) as lab:
        with pytest.raises(Rejection) as refused:
            await lab.sandbox.prepare(*lab.module(NOOP))
    assert refused.value.code == "module_too_large"


async def test_bytes_under_another_digest_are_refused_and_not_held_against_it(lab: Bench) -> None:
    digest, path = lab.module(guests.guest("(drop (i32.const 77))"))
    _, other = lab.module(NOOP)
    with pytest.raises(Rejection) as refused:
        await lab.sandbox.prepare(digest, other)
    assert refused.value.code == "digest_mismatch"
    assert (await lab.sandbox.prepare(digest, path)).digest == digest


async def test_a_run_of_a_refused_module_raises_what_preparing_it_raised(lab: Bench) -> None:
    with pytest.raises(Rejection) as refused:
        await lab.sandbox.run(lab.order(guests.FORBIDDEN_IMPORT))
    assert refused.value.code == "import_not_allowed"


async def test_a_compile_bomb_is_refused_in_time_and_remembered(tmp_path: Path) -> None:
    source = assemble(guests.compile_bomb())
    assert len(source) < limits.BODY_BYTES_MAX
    async with bench(tmp_path / "cache", tmp_path, compile_cpu_s_max=1) as lab:
        digest, path = lab.module(source)
        with trio.fail_after(30), pytest.raises(Rejection) as refused:
            await lab.sandbox.prepare(digest, path)
        assert refused.value.code == "compile_timeout"
        path.unlink()  # asked again, nothing is read, let alone compiled
        with trio.fail_after(0.5), pytest.raises(Rejection) as again:
            await lab.sandbox.prepare(digest, path)
        assert again.value.code == "compile_timeout"


async def test_a_module_that_takes_too_much_memory_to_compile_is_refused(tmp_path: Path) -> None:
    source = assemble(guests.compile_bomb())
    async with bench(tmp_path / "cache", tmp_path, compile_memory_bytes_max=330 * MIB) as lab:
        with trio.fail_after(60), pytest.raises(Rejection) as refused:
            await lab.sandbox.prepare(*lab.module(source))
        assert refused.value.code == "compile_out_of_memory"
        assert (await lab.sandbox.run(lab.order(NOOP))).outcome is Outcome.COMPLETED


async def test_what_the_validator_learned_is_told(lab: Bench) -> None:
    info = await lab.sandbox.prepare(*lab.module(guests.ECHO))
    assert "wasi_snapshot_preview1.fd_read" in info.imports
    assert info.exports == ("memory", "_start")
    assert (info.memory_min_bytes, info.memory_max_bytes) == (2 * 65_536, None)
    assert info.functions == 2
    assert (await lab.sandbox.prepare(*lab.module(guests.ECHO))).cached


async def test_a_module_that_many_ask_for_is_compiled_once(tmp_path: Path) -> None:
    async with bench(tmp_path / "cache", tmp_path) as lab:
        order = lab.order(guests.ECHO, stdin=b"x")
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(lab.sandbox.run, order)
        assert lab.sandbox.stats()["modules_compiled"] == 1
        assert lab.sandbox.stats()["runs"] == {"completed": 8}
    async with bench(tmp_path / "cache", tmp_path) as lab:
        assert (await lab.sandbox.prepare(order.module, order.module_path)).cached
        assert lab.sandbox.stats()["modules_compiled"] == 0


async def test_a_caller_that_leaves_does_not_stop_the_compiler_for_the_others(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path / "cache", tmp_path) as lab:
        digest, path = lab.module(guests.ECHO)
        infos = []

        async def stay() -> None:
            infos.append(await lab.sandbox.prepare(digest, path))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.01):
                await lab.sandbox.prepare(digest, path)
            nursery.start_soon(stay)
        assert (len(infos), lab.sandbox.stats()["modules_compiled"]) == (1, 1)


def _spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "a bit in the code":
        data[len(data) // 2] ^= 1
    elif how == "a bit in the mac":
        data[12] ^= 1
    elif how == "a bit in the info":
        data[60] ^= 1
    elif how == "cut":
        del data[-100:]
    elif how == "empty":
        data.clear()
    else:
        other = path.with_name("elsewhere")
        other.write_bytes(data)
        path.unlink()
        path.symlink_to(other)
        return
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how",
    ["a bit in the code", "a bit in the mac", "a bit in the info", "cut", "empty", "a link"],
)
async def test_compiled_code_that_does_not_authenticate_is_never_loaded(
    tmp_path: Path, how: str
) -> None:
    cache = tmp_path / "cache"
    async with bench(cache, tmp_path) as lab:
        await lab.sandbox.prepare(*lab.module(NOOP))
    entries = [trio.Path(entry) for entry in _entries(cache)]
    assert len(entries) == 1
    _spoil(Path(entries[0]), how)
    async with bench(cache, tmp_path) as lab:
        assert (await lab.sandbox.run(lab.order(NOOP))).outcome is Outcome.COMPLETED
        assert lab.sandbox.stats()["modules_compiled"] == 1


async def test_compiled_code_of_another_key_is_never_loaded(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for key in (KEY, b"somebody else's key, not this one"):
        async with bench(cache, tmp_path, cache_key=key) as lab:
            await lab.sandbox.prepare(*lab.module(NOOP))
            assert lab.sandbox.stats()["modules_compiled"] == 1


async def test_an_entry_under_another_name_is_never_loaded(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    async with bench(cache, tmp_path) as lab:
        await lab.sandbox.prepare(*lab.module(NOOP))
        first = set(_entries(cache))
        await lab.sandbox.prepare(*lab.module(guests.TRAP))
        second = set(_entries(cache)) - first
    first.pop().rename(second.pop())
    async with bench(cache, tmp_path) as lab:
        assert (await lab.sandbox.run(lab.order(guests.TRAP))).outcome is Outcome.TRAPPED
        assert lab.sandbox.stats()["modules_compiled"] == 1


async def test_the_cache_stays_within_its_bytes_and_keeps_what_was_used_last(
    tmp_path: Path,
) -> None:
    cache, most = tmp_path / "cache", 60_000
    async with bench(cache, tmp_path, cache_bytes_max=most) as lab:
        for code in range(6):
            await lab.sandbox.prepare(*lab.module(guests.exiting(code)))
            assert sum(entry.stat().st_size for entry in _entries(cache)) <= most
        assert 0 < lab.sandbox.stats()["cache_entries"] < 6
    async with bench(cache, tmp_path, cache_bytes_max=most) as lab:
        assert (await lab.sandbox.prepare(*lab.module(guests.exiting(5)))).cached


async def test_the_cache_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    os.makedirs(cache / "compiled", mode=0o777)
    async with bench(cache, tmp_path) as lab:
        await lab.sandbox.prepare(*lab.module(NOOP))
    assert {path.stat().st_mode & 0o777 for path in (cache / "compiled", cache / "runs")} == {0o700}
    assert {entry.stat().st_mode & 0o777 for entry in _entries(cache)} == {0o600}


def _entries(cache: Path) -> list[Path]:
    return list((cache / "compiled").glob("*.cwasm"))


# -- the header parser ----------------------------------------------------------------------
_SEEDS = [assemble(text) for text in (guests.NOOP, guests.ECHO, guests.TABLE_GROWER, guests.RANDOM)]
_ENGINE = wasmtime.Engine()
NAMED = {*abi.REFUSALS, "accepted"}


def _outcome(data: bytes) -> str:
    try:
        header.parse(data)
    except abi.Refusal as refusal:
        return refusal.code if refusal.code in abi.REFUSALS else "a refusal without a name"
    return "accepted"


async def test_mutants_that_policy_lets_through_end_in_an_outcome_or_a_refusal(
    lab: Bench,
) -> None:
    dice = random.Random(7)
    ended: list[str] = []
    with trio.fail_after(90):
        while len(ended) < 12:
            data = bytearray(dice.choice(_SEEDS))
            for _ in range(dice.randint(1, 3)):
                data[dice.randrange(8, len(data))] = dice.randrange(256)
            if _outcome(bytes(data)) != "accepted":
                continue
            order = lab.order(bytes(data), limits=guests.limits(fuel_max=10**6, wall_ms_max=1_000))
            try:
                ended.append((await lab.sandbox.run(order)).outcome.value)
            except Rejection as rejection:
                ended.append(rejection.code)
    assert set(ended) <= NAMED | {outcome.value for outcome in Outcome}
    assert (await lab.sandbox.run(lab.order(guests.NOOP))).outcome is Outcome.COMPLETED


@settings(max_examples=1_000, deadline=None)
@given(
    base=st.sampled_from(_SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255), st.integers(0, 2))),
    cut=st.integers(0, 4_000),
)
def test_mutated_modules_are_accepted_or_refused_by_name(
    base: bytes, edits: list[tuple[int, int, int]], cut: int
) -> None:
    data = bytearray(base)
    for at, value, how in edits:
        at %= len(data)
        if how == 0:
            data[at] = value
        elif how == 1:
            data.insert(at, value)
        elif len(data) > 1:
            del data[at]
    assert _outcome(bytes(data if cut >= len(data) else data[:cut])) in NAMED


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_accepted_or_refused_by_name(body: bytes) -> None:
    assert {_outcome(MAGIC + body), _outcome(body)} <= NAMED


@pytest.mark.parametrize("data", _SEEDS)
def test_a_good_module_cut_short_is_refused_unless_only_its_names_are_lost(data: bytes) -> None:
    assert _outcome(data) == "accepted"
    accepted = [size for size in range(len(data)) if _outcome(data[:size]) == "accepted"]
    assert len(accepted) <= 1
    for size in accepted:
        wasmtime.Module.validate(_ENGINE, data[:size])


# -- the contract -----------------------------------------------------------------------------
def test_the_allow_list_and_the_numbers_are_those_of_the_contract() -> None:
    contract = json.loads((PROTOCOL / "imports.json").read_text())
    pairs = {(module, name) for module, names in contract["modules"].items() for name in names}
    assert pairs == abi.IMPORTS
    assert contract["abi"] == abi.ABI
    assert contract["random_domain"].encode() == abi.RANDOM_DOMAIN
    assert contract["argv0"] == abi.ARGV0
    assert contract["script_argument"] == abi.SCRIPT_ARGUMENT
    for name in (
        "clock_start_ns",
        "clock_step_ns",
        "random_bytes_max",
        "poll_subscriptions_max",
        "host_call_fuel",
        "random_byte_fuel",
    ):
        assert contract[name] == getattr(abi, name.upper())
    for name, value in contract["limits"].items():
        assert value == getattr(limits, name.upper())


def test_the_refusals_are_those_of_the_contract() -> None:
    contract = json.loads((PROTOCOL / "refusals.json").read_text())
    assert contract["refusals"] == abi.REFUSALS


def test_every_refusal_is_reached_by_a_test() -> None:
    reached = {code for _, code in REFUSED.values()}
    reached |= {"module_too_large", "digest_mismatch", "compile_timeout", "compile_out_of_memory"}
    assert set(abi.REFUSALS) - reached == {"compile_crashed"}
