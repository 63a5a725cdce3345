"""The processes of a devnet: start, wait until ready, notice their end, stop."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zerostate_node
from zerostate_node import home
from zerostate_node.cli.client import Client, read_key_file
from zerostate_node.cli.problems import WaitedTooLong
from zerostate_node.errors import Unavailable, ZeroStateError
from zerostate_node.settings import SECTIONS, fields_of, variable_of
from zerostate_node.settings.values import about

STOP_S_MAX = 12.0
READY_LINE_BYTES_MAX = 64 * 1024
LOG_TAIL_LINES = 8
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _environment() -> dict[str, str]:
    """Ours, without what would set the children otherwise than the plan does."""
    ours = {variable_of(s, f) for s in SECTIONS for f in fields_of(s)}
    ours |= {v for s in SECTIONS for f in fields_of(s).values() for v in about(f).env}
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ours and not key.startswith("ZEROSTATE_")
    }
    root = str(Path(zerostate_node.__file__).resolve().parents[1])
    path = [root, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


class Child:
    """One node process of the mesh."""

    def __init__(self, name: str, folder: Path, flags: list[str]) -> None:
        self.name = name
        self.data_dir = folder / name
        self.log_file = folder / f"{name}.log"
        self.flags = flags
        self.info: dict[str, Any] = {}
        self.peer = self.http_url = ""
        self.ended_told = False
        self._buffer = b""
        self._client: Client | None = None
        parent = os.getpid()

        def die_with_us() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        command = [sys.executable, "-m", "zerostate_node", "start", "--json"]
        command += ["--network", "dev", "--data-dir", str(self.data_dir), *flags]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches us alone; we tell them in order
                preexec_fn=die_with_us,  # no thread of ours runs yet
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    @property
    def key_file(self) -> Path:
        """The operator key of this node."""
        return self.data_dir / home.OPERATOR_FILE

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended, exit code {code}"

    def read_ready(self) -> bool:
        """Take what it printed; whether it said that it is ready."""
        assert self.process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            self._buffer += os.read(self.process.stdout.fileno(), READY_LINE_BYTES_MAX)
        line, newline, _ = self._buffer.partition(b"\n")
        if not newline:
            return False
        try:
            self.info = json.loads(line)
            self.peer, self.http_url = self.info["peer"], self.info["http_url"]
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"{self.name} said {line[:200]!r} instead of ready") from error
        return True

    def client(self) -> Client:
        """Its HTTP API."""
        if self._client is None:
            self._client = Client(
                self.http_url, read_key_file(self.key_file), timeout_s=5.0, where=str(self.key_file)
            )
        return self._client

    def ask(self, path: str, **query: Any) -> Any:
        """The JSON of a GET, None when it does not answer now."""
        if not self.http_url or self.ended:
            return None
        try:
            return self.client().get(path, **query)
        except ZeroStateError:
            return None

    def tail(self) -> list[str]:
        """The last lines of its log, as a person reads them."""
        with contextlib.suppress(OSError), self.log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
            return [_log_line(line) for line in lines]
        return []

    def address(self) -> str:
        """Where others dial it, peer id included."""
        found = self.info.get("listen_addrs") or self.info.get("announce_addrs") or []
        if not found:
            raise Unavailable(f"{self.name} does not say where it listens", code="no_address")
        address = str(found[0])
        return address if "/p2p/" in address else f"{address}/p2p/{self.peer}"

    def as_json(self) -> dict[str, Any]:
        """What a program needs of it."""
        return {
            "name": self.name,
            "pid": self.process.pid,
            "peer": self.peer,
            "http_url": self.http_url,
            "data_dir": str(self.data_dir),
            "log_file": str(self.log_file),
        }


def _log_line(line: str) -> str:
    try:
        tree = json.loads(line)
        event, level = tree.pop("event", ""), tree.pop("level", "")
        tree.pop("timestamp", None)
        return f"{level:<7} {event}  " + " ".join(f"{k}={v}" for k, v in tree.items())
    except (ValueError, AttributeError):
        return line[:500]


class Mesh:
    """The nodes of a devnet: `relay`, `gateway`, `worker-1`, ..."""

    def __init__(self, folder: Path, *, workers: int, port: int, slots: int) -> None:
        self.folder = folder
        self.children: list[Child] = []
        here = "mesh.listen=/ip4/127.0.0.1/tcp/0"
        free = ["--port", "0"]
        quick = ["--set", "log.format=json"]
        self.plan: list[tuple[str, list[str]]] = [
            ("relay", ["--role", "bootstrap", "--set", here, *free, *quick]),
            (
                "gateway",
                [
                    "--role",
                    "gateway",
                    "--set",
                    here,
                    "--set",
                    "worker.enabled=false",
                    "--port",
                    str(port),
                    *quick,
                ],
            ),
        ]
        self.plan += [
            (
                f"worker-{number}",
                [
                    "--role",
                    "edge",
                    "--set",
                    "mesh.listen=none",
                    "--set",
                    "owner.enabled=false",
                    "--set",
                    f"worker.slots={slots}",
                    *free,
                    *quick,
                ],
            )
            for number in range(1, workers + 1)
        ]

    @property
    def gateway(self) -> Child:
        """The node that takes tasks."""
        return self.children[1]

    @property
    def alive(self) -> bool:
        """Whether any node still runs."""
        return any(not child.ended for child in self.children)

    def name_of(self, peer: str) -> str:
        """A node of ours by its peer id; the end of the id for others."""
        return next((c.name for c in self.children if c.peer == peer), "…" + peer[-8:])

    def start(self, timeout_s: float) -> Iterator[Child]:
        """
        Start the relay, then all others at once; yields each as it gets ready.

        Raises:
            Unavailable: one ended instead; its last log lines are in the message.
            WaitedTooLong: one was not ready in time.
        """
        deadline_s = time.monotonic() + timeout_s
        (name, flags), *others = self.plan
        relay = Child(name, self.folder, flags)
        self.children.append(relay)
        yield from self._until_ready([relay], deadline_s)
        address = relay.address()
        known = ["--set", f"mesh.bootstrap={address}", "--set", f"mesh.relays={address}"]
        started = []
        for name, flags in others:
            child = Child(name, self.folder, flags + known)
            self.children.append(child)
            started.append(child)
        yield from self._until_ready(started, deadline_s)

    def _until_ready(self, waiting: list[Child], deadline_s: float) -> Iterator[Child]:
        pending = {child.process.stdout: child for child in waiting}
        with selectors.DefaultSelector() as selector:
            for stdout in pending:
                assert stdout is not None
                selector.register(stdout, selectors.EVENT_READ)
            while pending:
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0:
                    late = ", ".join(child.name for child in pending.values())
                    raise WaitedTooLong(
                        f"not ready in time: {late}",
                        hint="the machine may be busy: give it longer with --timeout",
                    )
                for key, _ in selector.select(min(remaining_s, 0.2)):
                    child = pending.get(key.fileobj)  # type: ignore[call-overload]
                    if child is not None and child.read_ready():
                        selector.unregister(key.fileobj)
                        del pending[child.process.stdout]
                        yield child
                for child in pending.values():
                    if child.ended:
                        raise Unavailable(
                            f"{child.name} {child.ended} before it was ready; its log ends:\n"
                            + "\n".join(child.tail()),
                            code="node_ended",
                            hint=f"its whole log was {child.log_file}; keep it with --data-dir",
                        )

    def news(self) -> list[Child]:
        """Nodes that ended since the last call."""
        ended = [child for child in self.children if child.ended and not child.ended_told]
        for child in ended:
            child.ended_told = True
        return ended

    def stop(self) -> None:
        """Ask all to leave, workers first, and wait for them."""
        for child in reversed(self.children):
            if not child.ended:
                child.process.terminate()
        deadline_s = time.monotonic() + STOP_S_MAX
        while self.alive and time.monotonic() < deadline_s:
            time.sleep(0.05)

    def kill(self) -> None:
        """End those that are left, by their process ids."""
        for child in self.children:
            if not child.ended:
                child.process.kill()
            child.process.wait()
            if child.process.stdout is not None:
                child.process.stdout.close()
