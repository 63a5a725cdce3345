from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ledger_samples import WORKER, spec

from zerostate_node.errors import Refused
from zerostate_node.ledger.journal import HEARD_BYTES_MAX, SqliteJournal
from zerostate_node.ports.ledger import OwedReceipt


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    path = tmp_path / "journal.sqlite"
    async with SqliteJournal(path, heard_max=5, acks_max=3) as opened:
        yield opened


def owing(number: int, owner: str = "owner", output: bytes | None = b"out") -> OwedReceipt:
    return OwedReceipt(
        task_id=spec(number).task_id,
        fence=number + 1,
        owner=owner,
        envelope=b"signed %d" % number,
        output_inline=output,
        finished_ms=1000 - number,
    )


async def test_owed_receipts_come_back_oldest_first_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    receipts = [owing(0), owing(1, output=None), owing(2, owner=WORKER)]
    async with SqliteJournal(path) as journal:
        await journal.owe(receipts)
        await journal.owe(receipts[:1])  # asked again after doubt
    async with SqliteJournal(path) as journal:
        assert await journal.owed() == receipts[::-1]
        assert await journal.owed(WORKER) == [receipts[2]]
        assert await journal.owed("nobody") == []


async def test_an_answered_receipt_is_owed_no_more_and_its_voucher_is_kept(
    journal: SqliteJournal,
) -> None:
    first, second, other = owing(0), owing(1), owing(2, owner=WORKER)
    await journal.owe([first, second, other])
    await journal.paid(
        [
            (first.task_id, first.fence, "settled", b"voucher 1"),
            (second.task_id, second.fence, "settled", b"voucher 2"),
        ]
    )
    await journal.paid([(other.task_id, other.fence, "stale", b"")])
    assert await journal.owed() == []
    assert await journal.voucher("owner") == b"voucher 2"
    assert await journal.voucher(WORKER) is None
    assert await journal.verdict(other.task_id, other.fence) == "stale"


async def test_an_answer_to_another_fence_pays_nothing(journal: SqliteJournal) -> None:
    receipt = owing(0)
    await journal.owe([receipt])
    await journal.paid([(receipt.task_id, receipt.fence + 1, "settled", b"v")])
    assert await journal.owed() == [receipt]
    assert await journal.voucher("owner") is None


async def test_an_answer_that_the_protocol_does_not_have_is_refused_alone(
    journal: SqliteJournal,
) -> None:
    good, bad = owing(0), owing(1)
    await journal.owe([good, bad])
    with pytest.raises(Refused):
        await journal.paid(
            [(bad.task_id, bad.fence, "sold", b""), (good.task_id, good.fence, "settled", b"")]
        )
    assert await journal.owed() == [bad]


async def test_answers_are_bounded_and_the_newest_stay(
    journal: SqliteJournal, tmp_path: Path
) -> None:
    receipts = [owing(number) for number in range(10)]
    await journal.owe(receipts)
    for receipt in receipts:
        await journal.paid([(receipt.task_id, receipt.fence, "settled", b"v")])
    assert await journal.verdict(receipts[0].task_id, receipts[0].fence) is None
    assert await journal.verdict(receipts[9].task_id, receipts[9].fence) == "settled"
    with sqlite3.connect(tmp_path / "journal.sqlite") as conn:
        assert conn.execute("SELECT count(*) FROM acks").fetchone() == (3,)


async def test_heard_things_are_recalled_until_they_expire(journal: SqliteJournal) -> None:
    await journal.remember("nodes", [("a", b"1", 100), ("b", b"2", 200)])
    await journal.remember("manifests", [("a", b"m", 100)])
    await journal.remember("nodes", [("a", b"1 again", 300)])
    assert await journal.recall("nodes", 150) == [("a", b"1 again", 300), ("b", b"2", 200)]
    assert await journal.recall("nodes", 200) == [("a", b"1 again", 300)]
    assert await journal.recall("manifests", 0) == [("a", b"m", 100)]
    await journal.forget("nodes", ["a", "never heard"])
    assert await journal.recall("nodes", 0) == [("b", b"2", 200)]


async def test_heard_things_are_bounded_and_those_that_expire_first_go(
    journal: SqliteJournal,
) -> None:
    items = [(str(number), b"x", 100 + number) for number in range(20)]
    await journal.remember("manifests", items)
    await journal.remember("nodes", items[:2])
    kept = await journal.recall("manifests", 0)
    assert [key for key, _, _ in kept] == ["19", "18", "17", "16", "15"]
    assert len(await journal.recall("nodes", 0)) == 2


async def test_a_kind_or_size_that_is_not_kept_is_refused(journal: SqliteJournal) -> None:
    with pytest.raises(Refused):
        await journal.remember("gossip", [("a", b"1", 1)])
    with pytest.raises(Refused):
        await journal.remember("nodes", [("a", b"1" * (HEARD_BYTES_MAX + 1), 1)])
    with pytest.raises(Refused):
        await journal.recall("gossip", 0)
    assert await journal.recall("nodes", 0) == []


async def test_nothing_to_write_is_no_commit(journal: SqliteJournal) -> None:
    await journal.owe([])
    await journal.paid([])
    await journal.remember("nodes", [])
    await journal.forget("nodes", [])
    assert await journal.owed() == []
