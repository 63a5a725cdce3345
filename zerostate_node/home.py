"""
`node.json` in the data directory: where the running node answers, for the commands.

A serving node writes it and removes it at a clean stop. What a crashed node leaves behind is found
out by its process id. Keys and the lock beside it are `ledger.datadir`'s.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from zerostate_node.errors import ConfigError, NotFound
from zerostate_node.units import KIB

NODE_FILE = "node.json"
OPERATOR_FILE = "operator.key"
IDENTITY_FILE = "identity.key"
FILE_BYTES_MAX = 16 * KIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a serving node says of itself."""

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
        except (PermissionError, OverflowError):
            return True
        return True


def announce_running(data_dir: Path, running: Running) -> None:
    """Write `node.json` whole: a command never reads half of it. Raises ConfigError."""
    text = json.dumps(dataclasses.asdict(running), indent=1) + "\n"
    path = data_dir / NODE_FILE
    temporary = path.with_name(f".{NODE_FILE}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}", code="bad_data_dir") from error


def retract_running(data_dir: Path) -> None:
    """Remove `node.json` at a clean stop."""
    (data_dir / NODE_FILE).unlink(missing_ok=True)


def find_running(data_dir: Path) -> Running:
    """
    Where the node of a data directory answers.

    Raises:
        NotFound: no node wrote it.
        ConfigError: the file cannot be read, or is not what a node writes.
    """
    path = data_dir / NODE_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}", code="no_node") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="bad_node_file") from error
    try:
        tree: Any = json.loads(raw)
        running = Running(
            pid=tree["pid"],
            http_url=tree["http_url"],
            peer=str(tree["peer"]),
            network=str(tree["network"]),
            started_ms=int(tree["started_ms"]),
        )
        if type(running.pid) is not int or running.pid <= 0:
            raise ValueError
        if not str(running.http_url).startswith("http://"):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged",
            code="bad_node_file",
            hint="remove it; the node writes it again when it starts",
        ) from error
    return running
