"""
The data directory: private, held by one running node at a time, with the keys that live in it.

    identity.key   Ed25519 private key, PKCS8 PEM, 0600: who this node is, made once
    operator.key   bearer key of the HTTP API, 0600: whoever can read it may command the node
    node.json      where the running node answers, for the commands; removed at a clean stop
    lock           held (flock) while a node runs; freed by the kernel however it dies
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerostate_node.errors import Busy, ConfigError, NotFound, Unavailable
from zerostate_node.units import KIB, Did, PeerId
from zerostate_node.wire import ids

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

IDENTITY_FILE = "identity.key"
OPERATOR_FILE = "operator.key"
NODE_FILE = "node.json"
LOCK_FILE = "lock"
FILE_BYTES_MAX = 16 * KIB  # of any of the files above

_OPERATOR_KEY = re.compile(r"[A-Za-z0-9_-]{43,128}\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is: one Ed25519 key, and its two public spellings. `repr` shows no secret."""

    key: Ed25519PrivateKey = dataclasses.field(repr=False)
    peer: PeerId
    did: Did


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a serving node wrote into `node.json`."""

    pid: int
    http_url: str
    peer: str
    network: str
    started_ms: int

    @property
    def alive(self) -> bool:
        """Whether a process with that id exists; another program may have taken the id since."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def prepare(data_dir: Path) -> None:
    """
    Make the data directory, readable by its owner alone.

    Raises:
        ConfigError: it is a file, cannot be made or written, or others may write into it.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = data_dir.stat()
    except OSError as error:
        raise ConfigError(
            f"cannot make the data directory {data_dir}: {error.strerror or error}",
            code="bad_data_dir",
            hint="choose another with --data-dir",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{data_dir} is not a directory", code="bad_data_dir")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"the data directory {data_dir} belongs to another user (uid {found.st_uid})",
            code="bad_data_dir",
            hint="run as that user, or choose another with --data-dir",
        )
    if found.st_mode & 0o022:
        raise ConfigError(
            f"others may write into {data_dir} (mode {stat.S_IMODE(found.st_mode):04o})",
            code="loose_mode",
            hint=f"chmod 700 {data_dir}",
        )
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write into {data_dir}", code="bad_data_dir")


@contextlib.contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """
    Hold the data directory alone while a node runs.

    Raises:
        Busy: another node runs on it; names its process id.
    """
    descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise Unavailable(f"cannot lock {data_dir}: {error.strerror}") from error
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            by = f" (process {holder})" if holder.isdigit() else ""
            raise Busy(
                f"another node is running on {data_dir}{by}",
                code="data_dir_in_use",
                hint="stop it first, or give this one its own with --data-dir",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _read_private(path: Path, what: str) -> bytes:
    """A secret file's bytes; it must be ours, regular, and closed to everyone else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {what} at {path}", code=f"no_{what.split()[0]}") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what} {path}: {error.strerror}", code="unreadable_file"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"the {what} {path} is not a regular file", code="unreadable_file")
        if found.st_mode & 0o077:
            raise ConfigError(
                f"others may read the {what} {path} (mode {stat.S_IMODE(found.st_mode):04o})",
                code="loose_mode",
                hint=f"chmod 600 {path}",
            )
        return os.read(descriptor, FILE_BYTES_MAX)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a 0600 file whole or not at all, durable; FileExistsError unless `replace`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename, never over another's file
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_identity(data_dir: Path) -> Identity:
    """
    The identity in a data directory.

    Raises:
        NotFound: there is none yet.
        ConfigError: the file is loose, unreadable, or no Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = data_dir / IDENTITY_FILE
    raw = _read_private(path, "identity key")
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except (ValueError, TypeError) as error:
        key = None
        cause: Exception | None = error
    else:
        cause = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds no Ed25519 private key",
            code="bad_identity",
            hint="restore it from a backup; or move it away, and a new identity is made",
        ) from cause
    peer = ids.peer_id_of(key.public_key().public_bytes_raw())
    return Identity(key, peer, ids.did_of(peer))


def create_identity(data_dir: Path, *, replace: bool = False) -> Identity:
    """
    A fresh identity, written durably before it is returned.

    Raises:
        Busy: (code=identity_exists) there is one, and `replace` was not given.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    prepare(data_dir)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        _write_new(data_dir / IDENTITY_FILE, pem, replace=replace)
    except FileExistsError as error:
        raise Busy(
            f"there is an identity in {data_dir} already",
            code="identity_exists",
            hint="a new one makes this node a stranger to all its peers",
        ) from error
    return load_identity(data_dir)


def identity(data_dir: Path) -> Identity:
    """The identity in a data directory, made on first use. Raises ConfigError."""
    try:
        return load_identity(data_dir)
    except NotFound:
        with contextlib.suppress(Busy):  # another process was faster: theirs is the one
            return create_identity(data_dir)
        return load_identity(data_dir)


def load_operator_key(path: Path) -> str:
    """
    The bearer key of the HTTP API, out of its file.

    Raises:
        NotFound: no such file.
        ConfigError: loose mode, or not such a key.
    """
    text = _read_private(path, "operator key").decode("ascii", "replace").strip()
    if not _OPERATOR_KEY.match(text):
        raise ConfigError(
            f"{path} holds no operator key",
            code="bad_operator_key",
            hint="remove it, and the node makes a new one when it starts",
        )
    return text


def operator_key(data_dir: Path) -> str:
    """The bearer key of the HTTP API, made on first use. Raises ConfigError."""
    path = data_dir / OPERATOR_FILE
    try:
        return load_operator_key(path)
    except NotFound:
        prepare(data_dir)
        with contextlib.suppress(FileExistsError):
            _write_new(path, (secrets.token_urlsafe(32) + "\n").encode())
        return load_operator_key(path)


def announce_running(data_dir: Path, running: Running) -> None:
    """Write `node.json`, so that the commands find the node."""
    data = json.dumps(dataclasses.asdict(running), indent=1) + "\n"
    _write_new(data_dir / NODE_FILE, data.encode(), replace=True)


def retract_running(data_dir: Path) -> None:
    """Remove `node.json` at a clean stop."""
    (data_dir / NODE_FILE).unlink(missing_ok=True)


def find_running(data_dir: Path) -> Running:
    """
    Where the node of a data directory answers.

    Raises:
        NotFound: no node wrote it.
        ConfigError: the file is not what a node writes.
    """
    raw = _read_private(data_dir / NODE_FILE, "node file")
    try:
        tree: Any = json.loads(raw)
        running = Running(
            pid=tree["pid"],
            http_url=tree["http_url"],
            peer=tree["peer"],
            network=tree["network"],
            started_ms=tree["started_ms"],
        )
        whole = isinstance(running.pid, int) and running.pid > 0
        if not whole or not str(running.http_url).startswith("http://"):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{data_dir / NODE_FILE} is damaged",
            code="bad_node_file",
            hint="remove it; the node writes it again when it starts",
        ) from error
    return running
