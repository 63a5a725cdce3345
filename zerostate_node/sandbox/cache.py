"""
Compiled modules on disk, and in sealed memory for the workers.

Compiled code is native code: whatever could put a file here could make workers run it. So each
entry carries an HMAC under a key that only the node has, is read into memory of our own, checked
there, sealed, and only then handed out: what was checked is what runs.

All functions here block; call them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import stat
from pathlib import Path
from typing import Any

from zerostate_node.units import MIB

_MAGIC = b"zstcwasm1"
_MAC_BYTES = 32
_INFO_BYTES_MAX = 4 * MIB
_CHUNK_BYTES = 1 * MIB
_F_ADD_SEALS = 1033
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008  # seal, shrink, grow, write
_SUFFIX = ".cwasm"


class Cache:
    """A directory of authenticated compiled modules, bounded by bytes, oldest use out first."""

    def __init__(self, directory: Path, key: bytes, bytes_max: int) -> None:
        self._directory = directory / "compiled"
        self.runs_directory = directory / "runs"
        self._key = key
        self._bytes_max = bytes_max
        self.entries = 0
        self.bytes = 0

    def open(self) -> None:
        """
        Make the directories ours alone and clear what an earlier process left half done.

        Raises:
            OSError: they cannot be made, or belong to somebody else.
        """
        for directory in (self._directory, self.runs_directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = directory.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                raise PermissionError(f"{directory} is not a directory of this user")
            directory.chmod(0o700)
        for leftover in self.runs_directory.iterdir():
            leftover.unlink(missing_ok=True)
        for leftover in self._directory.glob("*.new"):
            leftover.unlink(missing_ok=True)
        self._trim()

    def load(self, name: str) -> tuple[dict[str, Any], int] | None:
        """
        An entry's info and a sealed memory file of its code, which the caller owns.

        None where there is none. An entry that does not authenticate is removed: also None.
        """
        path = self._directory / (name + _SUFFIX)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with open(fd, "rb", buffering=0) as file:
            loaded = self._read(name, file)
        if loaded is None:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its place in the order of use
        return loaded

    def _read(self, name: str, file: Any) -> tuple[dict[str, Any], int] | None:
        head = file.read(len(_MAGIC) + _MAC_BYTES + 4)
        size = int.from_bytes(head[-4:], "big")
        if len(head) != len(_MAGIC) + _MAC_BYTES + 4 or not head.startswith(_MAGIC):
            return None
        if size > _INFO_BYTES_MAX:
            return None
        mac = self._mac(name)
        info = file.read(size)
        mac.update(head[-4:] + info)
        memory = os.memfd_create("module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            total = 0
            while chunk := file.read(_CHUNK_BYTES):
                total += len(chunk)
                if total > self._bytes_max:
                    raise ValueError("larger than the whole cache")
                mac.update(chunk)
                _write_all(memory, chunk)
            if not hmac.compare_digest(mac.digest(), head[len(_MAGIC) : -4]):
                raise ValueError("it does not authenticate")
            fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)
            return json.loads(info), memory
        except (OSError, ValueError):
            os.close(memory)
            return None

    def store(self, name: str, info: dict[str, Any], memory: int) -> None:
        """
        Seal a memory file of fresh code and keep a copy of it on disk.

        Raises:
            OSError: it could not be sealed, or not be written; then nothing is left behind.
        """
        fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)
        encoded = json.dumps(info).encode()
        size = len(encoded).to_bytes(4, "big")
        mac = self._mac(name)
        mac.update(size + encoded)
        total = os.fstat(memory).st_size
        for at in range(0, total, _CHUNK_BYTES):
            mac.update(os.pread(memory, _CHUNK_BYTES, at))
        path = self._directory / (name + _SUFFIX)
        draft = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(draft, flags, 0o600), "wb", buffering=0) as file:
                _write_all(file.fileno(), _MAGIC + mac.digest() + size + encoded)
                for at in range(0, total, _CHUNK_BYTES):
                    _write_all(file.fileno(), os.pread(memory, _CHUNK_BYTES, at))
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._trim()

    def _mac(self, name: str) -> hmac.HMAC:
        return hmac.new(self._key, _MAGIC + name.encode(), hashlib.sha256)

    def _trim(self) -> None:
        """Remove what was used longest ago until the rest fits."""
        entries = []
        for path in self._directory.glob("*" + _SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                info = path.lstat()
                entries.append((info.st_mtime_ns, info.st_size, path))
        entries.sort()
        total = sum(size for _, size, _ in entries)
        while entries and total > self._bytes_max:
            _, size, path = entries.pop(0)
            path.unlink(missing_ok=True)
            total -= size
        self.entries, self.bytes = len(entries), total


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
