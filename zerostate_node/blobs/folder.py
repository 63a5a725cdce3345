"""
The `Blobs` of one node: a folder, one file per blob, named by its digest.

    <root>/<2 hex>/<64 hex>    0400, complete and checked when it got its name
    <root>/tmp/                what is being written; emptied at start

A file gets its name by a rename after its bytes were hashed and fsynced, so a crash leaves nothing
half done under a digest. Files are reached through descriptors of their directories without
following symbolic links. All disk work happens in threads.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import structlog
import trio

from zerostate_node.blobs import disk
from zerostate_node.blobs.disk import Incoming
from zerostate_node.errors import NotFound, Refused, Unavailable
from zerostate_node.units import KIB, MIB
from zerostate_node.wire import ids
from zerostate_node.wire.messages import BlobRef

log = structlog.get_logger()

T = TypeVar("T")

THREADS = 8  # disk work at once
BUFFER_BYTES: Final = 1 * MIB  # of a stream held in memory before it goes to a thread
HASH_CHUNK_BYTES: Final = 256 * KIB


@dataclasses.dataclass(slots=True)
class _Entry:
    size_bytes: int
    checked: disk.Stamp | None = None


class FolderBlobs:
    """
    A folder of blobs (`ports.blobs.Blobs`).

    Blobs that nobody pins are removed, the least recently used first, when there are more than
    `bytes_max`. Pins are counted and live as long as the process: whoever needs a blob for a task
    that outlives a restart pins it again at start, before anything is put.

    Args:
        root: made with mode 0700 where it is missing.
        bytes_max: what unpinned and pinned blobs together may take, bytes.
    """

    def __init__(self, root: Path, *, bytes_max: int) -> None:
        self._root = root
        self._bytes_max = bytes_max
        # Many tiny blobs cost inodes and memory, not bytes: a file takes a block at least.
        self._blobs_max = max(1024, bytes_max // (4 * KIB))
        self._limiter = trio.CapacityLimiter(THREADS)
        self._lock = threading.Lock()  # guards the three fields below and removal of files
        self._entries: collections.OrderedDict[str, _Entry] = collections.OrderedDict()
        self._pins: collections.Counter[str] = collections.Counter()
        self._bytes = 0
        self._root_fd = -1
        self._tmp_fd = -1

    async def open(self) -> None:
        """Make or check the folder, drop unfinished writes, learn what is here. ConfigError."""
        await self._in_thread(self._open)

    async def aclose(self) -> None:
        """Close the descriptors. Idempotent."""
        for fd in (self._tmp_fd, self._root_fd):
            if fd >= 0:
                os.close(fd)
        self._root_fd = self._tmp_fd = -1

    async def __aenter__(self) -> FolderBlobs:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- Blobs -------------------------------------------------------------------------------------

    async def put(self, data: bytes) -> BlobRef:
        """Store bytes; durable on return. Refused(too_large); Unavailable (disk)."""
        self._check_room(len(data))

        def store() -> BlobRef:
            digest = ids.digest_of(data)
            if self._path_if_sound(digest) is None:
                with self._incoming() as incoming:
                    incoming.write(data)
                    self._keep(incoming)
            return BlobRef(digest=digest, size_bytes=len(data))

        return await self._in_thread(store)

    async def put_stream(self, chunks: AsyncIterator[bytes], *, bytes_max: int) -> BlobRef:
        """
        Store a stream in constant memory; durable on return, and nothing is left when it fails.

        Raises: Refused(too_large) past `bytes_max`; Unavailable (disk); whatever `chunks` raises.
        """
        incoming = await self._in_thread(lambda: Incoming(self._tmp_fd))
        try:
            buffer = bytearray()
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > bytes_max:
                    raise Refused(f"more than {bytes_max} bytes", code="too_large")
                self._check_room(size)
                buffer += chunk
                if len(buffer) >= BUFFER_BYTES:
                    await self._in_thread(lambda full=buffer: incoming.write(full))  # type: ignore[misc]
                    buffer = bytearray()

            def finish() -> BlobRef:
                incoming.write(buffer)
                return self._keep(incoming)

            return await self._in_thread(finish)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(incoming.discard)

    async def has(self, digest: str) -> bool:
        """Whether the bytes are here."""
        return await self.size(digest) is not None

    async def size(self, digest: str) -> int | None:
        """Length in bytes, None when not here."""
        await trio.lowlevel.checkpoint()
        with self._lock:
            entry = self._entries.get(digest)
        return entry.size_bytes if entry else None

    async def get(self, digest: str, *, bytes_max: int) -> bytes:
        """The whole blob, checked. NotFound (also when it was corrupt); Refused(too_large)."""

        def load() -> bytes:
            with self._file(digest) as (file, found):
                if found.st_size > bytes_max:
                    raise Refused(
                        f"{digest} has {found.st_size} bytes, at most {bytes_max} are wanted",
                        code="too_large",
                    )
                data = disk.all_of(file, found.st_size)
                if ids.digest_of(data) != digest:
                    raise self._corrupt(digest, found)
                self._used(digest, disk.stamp(found))
                return data

        return await self._in_thread(load)

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`, unchecked: whoever asked checks the whole."""

        def load() -> bytes:
            if offset < 0 or length < 0:
                raise Refused("a range has no negative parts", code="bad_range")
            with self._file(digest) as (file, _):
                self._used(digest, None)
                return os.pread(file.fileno(), length, offset)

        return await self._in_thread(load)

    async def path(self, digest: str) -> Path:
        """
        A file with exactly these bytes, checked now or unchanged since; do not write to it.

        Raises: NotFound (also when it was corrupt). Pin what must outlast the next `put`.
        """

        def find() -> Path:
            path = self._path_if_sound(digest)
            if path is None:
                raise _not_found(digest)
            return path

        if (known := self._path_if_unchanged(digest)) is not None:
            await trio.lowlevel.checkpoint()
            return known
        return await self._in_thread(find)

    def _path_if_unchanged(self, digest: str) -> Path | None:
        """
        The path of bytes that were checked and have not changed since; None says nothing.

        One `stat` and no thread: every run asks for its module, nearly always the same one.
        """
        if not self._lock.acquire(blocking=False):
            return None  # a thread removes or renames files: wait for it in a thread too
        try:
            entry = self._entries.get(digest)
            if entry is None or entry.checked is None:
                return None
            name = digest.removeprefix("sha256:")
            found = os.stat(f"{name[:2]}/{name}", dir_fd=self._root_fd, follow_symlinks=False)
            if entry.checked != disk.stamp(found) or not stat.S_ISREG(found.st_mode):
                return None
            self._entries.move_to_end(digest)
        except OSError:
            return None
        finally:
            self._lock.release()
        return self._root / name[:2] / name

    async def usage(self) -> Mapping[str, int]:
        """`{"blobs": count, "bytes": total}`."""
        await trio.lowlevel.checkpoint()
        with self._lock:
            return {"blobs": len(self._entries), "bytes": self._bytes}

    # -- what stays --------------------------------------------------------------------------------

    def pin(self, digest: str) -> None:
        """Keep a blob until as many `unpin`, also one that is still to come."""
        with self._lock:
            self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Undo one `pin`."""
        with self._lock:
            self._pins[digest] -= 1
            if self._pins[digest] <= 0:
                del self._pins[digest]

    async def remove(self, digest: str) -> bool:
        """Forget a blob that nobody pins; False when it is pinned or not here."""

        def drop() -> bool:
            with self._lock:
                if digest not in self._entries or digest in self._pins:
                    return False
                self._unlink(digest)
                return True

        return await self._in_thread(drop)

    # -- in threads --------------------------------------------------------------------------------

    def _open(self) -> None:
        self._root_fd, self._tmp_fd = disk.open_root(self._root)
        known = disk.scan(self._root_fd)
        with self._lock:
            self._entries.clear()
            for _, digest, size_bytes in known:
                self._entries[digest] = _Entry(size_bytes)
            self._bytes = sum(size_bytes for _, _, size_bytes in known)

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Incoming]:
        incoming = Incoming(self._tmp_fd)
        try:
            yield incoming
        finally:
            incoming.discard()

    def _keep(self, incoming: Incoming) -> BlobRef:
        digest = f"sha256:{incoming.hash.hexdigest()}"
        self._make_room(incoming.size_bytes, digest)
        fd = incoming.file.fileno()
        os.fchmod(fd, 0o400)
        os.fsync(fd)
        name = digest.removeprefix("sha256:")
        shard_fd = disk.subfolder(self._root_fd, name[:2])
        try:
            with self._lock:
                os.rename(incoming.name, name, src_dir_fd=self._tmp_fd, dst_dir_fd=shard_fd)
                entry = self._entries.pop(digest, None) or _Entry(0)
                self._bytes += incoming.size_bytes - entry.size_bytes
                entry.size_bytes = incoming.size_bytes
                entry.checked = disk.stamp(os.fstat(fd))
                self._entries[digest] = entry
            os.fsync(shard_fd)
        finally:
            os.close(shard_fd)
        return BlobRef(digest=digest, size_bytes=incoming.size_bytes)

    def _make_room(self, size_bytes: int, keep: str) -> None:
        with self._lock:
            excess = self._bytes + size_bytes - self._bytes_max
            surplus = len(self._entries) + 1 - self._blobs_max
            if excess <= 0 and surplus <= 0:
                return
            victims = []
            for digest, entry in self._entries.items():
                if excess <= 0 and surplus <= 0:
                    break
                if digest not in self._pins and digest != keep:
                    victims.append(digest)
                    excess -= entry.size_bytes
                    surplus -= 1
            if excess > 0 or surplus > 0:
                raise Unavailable(
                    f"no room for {size_bytes} bytes: the {self._bytes} bytes here are in use",
                    code="blobs_full",
                    hint="raise the blob folder's limit",
                    retry_after_s=5.0,
                )
            for digest in victims:
                self._unlink(digest)
        log.info("Blobs removed to make room", count=len(victims), needed_bytes=size_bytes)

    def _unlink(self, digest: str) -> None:
        """Remove a file and its entry; the lock is held."""
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._bytes -= entry.size_bytes
        name = digest.removeprefix("sha256:")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{name[:2]}/{name}", dir_fd=self._root_fd)

    @contextlib.contextmanager
    def _file(self, digest: str) -> Iterator[tuple[BinaryIO, os.stat_result]]:
        """A blob's file, opened without following links. Raises NotFound."""
        if not ids.is_digest(digest):
            raise _not_found(digest)
        name = digest.removeprefix("sha256:")
        try:
            shard_fd = os.open(name[:2], disk.O_FOLDER, dir_fd=self._root_fd)
            try:
                fd = os.open(name, disk.O_FILE, dir_fd=shard_fd)
            finally:
                os.close(shard_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise  # too many open files, a failing disk: that says nothing of the blob
            with self._lock:
                entry = self._entries.pop(digest, None)
                if entry is not None:
                    self._bytes -= entry.size_bytes
                    log.warning("Blob is gone from the folder", digest=digest, cause=str(error))
            raise _not_found(digest) from error
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _not_found(digest)
            yield file, found

    def _path_if_sound(self, digest: str) -> Path | None:
        """The path when the bytes are there and right; hashes only what changed since."""
        try:
            with self._file(digest) as (file, found):
                stamp = disk.stamp(found)
                with self._lock:
                    entry = self._entries.get(digest)
                    known = entry is not None and entry.checked == stamp
                if not known:
                    sums = hashlib.sha256()
                    while chunk := file.read(HASH_CHUNK_BYTES):
                        sums.update(chunk)
                    if f"sha256:{sums.hexdigest()}" != digest:
                        raise self._corrupt(digest, found)
                self._used(digest, stamp)
        except NotFound:
            return None
        name = digest.removeprefix("sha256:")
        return self._root / name[:2] / name

    def _corrupt(self, digest: str, found: os.stat_result) -> NotFound:
        """Remove a copy whose bytes are wrong, unless a good one took its place meanwhile."""
        name = digest.removeprefix("sha256:")
        with self._lock:
            try:
                now = os.stat(f"{name[:2]}/{name}", dir_fd=self._root_fd, follow_symlinks=False)
                if (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino):
                    self._unlink(digest)
            except FileNotFoundError:
                pass
        log.error("Blob was corrupt and is removed", digest=digest, size_bytes=found.st_size)
        return NotFound(f"{digest} was corrupt on this node's disk and is removed", code="corrupt")

    def _used(self, digest: str, checked: disk.Stamp | None) -> None:
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None:
                self._entries.move_to_end(digest)
                if checked is not None:
                    entry.checked = checked

    def _check_room(self, size_bytes: int) -> None:
        if size_bytes > self._bytes_max:
            raise Refused(
                f"{size_bytes} bytes, this node keeps at most {self._bytes_max}", code="too_large"
            )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise Unavailable(
                f"the blob folder failed: {error.strerror or error}",
                code="disk_error",
                hint=f"errno {error.errno}; check free space and the disk of {self._root}",
            ) from error


def _not_found(digest: str) -> NotFound:
    return NotFound(f"{digest[:80]} is not here")
