"""The peer book in a small SQLite file of its own."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from pathlib import Path

import structlog
import trio

from zerostate_node.errors import ZeroStateError
from zerostate_node.mesh.addrs import parse_addr
from zerostate_node.mesh.book import (
    ADDRS_PER_PEER_MAX,
    BANS_MAX,
    PEERS_MAX,
    KnownPeer,
    MemoryBook,
)
from zerostate_node.units import PeerId
from zerostate_node.wire.ids import public_key_of

log = structlog.get_logger()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS peers (
    peer TEXT PRIMARY KEY,
    addrs TEXT NOT NULL,
    learned_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    failures INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS bans (peer TEXT PRIMARY KEY, until_ms INTEGER NOT NULL) STRICT;
"""


class SqliteBook(MemoryBook):
    """
    A peer book that survives restarts.

    Reads come from memory; `flush` writes what changed in a thread. Losing the last few seconds
    costs nothing, so the file is not synced. A file that cannot be read is moved aside.
    """

    def __init__(self, path: Path, *, now_ms: int) -> None:
        super().__init__()
        self._path = path
        self._dirty: set[PeerId] = set()
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        try:
            self._open(now_ms)
        except (sqlite3.DatabaseError, ZeroStateError, ValueError, TypeError) as error:
            self._move_aside(error)
            self._peers.clear()
            self._bans.clear()
            try:
                self._open(now_ms)
            except (sqlite3.Error, OSError) as again:
                # A book that only remembers until exit is better than no node.
                log.warning("peer book kept in memory only", path=str(path), error=str(again))
                self._db = None
        self._dirty.clear()

    def _open(self, now_ms: int) -> None:
        self._db = sqlite3.connect(self._path, check_same_thread=False, timeout=2.0)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(_SCHEMA)
        rows = self._db.execute(
            "SELECT peer, addrs, learned_ms, seen_ms, failures FROM peers"
            " ORDER BY seen_ms DESC LIMIT ?",
            (PEERS_MAX,),
        )
        for peer, addrs, learned_ms, seen_ms, failures in rows:
            public_key_of(peer)
            texts = tuple(str(text) for text in json.loads(addrs))[:ADDRS_PER_PEER_MAX]
            for text in texts:
                parse_addr(text)
            self._peers[PeerId(peer)] = KnownPeer(
                peer=PeerId(peer),
                addrs=texts,
                learned_ms=learned_ms,
                seen_ms=min(seen_ms, now_ms),
                failures=failures,
            )
        for peer, until_ms in self._db.execute(
            "SELECT peer, until_ms FROM bans LIMIT ?", (BANS_MAX,)
        ):
            self._bans[PeerId(peer)] = until_ms

    def _move_aside(self, error: Exception) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        aside = self._path.with_name(self._path.name + ".corrupt")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                source = self._path.with_name(self._path.name + suffix)
                source.replace(aside.with_name(aside.name + suffix))
        log.warning("peer book unreadable, moved aside", moved_to=str(aside), error=str(error))

    def _touch(self, peer: PeerId) -> None:
        self._dirty.add(peer)

    def _write(self, pages: list[tuple[PeerId, KnownPeer | None, int | None]]) -> None:
        with self._lock:
            if self._db is None:
                return
            try:
                with self._db:
                    for peer, page, until_ms in pages:
                        if page is None:
                            self._db.execute("DELETE FROM peers WHERE peer = ?", (peer,))
                        else:
                            self._db.execute(
                                "INSERT OR REPLACE INTO peers VALUES (?, ?, ?, ?, ?)",
                                (
                                    peer,
                                    json.dumps(page.addrs),
                                    page.learned_ms,
                                    page.seen_ms,
                                    page.failures,
                                ),
                            )
                        if until_ms is None:
                            self._db.execute("DELETE FROM bans WHERE peer = ?", (peer,))
                        else:
                            self._db.execute(
                                "INSERT OR REPLACE INTO bans VALUES (?, ?)", (peer, until_ms)
                            )
            except sqlite3.Error as error:
                # A full disk must not stop the node: what is in the book are hints.
                log.warning("peer book not written", path=str(self._path), error=str(error))

    def _take_dirty(self) -> list[tuple[PeerId, KnownPeer | None, int | None]]:
        dirty, self._dirty = self._dirty, set()
        return [(peer, self._peers.get(peer), self._bans.get(peer)) for peer in dirty]

    async def flush(self) -> None:
        """Write down what changed, in a thread."""
        if self._dirty:
            await trio.to_thread.run_sync(self._write, self._take_dirty())

    def close(self) -> None:
        """Write down what changed and let go of the file."""
        self._write(self._take_dirty())
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
