"""Group commit: durability, sharing, cancellation, and what happens when the disk says no."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from ledger_samples import T0, lease, opening, settling

from zerostate_node.errors import Refused, Unavailable
from zerostate_node.ledger import database, writer
from zerostate_node.ledger.sqlite import SqliteLedger

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ROOT = Path(__file__).resolve().parents[2]


def ledger_at(path: Path) -> SqliteLedger:
    return SqliteLedger(path / "ledger.sqlite", now_ms=lambda: T0)


def files_of(path: Path) -> list[Path]:
    return list(path.iterdir())


async def test_callers_that_wait_together_share_commits(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        before = ledger.stats()["commits"]

        async def ask(number: int) -> None:
            await ledger.commit([opening(number)])

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(ask, number)
        assert ledger.stats()["commits"] - before < 100
        assert (await ledger.counts())["open"] == 500


async def test_more_callers_than_the_queue_holds_all_get_their_answer(tmp_path: Path) -> None:
    callers = writer.REQUESTS_MAX + 300
    async with ledger_at(tmp_path) as ledger, trio.open_nursery() as nursery:
        for number in range(callers):
            nursery.start_soon(ledger.commit, [opening(number)])
    async with ledger_at(tmp_path) as ledger:
        assert (await ledger.counts())["open"] == callers


async def test_a_cancelled_caller_neither_hangs_nor_loses_its_write(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        request = opening()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_soon() -> None:
                    await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_soon)
                nursery.start_soon(ledger.commit, [request])
        await ledger.check()  # a later group: the earlier one is done
        assert await ledger.task(request.row.spec.task_id) is not None


async def test_a_closed_ledger_says_so_and_keeps_what_was_asked_before(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    await ledger.open()
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ledger.commit, [opening(number)])
        await trio.testing.wait_all_tasks_blocked()
        await ledger.aclose()
    await ledger.aclose()
    for asking in (ledger.commit([opening()]), ledger.live()):
        with pytest.raises(Unavailable) as caught:
            await asking
        assert caught.value.code == "closed"
    async with ledger_at(tmp_path) as again:
        assert (await again.counts())["open"] == 50


@pytest.mark.parametrize("lines", [1, 40, 400])
def test_every_acknowledged_write_is_there_after_kill_minus_nine(
    tmp_path: Path, lines: int
) -> None:
    path = tmp_path / "ledger.sqlite"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    child = subprocess.Popen(
        [sys.executable, str(SUPPORT / "ledger_crash_child.py"), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert child.stdout is not None
    acknowledged = [child.stdout.readline().decode().strip() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    acknowledged += [line for line in child.stdout.read().decode().split("\n") if len(line) == 26]
    child.wait()
    assert len(set(acknowledged)) >= lines

    async def reopen() -> None:
        async with SqliteLedger(path, now_ms=lambda: T0) as ledger:
            for task_id in acknowledged:
                task = await ledger.task(task_id)
                assert task is not None
                assert task.phase == "settled"
                assert await ledger.receipt(task_id) is not None
            live = len(await ledger.live())
            counts = await ledger.counts()
            assert counts.get("open", 0) + counts.get("leased", 0) == live
            assert counts["completed"] >= len(acknowledged)

    trio.run(reopen)
    with sqlite3.connect(path) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_a_full_disk_is_unavailable_and_the_ledger_goes_on_when_there_is_space(
    tmp_path: Path,
) -> None:
    # RLIMIT_FSIZE makes write() fail like a full disk does, for this process alone.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with ledger_at(tmp_path) as ledger:
        kept = opening(1)
        await ledger.commit([kept])
        size = max(os.stat(path).st_size for path in files_of(tmp_path))
        failed = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))
        try:
            for number in range(2, 50):
                request = opening(number)
                try:
                    await ledger.commit([request])
                except Unavailable as error:
                    failed.append((request, error))
                    break
            assert failed, "the limit had no effect"
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
            with pytest.raises(Unavailable):
                await ledger.check()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        request, failure = failed[0]
        assert failure.code in ("disk_error", "disk_full")
        assert await ledger.task(request.row.spec.task_id) is None
        await ledger.commit([request])
        assert await ledger.task(kept.row.spec.task_id) is not None
        assert ledger.stats()["failures"] >= 2


async def test_another_process_with_the_write_lock_makes_it_unavailable_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    async with ledger_at(tmp_path) as ledger:
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            await ledger.check()
        assert caught.value.code == "ledger_locked"
        other.execute("ROLLBACK")
        other.close()
        await ledger.check()


async def test_a_file_that_lost_acknowledged_commits_is_never_written_again(
    tmp_path: Path,
) -> None:
    """The disk lied: after an error the file is older than what this process acknowledged."""
    async with ledger_at(tmp_path) as ledger:
        await ledger.commit([opening(1)])
        await ledger.commit([opening(2)])
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        other.execute("UPDATE commit_mark SET mark = mark - 1")
        other.execute("ALTER TABLE specs RENAME TO gone")  # the error: the next open fails
        with pytest.raises(Unavailable):
            await ledger.commit([opening(3)])
        other.execute("ALTER TABLE gone RENAME TO specs")
        other.close()
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await ledger.check()
            assert caught.value.code == "lost_commits"


async def test_each_caller_of_a_failed_group_gets_an_error_of_its_own(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    async with ledger_at(tmp_path) as ledger:
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        other.execute("ALTER TABLE specs RENAME TO gone")

        async def ask(number: int) -> None:
            try:
                await ledger.commit([opening(number)])
            except Unavailable as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ask, number)
        other.execute("ALTER TABLE gone RENAME TO specs")
        other.close()
        assert len({id(error) for error in errors}) == 10
        await ledger.check()
        assert await ledger.counts() == {}


async def test_the_wal_is_moved_into_the_database_while_the_ledger_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_COMMITS", 20)
    async with ledger_at(tmp_path) as ledger:
        for number in range(200):
            request = opening(number)
            task_id = request.row.spec.task_id
            await ledger.commit([request, lease(task_id, 1), settling(task_id, 1)])
        wal = (tmp_path / "ledger.sqlite-wal").stat().st_size
        # 200 commits of ten pages or so would be 8 MB of WAL without checkpoints
        assert wal < 2_000_000
        assert (tmp_path / "ledger.sqlite").stat().st_size > 200 * 100


async def test_the_database_is_private_and_synchronous(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await ledger.commit([opening()])
        for path in files_of(tmp_path):
            assert os.stat(path).st_mode & 0o077 == 0, path
        conn = database.connect(tmp_path / "ledger.sqlite")
        assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        conn.close()


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with ledger_at(tmp_path):
        conn = database.connect(tmp_path / "ledger.sqlite", read_only=True)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            conn.execute("DELETE FROM tasks")
        conn.close()


async def test_a_spec_that_was_damaged_on_disk_is_named(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        request = opening()
        await ledger.commit([request])
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        other.execute("UPDATE specs SET spec = x'c1'")
        other.close()
        with pytest.raises(Unavailable, match=request.row.spec.task_id) as caught:
            await ledger.live()
        assert caught.value.code == "corrupt"


async def test_a_refusal_is_a_value_and_does_not_stop_the_writer(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        (answer,) = await ledger.commit([lease("0" * 26, 1)])
        assert isinstance(answer, Refused)
        assert ledger.stats()["failures"] == 0


@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=30..32",
        "fdatasync:error=EIO:when=30+3",
        "pwrite64:error=ENOSPC:when=60..90",
        "pwrite64:error=EIO:when=60",
    ],
)
def test_a_disk_that_fails_in_the_middle_loses_nothing_that_was_acknowledged(
    tmp_path: Path, fault: str
) -> None:
    if not can_trace():
        pytest.skip("strace cannot trace here")
    path = tmp_path / "ledger.sqlite"
    injection = ["-f", "-qq", "-o", os.devnull, "-e", f"inject={fault}"]
    child = subprocess.run(
        ["strace", *injection, sys.executable, str(SUPPORT / "ledger_fault_child.py"), str(path)],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{SUPPORT}"},
        timeout=60,
        check=False,
    )
    lines = [line.split() for line in child.stdout.decode().splitlines()]
    assert len(lines) == 40, child.stderr.decode()[-2000:]
    failed = {code for code, _ in lines if code != "ok"}
    assert failed, "the fault had no effect"
    assert failed <= {"disk_error", "disk_full"}
    acknowledged = [task_id for code, task_id in lines if code == "ok"]
    assert acknowledged

    async def reopen() -> None:
        async with SqliteLedger(path, now_ms=lambda: T0) as ledger:
            there = {task.spec.task_id for task in await ledger.live()}
            assert set(acknowledged) <= there

    trio.run(reopen)


def can_trace() -> bool:
    strace = shutil.which("strace")
    if strace is None:
        return False
    tried = subprocess.run([strace, "-qq", "true"], capture_output=True, check=False)
    return tried.returncode == 0
