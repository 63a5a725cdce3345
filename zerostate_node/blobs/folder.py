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
import re
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import structlog
import trio

from zerostate_node.errors import ConfigError, NotFound, Refused, Unavailable
from zerostate_node.units import KIB, MIB
from zerostate_node.wire import ids
from zerostate_node.wire.messages import BlobRef

log = structlog.get_logger()

T = TypeVar("T")

THREADS = 8  # disk work at once
BUFFER_BYTES: Final = 1 * MIB  # of a stream held in memory before it goes to a thread
HASH_CHUNK_BYTES: Final = 256 * KIB
_TMP = "tmp"
_SHARD = re.compile(r"[0-9a-f]{2}\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_O_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_O_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# What a file must still look like to be the one whose digest was checked: any write to it, or
# another file in its place, changes one of these (ctime cannot be set back by its owner).
_Stamp = tuple[int, int, int, int]


@dataclasses.dataclass(slots=True)
class _Entry:
    size_bytes: int
    checked: _Stamp | None = None


class _Incoming:
    """A blob that is being written; only worker threads touch it, one at a time."""

    def __init__(self, store: FolderBlobs) -> None:
        self.name = f"{os.getpid()}-{os.urandom(8).hex()}"
        self.size_bytes = 0
        self.hash = hashlib.sha256()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file: BinaryIO = os.fdopen(
            os.open(self.name, flags, 0o600, dir_fd=store._tmp_fd), "wb", buffering=0
        )

    def write(self, data: bytes | bytearray) -> None:
        self.hash.update(data)
        view = memoryview(data)
        while view:
            written = self.file.write(view)
            view = view[written:]
        self.size_bytes += len(data)


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
        incoming = await self._in_thread(lambda: _Incoming(self))
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
                await trio.to_thread.run_sync(self._discard, incoming)

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
                data = _all_of(file, found.st_size)
                if ids.digest_of(data) != digest:
                    raise self._corrupt(digest, found)
                self._used(digest, _stamp(found))
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

        return await self._in_thread(find)

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
        with contextlib.suppress(FileExistsError):
            self._root.mkdir(mode=0o700, parents=True)
        try:
            self._root_fd = os.open(self._root, _O_DIR)
        except OSError as error:
            raise ConfigError(
                f"the blob folder {self._root} cannot be used: {error.strerror}",
                code="bad_blob_folder",
                hint="it must be a directory and no symbolic link",
            ) from error
        found = os.fstat(self._root_fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigError(
                f"the blob folder {self._root} is not private (mode {found.st_mode & 0o777:04o}, "
                f"uid {found.st_uid})",
                code="loose_blob_folder",
                hint=f"chmod 700 {self._root}",
            )
        self._tmp_fd = self._dir(_TMP)
        for name in os.listdir(self._tmp_fd):
            with contextlib.suppress(IsADirectoryError):
                os.unlink(name, dir_fd=self._tmp_fd)
        known: list[tuple[int, str, int]] = []
        for shard in os.listdir(self._root_fd):
            if _SHARD.match(shard):
                known.extend(self._scan(shard))
        with self._lock:
            self._entries.clear()
            for _, digest, size_bytes in sorted(known):
                self._entries[digest] = _Entry(size_bytes)
            self._bytes = sum(size_bytes for _, _, size_bytes in known)

    def _scan(self, shard: str) -> Iterator[tuple[int, str, int]]:
        try:
            fd = os.open(shard, _O_DIR, dir_fd=self._root_fd)
        except OSError as error:
            log.warning("Blob folder has a strange entry", name=shard, cause=error.strerror)
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if (
                        not _HEX.match(entry.name)
                        or entry.name[:2] != shard
                        or not stat.S_ISREG(found.st_mode)
                    ):
                        log.warning("Blob folder has a strange entry", name=entry.name)
                        continue
                    used_ns = max(found.st_atime_ns, found.st_mtime_ns)
                    yield used_ns, f"sha256:{entry.name}", found.st_size
        finally:
            os.close(fd)

    def _dir(self, name: str) -> int:
        try:
            os.mkdir(name, mode=0o700, dir_fd=self._root_fd)
            os.fsync(self._root_fd)
        except FileExistsError:
            pass
        return os.open(name, _O_DIR, dir_fd=self._root_fd)

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[_Incoming]:
        incoming = _Incoming(self)
        try:
            yield incoming
        finally:
            self._discard(incoming)

    def _discard(self, incoming: _Incoming) -> None:
        incoming.file.close()
        with contextlib.suppress(OSError):  # renamed away: it was kept
            os.unlink(incoming.name, dir_fd=self._tmp_fd)

    def _keep(self, incoming: _Incoming) -> BlobRef:
        digest = f"sha256:{incoming.hash.hexdigest()}"
        self._make_room(incoming.size_bytes, digest)
        fd = incoming.file.fileno()
        os.fchmod(fd, 0o400)
        os.fsync(fd)
        name = digest.removeprefix("sha256:")
        shard_fd = self._dir(name[:2])
        try:
            with self._lock:
                os.rename(incoming.name, name, src_dir_fd=self._tmp_fd, dst_dir_fd=shard_fd)
                entry = self._entries.pop(digest, None) or _Entry(0)
                self._bytes += incoming.size_bytes - entry.size_bytes
                entry.size_bytes = incoming.size_bytes
                entry.checked = _stamp(os.fstat(fd))
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
            shard_fd = os.open(name[:2], _O_DIR, dir_fd=self._root_fd)
            try:
                fd = os.open(name, _O_FILE, dir_fd=shard_fd)
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
                stamp = _stamp(found)
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

    def _used(self, digest: str, checked: _Stamp | None) -> None:
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


def _stamp(found: os.stat_result) -> _Stamp:
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def _not_found(digest: str) -> NotFound:
    return NotFound(f"{digest[:80]} is not here")


def _all_of(file: BinaryIO, size_bytes: int) -> bytes:
    # One read gives at most 2 GiB, and a short one must not look like a corrupt blob.
    parts, left = [], size_bytes + 1
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
