"""
The data directory: private, held by one node at a time, with the node's two secrets in it.

    <data_dir>/            0700
      node.lock            flock while a node runs; its text is that node's pid
      identity.key         0600, one line `ed25519:<base64 of the 32-byte seed>`
      operator.key         0600, one line of 43 or more URL-safe characters
      ledger.sqlite  journal.sqlite  blobs/  cache/
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from zerostate_node.errors import Busy, ConfigError

_KEY_BYTES_MAX = 4096
_OPERATOR_KEY = re.compile(r"[A-Za-z0-9_-]{43,512}\Z")
_IDENTITY = re.compile(r"ed25519:([A-Za-z0-9+/]{43}=)\Z")


class DataDir:
    """
    A data directory that this process holds alone.

    Use it as `with DataDir(path) as data:`; the lock is the kernel's, so it ends with the process
    however that ends.

    Raises (on entry):
        ConfigError: mode looser than 0700, another owner, no directory; the hint is the command
            to run.
        Busy: another node holds it; the message has its pid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock_fd: int | None = None

    @property
    def ledger(self) -> Path:
        """The ledger's database."""
        return self.path / "ledger.sqlite"

    @property
    def journal(self) -> Path:
        """The journal's database."""
        return self.path / "journal.sqlite"

    @property
    def blobs(self) -> Path:
        """The root of the blob store."""
        return self.path / "blobs"

    @property
    def cache(self) -> Path:
        """What can be made again: compiled modules."""
        return self.path / "cache"

    def open(self) -> Self:
        """Create or check the directory, then take the lock."""
        if self._lock_fd is None:
            _make_private(self.path)
            self._lock_fd = self._lock()
            for leftover in self.path.glob(".*.key.tmp"):
                leftover.unlink(missing_ok=True)
        return self

    def close(self) -> None:
        """Give up the lock. Idempotent."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def identity_seed(self) -> bytes:
        """
        The 32-byte Ed25519 seed of this node, made on first use.

        Raises: ConfigError (loose_key, foreign_key, bad_key).
        """
        path = self.path / "identity.key"
        line = _read_key(path)
        if line is None:
            seed = os.urandom(32)
            self._create_key(path, "ed25519:" + base64.b64encode(seed).decode())
            return seed
        match = _IDENTITY.match(line)
        try:
            seed = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            seed = b""
        if len(seed) != 32:
            raise ConfigError(
                f"{path} does not hold one line `ed25519:<base64 of 32 bytes>`",
                code="bad_key",
                hint="restore it from a backup; moving it away gives this node a new identity",
            )
        return seed

    def operator_key(self) -> str:
        """
        The bearer token of whoever runs this node, made on first use.

        Raises: ConfigError (loose_key, foreign_key, bad_key).
        """
        path = self.path / "operator.key"
        if _read_key(path) is None:
            self._create_key(path, secrets.token_urlsafe(32))
        return read_operator_key(self.path)

    def _lock(self) -> int:
        path = self.path / "node.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise Busy(
                f"{self.path} is in use by {who}",
                code="data_dir_busy",
                hint="stop that node, or give this one its own data directory",
            ) from None
        except OSError as error:
            os.close(fd)
            raise ConfigError(
                f"{path} cannot be locked: {error.strerror}",
                code="no_lock",
                hint="put the data directory on a local disk with free space",
            ) from error
        return fd

    def _create_key(self, path: Path, line: str) -> None:
        # Written whole under another name first, so that a crash never leaves half a key behind.
        if self._lock_fd is None:
            raise RuntimeError("keys are made only while the data directory is held")
        temporary = path.with_name(f".{path.name}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o600)
            try:
                os.fchmod(fd, 0o600)
                os.write(fd, line.encode() + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.link(temporary, path, follow_symlinks=False)  # unlike rename, never replaces
            os.unlink(temporary)
            _sync_dir(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}",
                code="no_key",
                hint="check free space and permissions of the data directory",
            ) from error


def read_operator_key(data_dir: Path) -> str:
    """
    The operator's token of a node that runs on this machine; needs no lock.

    Raises: ConfigError (no_key, loose_key, foreign_key, bad_key).
    """
    path = data_dir.expanduser().absolute() / "operator.key"
    line = _read_key(path)
    if line is None:
        raise ConfigError(
            f"there is no {path}",
            code="no_key",
            hint="start the node once, or give the data directory of the one that runs",
        )
    if not _OPERATOR_KEY.match(line):
        raise ConfigError(
            f"{path} does not hold one line of 43 to 512 URL-safe characters",
            code="bad_key",
            hint="delete it and start the node: it makes a new one",
        )
    return line


def _make_private(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            _sync_dir(path.parent)
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"the data directory {path} cannot be made: {error.strerror}", code="no_data_dir"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"the data directory {path} is not a directory", code="no_data_dir")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"the data directory {path} belongs to uid {found.st_uid}, this is {os.geteuid()}",
            code="foreign_data_dir",
            hint=f"chown {os.geteuid()} {path}, or choose another",
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            f"the data directory {path} is open to others (mode {found.st_mode & 0o777:04o})",
            code="loose_data_dir",
            hint=f"chmod 700 {path}",
        )


def _read_key(path: Path) -> str | None:
    """The one line of a key file; None when there is none. Raises ConfigError when not private."""
    try:
        # O_NONBLOCK: a pipe put in its place must not hang the start.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "is a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
        raise ConfigError(f"{path} cannot be used: {why}", code="bad_key") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a regular file", code="bad_key")
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{path} belongs to uid {found.st_uid}, this is {os.geteuid()}",
                code="foreign_key",
                hint=f"chown {os.geteuid()} {path}",
            )
        if found.st_mode & 0o077:
            raise ConfigError(
                f"{path} is open to others (mode {found.st_mode & 0o777:04o})",
                code="loose_key",
                hint=f"chmod 600 {path}; if others could read it, move it away for a new one",
            )
        data = os.read(fd, _KEY_BYTES_MAX + 1)
    finally:
        os.close(fd)
    try:
        return data.decode("ascii").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text", code="bad_key") from error


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
