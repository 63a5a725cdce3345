"""The pool: logs as they are written, precise cancelling, deaths that cost no more than a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sandbox_guests as guests
import trio
from sandbox_guests import Bench, alive, bench, limits, until

from zerostate_node.errors import Unavailable
from zerostate_node.ports.sandbox import RunResult, Sandbox
from zerostate_node.sandbox.limits import SandboxSettings
from zerostate_node.sandbox.pool import PooledSandbox
from zerostate_node.wire.messages import Outcome


async def test_a_log_is_heard_while_the_guest_still_runs(lab: Bench) -> None:
    heard: list[str] = []
    order = lab.order(guests.LOG_AND_SPIN, limits=limits(fuel_max=10**14, wall_ms_max=60_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.sandbox.run, order, heard.append)
        await until(lambda: heard)
        assert heard == ["first\n"]
        nursery.cancel_scope.cancel()


async def test_a_log_ends_with_its_unfinished_line(lab: Bench) -> None:
    heard: list[str] = []
    order = lab.order(guests.LOG_AND_SPIN, limits=limits(fuel_max=10**6))
    result = await lab.sandbox.run(order, heard.append)
    assert (result.outcome, "".join(heard)) == (Outcome.OUT_OF_FUEL, "first\nsecon")


async def test_a_log_that_is_not_text_is_heard_as_replacement_characters(lab: Bench) -> None:
    heard: list[str] = []
    await lab.sandbox.run(lab.order(guests.LOG_BYTES), heard.append)
    assert heard == ["grün � \x1b[31m\n"]


async def test_a_flooded_log_is_heard_up_to_its_limit_in_small_pieces(lab: Bench) -> None:
    heard: list[str] = []
    result = await lab.sandbox.run(lab.order(guests.LOG_FLOOD), heard.append)
    assert result.outcome is Outcome.OUTPUT_TOO_LARGE
    assert sum(map(len, heard)) == 256 * 1024
    assert max(map(len, heard)) <= 8 * 1024


async def test_cancelling_a_run_kills_its_process_and_no_other(
    shared_cache: Path, tmp_path: Path
) -> None:
    results: list[RunResult] = []
    async with bench(shared_cache, tmp_path, slots=2) as lab:
        await until(lambda: lab.sandbox.stats()["workers_started"] == 3)
        endless = lab.order(guests.LOG_AND_SPIN, limits=limits(fuel_max=10**14, wall_ms_max=60_000))
        working = lab.order(guests.LOG_AND_WORK, limits=limits(fuel_max=10**12, wall_ms_max=60_000))

        async def work() -> None:
            results.append(await lab.sandbox.run(working))

        heard: list[str] = []
        before = set(lab.sandbox.stats()["worker_pids"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            with trio.CancelScope() as scope:

                def hear(text: str) -> None:
                    heard.append(text)
                    scope.cancel()

                await lab.sandbox.run(endless, hear)
            gone = [pid for pid in before if not alive(pid)]
            assert (scope.cancelled_caught, len(gone)) == (True, 1)
        assert [(r.outcome, r.stdout) for r in results] == [(Outcome.COMPLETED, b"done")]
        await until(lambda: lab.sandbox.stats()["workers_started"] == 4)


async def test_a_worker_that_crashes_is_a_trap_and_the_pool_goes_on(lab: Bench) -> None:
    results: list[RunResult] = []
    order = lab.order(guests.LOG_AND_SPIN, limits=limits(fuel_max=10**14, wall_ms_max=60_000))
    heard: list[str] = []

    async def run() -> None:
        results.append(await lab.sandbox.run(order, heard.append))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: heard)
        for pid in lab.sandbox.stats()["worker_pids"]:
            os.kill(pid, signal.SIGABRT)
    assert results[0].outcome is Outcome.TRAPPED
    assert "SIGABRT" in results[0].detail
    assert (await lab.sandbox.run(lab.order(guests.NOOP))).outcome is Outcome.COMPLETED
    assert lab.sandbox.stats()["workers_died"] >= 1


async def test_a_run_whose_worker_was_killed_from_outside_is_made_again(lab: Bench) -> None:
    order = lab.order(guests.LOG_AND_WORK, limits=limits(fuel_max=10**12, wall_ms_max=60_000))
    killed: list[int] = []

    def kill_once(_text: str) -> None:
        if not killed:
            killed.extend(lab.sandbox.stats()["worker_pids"])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    result = await lab.sandbox.run(order, kill_once)
    assert (result.outcome, result.stdout, bool(killed)) == (Outcome.COMPLETED, b"done", True)


async def test_a_worker_that_is_stopped_is_killed_after_the_limit(lab: Bench) -> None:
    order = lab.order(guests.LOG_AND_SPIN, limits=limits(fuel_max=10**14, wall_ms_max=1_000))
    heard: list[str] = []

    def freeze(text: str) -> None:
        heard.append(text)
        for pid in lab.sandbox.stats()["worker_pids"]:
            os.kill(pid, signal.SIGSTOP)

    before = set(lab.sandbox.stats()["worker_pids"])
    begun = trio.current_time()
    result = await lab.sandbox.run(order, freeze)
    assert (result.outcome, result.fuel_used) == (Outcome.TIMED_OUT, 10**14)
    assert trio.current_time() - begun < 1 + 1
    for pid in before:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)
    assert len([pid for pid in before if not alive(pid)]) == 1


async def test_a_worker_is_replaced_after_its_share_of_runs(
    shared_cache: Path, tmp_path: Path
) -> None:
    async with bench(shared_cache, tmp_path, recycle_runs_max=3) as lab:
        before = set(lab.sandbox.stats()["worker_pids"])
        for _ in range(12):
            result = await lab.sandbox.run(lab.order(guests.NOOP))
            assert result.outcome is Outcome.COMPLETED
        assert lab.sandbox.stats()["workers_recycled"] >= 3
        assert not before & set(lab.sandbox.stats()["worker_pids"])


async def test_runs_beyond_the_slots_wait_their_turn(lab: Bench) -> None:
    done: list[RunResult] = []

    async def run(data: bytes) -> None:
        done.append(await lab.sandbox.run(lab.order(guests.ECHO, stdin=data)))

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(run, b"%d" % i)
    assert sorted(int(bytes(r.stdout)) for r in done if isinstance(r.stdout, bytes)) == list(
        range(20)
    )
    assert lab.sandbox.stats()["busy"] == 0


async def test_the_same_work_gives_the_same_output_and_fuel_in_any_process(
    shared_cache: Path, tmp_path: Path
) -> None:
    seen = set()
    for _ in range(2):
        async with bench(shared_cache, tmp_path) as lab:
            for source in (guests.RANDOM, guests.CLOCK, guests.SLEEP, guests.LOOP, guests.FLOOD):
                for _ in range(3):
                    order = lab.order(source, limits=limits(fuel_max=10**7))
                    result = await lab.sandbox.run(order)
                    facts = (result.outcome, result.stdout, result.fuel_used)
                    seen.add((order.module, *facts, result.memory_peak_bytes, result.detail))
    assert len(seen) == 5


async def test_a_worker_has_no_secrets_no_paths_and_no_way_up(lab: Bench) -> None:
    await until(lambda: lab.sandbox.stats()["workers_started"] == 2)
    for pid in lab.sandbox.stats()["worker_pids"]:
        status = _read(f"/proc/{pid}/status")
        assert "NoNewPrivs:\t1" in status
        assert os.getsid(pid) == pid
        bounds = _read(f"/proc/{pid}/limits")
        assert [line.split()[4] for line in bounds.splitlines() if "core" in line] == ["0"]
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        regular = [name for name in opened if name.startswith("/") and "memfd" not in name]
        assert set(regular) <= {"/dev/null"}, regular
        assert sum(name.startswith("socket:") for name in opened) == 1
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


async def test_a_pool_whose_workers_cannot_start_says_so_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("zerostate_node.sandbox.pool._BACKOFF_S", (0.01, 0.01))
    settings = SandboxSettings(slots=1, cache_dir=tmp_path, cache_key=b"k" * 32)
    with trio.fail_after(20), pytest.raises(BaseExceptionGroup) as broken:
        async with trio.open_nursery() as nursery:
            await nursery.start(PooledSandbox(settings).serve)
    assert broken.value.subgroup(Unavailable) is not None


def _read(path: str) -> str:
    return Path(path).read_text()


def test_workers_die_with_a_node_that_is_killed(shared_cache: Path) -> None:
    code = f"""
import sys, trio
from pathlib import Path
sys.path[:0] = {sys.path!r}
from zerostate_node.sandbox.limits import SandboxSettings
from zerostate_node.sandbox.pool import PooledSandbox
async def main():
    settings = SandboxSettings(slots=1, cache_dir=Path({str(shared_cache)!r}), cache_key=b"k" * 32)
    sandbox = PooledSandbox(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(sandbox.serve)
        while sandbox.stats()["workers_started"] < 2:
            await trio.sleep(0.01)
        print("PIDS", *sandbox.stats()["worker_pids"], flush=True)
trio.run(main)
"""
    node = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    with node.stdout:
        line = next(line for line in node.stdout if line.startswith("PIDS"))
    pids = [int(pid) for pid in line.split()[1:]]
    assert [alive(pid) for pid in pids] == [True, True]
    node.kill()
    node.wait()

    async def gone() -> None:
        await until(lambda: not any(alive(pid) for pid in pids))

    trio.run(gone)


def test_the_pool_is_a_sandbox() -> None:
    made: Sandbox = PooledSandbox(SandboxSettings(cache_dir=Path("/nowhere"), cache_key=b"k" * 32))
    assert made.engine.startswith("wasmtime-")
    assert made.engine.endswith("+guest/1")
    assert made.slots >= 1
