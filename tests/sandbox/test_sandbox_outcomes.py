"""Every way a guest can misbehave ends in its named outcome, in time."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import sandbox_guests as guests
import trio
from sandbox_guests import Bench, limits

from zerostate_node.sandbox import abi
from zerostate_node.units import MIB
from zerostate_node.wire.messages import Outcome

CASES: dict[str, tuple[str, Outcome, dict[str, int], str]] = {
    "endless loop": (guests.LOOP, Outcome.OUT_OF_FUEL, {"fuel_max": 10**7}, "fuel"),
    "endless loop by the clock": (
        guests.LOOP,
        Outcome.TIMED_OUT,
        {"fuel_max": 10**14, "wall_ms_max": 200},
        "wall-clock",
    ),
    "loop in the start function": (
        guests.START_LOOP,
        Outcome.TIMED_OUT,
        {"fuel_max": 10**14, "wall_ms_max": 200},
        "wall-clock",
    ),
    "recursion": (guests.RECURSE, Outcome.TRAPPED, {}, "stack overflow"),
    "unreachable": (guests.TRAP, Outcome.TRAPPED, {}, "unreachable"),
    "division by zero": (guests.DIVIDE, Outcome.TRAPPED, {}, "division by zero"),
    "out of bounds": (guests.OUT_OF_BOUNDS, Outcome.TRAPPED, {}, "out of bounds"),
    "memory bomb": (guests.MEMORY_BOMB, Outcome.OUT_OF_MEMORY, {}, "memory"),
    "memory from the start": (guests.MEMORY_FROM_START, Outcome.OUT_OF_MEMORY, {}, "memory"),
    "output flood": (guests.FLOOD, Outcome.OUTPUT_TOO_LARGE, {}, "output is over"),
    "output flood without end": (
        guests.FLOOD_FOR_EVER,
        Outcome.OUTPUT_TOO_LARGE,
        {"fuel_max": 10**6},
        "output is over",
    ),
    "output flood to disk": (
        guests.FLOOD,
        Outcome.OUTPUT_TOO_LARGE,
        {"stdout_bytes_max": 65 * MIB},
        "output is over",
    ),
    "log flood": (guests.LOG_FLOOD, Outcome.OUTPUT_TOO_LARGE, {}, "log is over"),
    "sleep without end": (
        guests.SLEEP_FOR_EVER,
        Outcome.OUT_OF_FUEL,
        {"fuel_max": 10**7},
        "fuel",
    ),
    "random flood": (guests.RANDOM_FLOOD, Outcome.OUT_OF_FUEL, {"fuel_max": 10**8}, "fuel"),
    "exit code 3": (guests.exiting(3), Outcome.TRAPPED, {}, "exit code 3"),
    "exit code out of range": (guests.exiting(200), Outcome.TRAPPED, {}, "exit code"),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_guest_that_misbehaves_ends_in_its_outcome_in_time(lab: Bench, name: str) -> None:
    source, outcome, bounds, words = CASES[name]
    order = lab.order(source, limits=limits(**bounds))
    await lab.sandbox.prepare(order.module, order.module_path)
    with trio.fail_after(order.limits.wall_ms_max / 1_000 + 1):
        result = await lab.sandbox.run(order)
    assert (result.outcome, words in result.detail) == (outcome, True), result
    assert 0 <= result.fuel_used <= order.limits.fuel_max
    assert (await lab.sandbox.run(lab.order(guests.NOOP))).outcome is Outcome.COMPLETED


async def test_an_exit_code_is_told(lab: Bench) -> None:
    result = await lab.sandbox.run(lab.order(guests.exiting(3)))
    assert (result.outcome, result.exit_code) == (Outcome.TRAPPED, 3)
    result = await lab.sandbox.run(lab.order(guests.exiting(0)))
    assert (result.outcome, result.exit_code, result.detail) == (Outcome.COMPLETED, 0, "")


async def test_a_guest_that_was_stopped_by_the_clock_is_charged_all_its_fuel(lab: Bench) -> None:
    bounds = limits(fuel_max=10**13, wall_ms_max=100)
    before = lab.sandbox.stats()["worker_pids"]
    result = await lab.sandbox.run(lab.order(guests.LOOP, limits=bounds))
    assert result.outcome is Outcome.TIMED_OUT
    assert result.fuel_used == 10**13
    # The worker stopped it and lives; the node did not have to kill.
    assert set(before) <= set(lab.sandbox.stats()["worker_pids"])
    assert result.detail == "the wall-clock limit passed"
    assert result.wall_us >= 100_000


async def test_a_refused_growth_alone_is_no_failure(lab: Bench) -> None:
    result = await lab.sandbox.run(lab.order(guests.MEMORY_POLITE))
    assert result.outcome is Outcome.COMPLETED
    assert result.memory_peak_bytes == 16 * MIB


async def test_a_table_does_not_grow_past_its_limit(lab: Bench) -> None:
    bounds = limits(table_elements_max=5_000)
    result = await lab.sandbox.run(lab.order(guests.TABLE_GROWER, limits=bounds))
    assert isinstance(result.stdout, bytes)
    assert struct.unpack("<I", result.stdout) == (4_010,)


@pytest.mark.parametrize("size", [0, 1, 70_000, 600_000])
async def test_what_goes_in_comes_out(lab: Bench, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    result = await lab.sandbox.run(lab.order(guests.ECHO, stdin=data))
    assert (result.outcome, result.stdout_bytes) == (Outcome.COMPLETED, size)
    if size <= 32 * 1024:
        assert result.stdout == data
        return
    assert not isinstance(result.stdout, bytes)
    assert result.stdout.read_bytes() == data
    assert result.stdout.parent.stat().st_mode & 0o777 == 0o700


async def test_input_from_a_file_and_a_large_output_limit_give_the_same_bytes(lab: Bench) -> None:
    data = b"line\n" * 50_000
    source = lab.folder / "input"
    source.write_bytes(data)
    bounds = limits(stdout_bytes_max=100 * MIB, fuel_max=10**12)
    result = await lab.sandbox.run(lab.order(guests.ECHO, stdin=source, limits=bounds))
    assert not isinstance(result.stdout, bytes)
    assert result.stdout.read_bytes() == data
    small = await lab.sandbox.run(lab.order(guests.ECHO, stdin=b"x", limits=bounds))
    assert small.stdout == b"x"
    left = list(result.stdout.parent.iterdir())
    assert left == [result.stdout]


async def test_output_of_exactly_the_limit_is_allowed_and_one_byte_more_is_not(lab: Bench) -> None:
    bounds = limits(stdout_bytes_max=1_000)
    exact = await lab.sandbox.run(lab.order(guests.ECHO, stdin=b"x" * 1_000, limits=bounds))
    assert (exact.outcome, exact.stdout_bytes) == (Outcome.COMPLETED, 1_000)
    over = await lab.sandbox.run(lab.order(guests.ECHO, stdin=b"x" * 1_001, limits=bounds))
    assert (over.outcome, over.stdout) == (Outcome.OUTPUT_TOO_LARGE, b"")


async def test_an_input_over_its_limit_is_refused_before_it_runs(lab: Bench) -> None:
    bounds = limits(stdin_bytes_max=10)
    result = await lab.sandbox.run(lab.order(guests.ECHO, stdin=b"x" * 11, limits=bounds))
    assert (result.outcome, result.fuel_used) == (Outcome.REFUSED, 0)


async def test_an_input_that_is_not_there_is_unfetchable(lab: Bench) -> None:
    result = await lab.sandbox.run(lab.order(guests.ECHO, stdin=lab.folder / "nowhere"))
    assert result.outcome is Outcome.UNFETCHABLE


async def test_the_clock_starts_where_the_contract_says_and_moves_by_its_step(lab: Bench) -> None:
    result = await lab.sandbox.run(lab.order(guests.CLOCK))
    assert isinstance(result.stdout, bytes)
    start, step = abi.CLOCK_START_NS, abi.CLOCK_STEP_NS
    assert struct.unpack("<3Q", result.stdout) == (start, start + step, 2 * step)


async def test_an_hour_of_sleep_takes_no_time_and_moves_the_guests_clock(lab: Bench) -> None:
    with trio.fail_after(5):
        result = await lab.sandbox.run(lab.order(guests.SLEEP))
    assert isinstance(result.stdout, bytes)
    events, now_ns = struct.unpack("<I4xQ", result.stdout)
    assert (result.outcome, events, now_ns) == (Outcome.COMPLETED, 1, 3_600 * 10**9)


async def test_randomness_is_a_function_of_the_seed(lab: Bench) -> None:
    first = await lab.sandbox.run(lab.order(guests.RANDOM))
    again = await lab.sandbox.run(lab.order(guests.RANDOM))
    other = await lab.sandbox.run(lab.order(guests.RANDOM, seed=b"s" * 32))
    assert isinstance(first.stdout, bytes)
    assert first.stdout == again.stdout != other.stdout
    assert first.stdout[:32] != first.stdout[32:]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (guests.RANDOM_TOO_MUCH, 28),
        (guests.RANDOM_OUTSIDE, 21),
        (guests.OPEN_ROOT, 8),
        (guests.ENVIRONMENT_SIZE, 0),
    ],
    ids=["more randomness than allowed", "randomness outside memory", "a file", "environment"],
)
async def test_what_is_not_offered_answers_with_an_error_number(
    lab: Bench, source: str, code: int
) -> None:
    result = await lab.sandbox.run(lab.order(source))
    assert result.exit_code == code


async def test_nan_bits_are_the_canonical_ones(lab: Bench) -> None:
    result = await lab.sandbox.run(lab.order(guests.NAN))
    assert result.stdout == struct.pack("<Q", 0x7FF8_0000_0000_0000)


async def test_arguments_follow_the_name_agent_and_the_script_takes_its_place(lab: Bench) -> None:
    script = lab.folder / "script"
    script.write_text("print('grün')")
    order = lab.order(guests.ARGS, args=("-c", "{script}", "tail"), script_path=script)
    result = await lab.sandbox.run(order)
    assert result.stdout == "agent\0-c\0print('grün')\0tail\0".encode()
    plain = await lab.sandbox.run(lab.order(guests.ARGS, args=("{script}",)))
    assert plain.stdout == b"agent\0{script}\0"


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        (b"\xff\xfe", ("{script}",), "UTF-8"),
        (b"a\0b", ("{script}",), "zero byte"),
        (b"x", ("-c",), "no argument"),
        (b"x" * (MIB + 1), ("{script}",), "larger"),
        (None, ("a\0b",), "zero byte"),
    ],
)
async def test_a_script_or_argument_that_cannot_be_one_is_refused(
    lab: Bench, script: bytes | None, args: tuple[str, ...], words: str
) -> None:
    choices: dict[str, Any] = {"args": args}
    if script is not None:
        choices["script_path"] = lab.folder / "script"
        choices["script_path"].write_bytes(script)
    result = await lab.sandbox.run(lab.order(guests.ARGS, **choices))
    assert (result.outcome, words in result.detail) == (Outcome.REFUSED, True), result
