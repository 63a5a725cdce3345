"""The disk under the blob folder, by descriptors and never through links. All of it blocks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import structlog

from zerostate_node.errors import ConfigError

log = structlog.get_logger()

O_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
O_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TMP = "tmp"
_SHARD = re.compile(r"[0-9a-f]{2}\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")

# What a file must still look like to be the one whose digest was checked: any write to it, or
# another file in its place, changes one of these (ctime cannot be set back by its owner).
Stamp = tuple[int, int, int, int]


class Incoming:
    """A blob that is being written, in a file without a name of its own yet."""

    def __init__(self, tmp_fd: int) -> None:
        self.name = f"{os.getpid()}-{os.urandom(8).hex()}"
        self.size_bytes = 0
        self.hash = hashlib.sha256()
        self._tmp_fd = tmp_fd
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file: BinaryIO = os.fdopen(
            os.open(self.name, flags, 0o600, dir_fd=tmp_fd), "wb", buffering=0
        )

    def write(self, data: bytes | bytearray) -> None:
        """Append, and hash as it goes."""
        self.hash.update(data)
        view = memoryview(data)
        while view:
            written = self.file.write(view)
            view = view[written:]
        self.size_bytes += len(data)

    def discard(self) -> None:
        """Close, and remove what did not get a name. Idempotent."""
        self.file.close()
        with contextlib.suppress(OSError):  # renamed away: it was kept
            os.unlink(self.name, dir_fd=self._tmp_fd)


def open_root(root: Path) -> tuple[int, int]:
    """
    Descriptors of the folder and of its `tmp`, made where missing, unfinished writes dropped.

    Raises: ConfigError (bad_blob_folder, loose_blob_folder).
    """
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700, parents=True)
    try:
        root_fd = os.open(root, O_FOLDER)
    except OSError as error:
        raise ConfigError(
            f"the blob folder {root} cannot be used: {error.strerror}",
            code="bad_blob_folder",
            hint="it must be a directory and no symbolic link",
        ) from error
    try:
        found = os.fstat(root_fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigError(
                f"the blob folder {root} is not private (mode {found.st_mode & 0o777:04o}, "
                f"uid {found.st_uid})",
                code="loose_blob_folder",
                hint=f"chmod 700 {root}",
            )
        tmp_fd = subfolder(root_fd, _TMP)
    except BaseException:
        os.close(root_fd)
        raise
    for name in os.listdir(tmp_fd):
        with contextlib.suppress(IsADirectoryError):
            os.unlink(name, dir_fd=tmp_fd)
    return root_fd, tmp_fd


def subfolder(root_fd: int, name: str) -> int:
    """A descriptor of a folder below the root, made where it is missing; close it."""
    try:
        os.mkdir(name, mode=0o700, dir_fd=root_fd)
        os.fsync(root_fd)
    except FileExistsError:
        pass
    return os.open(name, O_FOLDER, dir_fd=root_fd)


def scan(root_fd: int) -> list[tuple[int, str, int]]:
    """Every blob as (last use in ns, digest, size in bytes), the longest unused first."""
    known: list[tuple[int, str, int]] = []
    for shard in os.listdir(root_fd):
        if _SHARD.match(shard):
            known.extend(_scan_shard(root_fd, shard))
    return sorted(known)


def _scan_shard(root_fd: int, shard: str) -> Iterator[tuple[int, str, int]]:
    try:
        fd = os.open(shard, O_FOLDER, dir_fd=root_fd)
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


def stamp(found: os.stat_result) -> Stamp:
    """What tells this state of a file from any other."""
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def all_of(file: BinaryIO, size_bytes: int) -> bytes:
    """A whole file; one read gives at most 2 GiB, and a short one must not look like damage."""
    parts, left = [], size_bytes + 1
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
