from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zerostate_node.mesh import book as book_module
from zerostate_node.mesh.book import ADDRS_PER_PEER_MAX, MemoryBook
from zerostate_node.mesh.book_sqlite import SqliteBook
from zerostate_node.units import PeerId
from zerostate_node.wire.ids import peer_id_of

A = "/ip4/192.0.2.1/tcp/4001"
B = "/ip4/192.0.2.2/tcp/4001"
C = "/ip4/192.0.2.3/tcp/4001"


def peer(number: int) -> PeerId:
    return peer_id_of(number.to_bytes(32, "big"))


def test_what_worked_stays_in_front_of_hearsay() -> None:
    book = MemoryBook()
    book.remember(peer(1), [A, B], now_ms=1)
    book.reached(peer(1), B, now_ms=2)
    book.remember(peer(1), [C], now_ms=3)
    page = book.get(peer(1))
    assert page is not None
    assert page.addrs == (B, C, A)
    assert page.seen_ms == 2


def test_addresses_of_one_peer_are_bounded() -> None:
    book = MemoryBook()
    for number in range(50):
        book.remember(peer(1), [f"/ip4/192.0.2.{number}/tcp/1"], now_ms=number)
    page = book.get(peer(1))
    assert page is not None
    assert len(page.addrs) == ADDRS_PER_PEER_MAX
    assert page.addrs[0] == "/ip4/192.0.2.49/tcp/1"


def test_a_flood_of_invented_peers_does_not_push_out_those_we_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(book_module, "PEERS_MAX", 20)
    book = MemoryBook()
    for number in range(10):
        book.remember(peer(number), [A], now_ms=1)
        book.reached(peer(number), A, now_ms=2)
    for number in range(100, 300):
        book.remember(peer(number), [B], now_ms=3)
    kept = {page.peer for page in book.known()}
    assert len(kept) == 20
    assert {peer(number) for number in range(10)} <= kept


def test_failures_count_until_it_works_again() -> None:
    book = MemoryBook()
    book.remember(peer(1), [A], now_ms=1)
    book.failed(peer(1))
    book.failed(peer(1))
    book.failed(peer(2))  # unknown: no page is made for it
    page = book.get(peer(1))
    assert page is not None
    assert page.failures == 2
    assert book.get(peer(2)) is None
    book.reached(peer(1), None, now_ms=5)
    page = book.get(peer(1))
    assert page is not None
    assert page.failures == 0


def test_a_ban_ends_by_itself_and_never_gets_shorter() -> None:
    book = MemoryBook()
    book.ban(peer(1), until_ms=1000)
    book.ban(peer(1), until_ms=500)
    assert book.banned(peer(1), now_ms=999)
    assert not book.banned(peer(1), now_ms=1000)
    assert not book.banned(peer(2), now_ms=0)


async def test_the_file_keeps_pages_and_bans(tmp_path: Path) -> None:
    path = tmp_path / "peers.sqlite"
    book = SqliteBook(path, now_ms=1)
    book.remember(peer(1), [A, B], now_ms=1)
    book.reached(peer(1), B, now_ms=2)
    book.failed(peer(1))
    book.ban(peer(2), until_ms=10_000)
    await book.flush()
    book.remember(peer(3), [C], now_ms=3)
    book.close()
    again = SqliteBook(path, now_ms=5)
    assert again.get(peer(1)) == book.get(peer(1))
    assert again.get(peer(3)) == book.get(peer(3))
    assert again.banned(peer(2), now_ms=9_999)
    assert not again.banned(peer(2), now_ms=10_000)
    again.close()
    assert not SqliteBook(path, now_ms=5).banned(peer(2), now_ms=0)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "foreign schema", "hostile rows"])
def test_a_file_that_cannot_be_read_is_moved_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "peers.sqlite"
    book = SqliteBook(path, now_ms=1)
    for number in range(200):
        book.remember(peer(number), [A], now_ms=1)
    book.close()
    if damage == "garbage":
        path.write_bytes(b"not a database at all" * 1000)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign schema":
        path.unlink()
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE peers (something TEXT)")
    else:
        with sqlite3.connect(path) as db:
            db.execute("UPDATE peers SET addrs = '[\"/etc/passwd\"]'")
    fresh = SqliteBook(path, now_ms=1)
    assert fresh.known() == []
    assert (tmp_path / "peers.sqlite.corrupt").exists()
    fresh.remember(peer(1), [A], now_ms=1)
    fresh.close()
    reopened = SqliteBook(path, now_ms=1)
    assert [page.peer for page in reopened.known()] == [peer(1)]
    reopened.close()


def test_a_book_that_cannot_be_written_still_works(tmp_path: Path) -> None:
    book = SqliteBook(tmp_path / "missing" / "peers.sqlite", now_ms=1)
    book.remember(peer(1), [A], now_ms=1)
    assert book.get(peer(1)) is not None
    book.close()
