"""Processes that a benchmark starts, what they cost, and their certain end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.errors import BenchError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_END_S = 15.0


class Process:
    """One process with its log, ended by its id."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else out,
                stderr=out,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                text=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def alive(self) -> bool:
        """Whether it runs; raises BenchError with the end of its log when it does not."""
        if self.popen.poll() is None:
            return True
        tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        raise BenchError(f"{self.name} ended with {self.popen.returncode}: {tail}")

    def order(self, **order: Any) -> dict[str, Any]:
        """Send one order to a client process and wait for its answer."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.write(json.dumps(order) + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.popen.stdout.readline()
        if not line:
            self.popen.wait(_END_S)
            self.alive()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


class Group:
    """The processes of one side; ended together, the last started first."""

    def __init__(self) -> None:
        self.all: dict[str, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(list(self.all.values())):
            process.end()

    def start(self, name: str, command: Sequence[str], **more: Any) -> Process:
        """Start one and keep it."""
        process = self.all[name] = Process(name, command, **more)
        return process

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each process and its children have used so far."""
        tree = _children()
        return {name: _cpu_of_tree(p.pid, tree) for name, p in self.all.items()}

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory of each process and its children."""
        tree = _children()
        return {name: sum(map(_rss, _tree(p.pid, tree))) for name, p in self.all.items()}


def rss_bytes(pid: int) -> int:
    """Resident memory of one process alone."""
    return _rss(pid)


def eventually(look: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Wait until `look` is true. Raises BenchError."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if look():
            return
        time.sleep(0.005)
    raise BenchError(f"not within {within_s:.0f} s: {what}")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _children() -> dict[int, list[int]]:
    tree: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            tree.setdefault(int(fields[1]), []).append(int(entry))
    return tree


def _tree(pid: int, children: dict[int, list[int]]) -> list[int]:
    found = [pid]
    for child in children.get(pid, ()):
        found += _tree(child, children)
    return found


def _cpu_of_tree(pid: int, children: dict[int, list[int]]) -> float:
    ticks = 0
    for one in _tree(pid, children):
        if fields := _stat(one):
            ticks += sum(map(int, fields[11:15]))  # own and reaped children's, user and system
    return ticks / _TICKS_PER_S


def _rss(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
