"""Real nodes as processes on loopback, for tests that kill them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import wasmtime

T = TypeVar("T")

READY_S = 60.0  # generous: CI runs these beside other work on two cores
ROOT = Path(__file__).resolve().parents[2]

# Reads a little-endian u32 from stdin and counts to that many millions, then writes "done".
SPIN_WAT = """
(module
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "done")
  (func (export "_start") (local $left i64)
    (i32.store (i32.const 0) (i32.const 32))
    (i32.store (i32.const 4) (i32.const 4))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
    (local.set $left (i64.mul (i64.load32_u (i32.const 32)) (i64.const 1000000)))
    (block $end
      (loop $again
        (br_if $end (i64.eqz (local.get $left)))
        (local.set $left (i64.sub (local.get $left) (i64.const 1)))
        (br $again)))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 4))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))
"""


def spin_module() -> bytes:
    """A guest that takes as long as its input says."""
    return bytes(wasmtime.wat2wasm(SPIN_WAT))


def spin_input(millions: int) -> dict[str, str]:
    """The JSON input of one spin."""
    return {"base64": base64.b64encode(millions.to_bytes(4, "little")).decode()}


def eventually(look: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.02) -> T:
    """The first truthy answer of `look`, or a failure that says what did not come."""
    end = time.monotonic() + within_s
    last: Any = None
    while time.monotonic() < end:
        try:
            last = look()
        except httpx.TransportError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(every_s)
    raise AssertionError(f"not within {within_s} s: {what}; last seen: {str(last)[:600]}")


class NodeProcess:
    """One `zerostate-node start` process and a client for it."""

    def __init__(self, home: Path, name: str, **settings: Any) -> None:
        self.name = name
        self.data_dir = home / name
        self.settings = {
            "mesh.listen": ["/ip4/127.0.0.1/tcp/0"],
            "mesh.dial_private": True,
            "http.port": 0,
            "node.network": "dev",
            "log.format": "json",
            "worker.slots": 1,
        } | {key.replace("__", "."): value for key, value in settings.items()}
        self.config = home / f"{name}.toml"
        self.log_path = home / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self._peer = ""

    def start(self, *, wait: bool = True) -> NodeProcess:
        """Start, and wait until it serves."""
        sections: dict[str, dict[str, Any]] = {}
        for key, value in self.settings.items():
            section, field = key.split(".")
            sections.setdefault(section, {})[field] = value
        lines = []
        for section, fields in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
        self.config.write_text("\n".join(lines) + "\n")
        (self.data_dir / "node.json").unlink(missing_ok=True)
        self.started_s = time.monotonic()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "zerostate_node",
                    "start",
                    "--config",
                    str(self.config),
                    "--data-dir",
                    str(self.data_dir),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                cwd=self.config.parent,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Until it wrote where it serves."""

        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended: {self.log_text()[-3000:]}")
            return (self.data_dir / "node.json").exists()

        eventually(ready, within_s=READY_S, what=f"{self.name} ready")
        assert self.peer
        key = (self.data_dir / "operator.key").read_text().strip()
        self.http = httpx.Client(
            base_url=self.run_file()["http_url"],
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )

    def run_file(self) -> dict[str, Any]:
        """What the node says of itself on disk."""
        value: dict[str, Any] = json.loads((self.data_dir / "node.json").read_text())
        return value

    @property
    def peer(self) -> str:
        """Its peer id; known from its first start on."""
        if not self._peer:
            self._peer = str(self.run_file()["peer"])
        return self._peer

    def info(self) -> dict[str, Any]:
        """Its own description over HTTP."""
        return self.get("/api/v1/node")

    def addr(self) -> str:
        """An address that others can dial, with its peer id."""
        return str(self.info()["listen_addrs"][0])

    def keep_port(self) -> None:
        """Listen on the same port after the next start."""
        self.settings["mesh.listen"] = [self.addr().split("/p2p/")[0]]

    def get(self, path: str, **params: Any) -> Any:
        """GET JSON; any refusal is a failure."""
        answer = self.http.get(path, params=params)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def publish(self, name: str, module: bytes, **draft: Any) -> dict[str, Any]:
        """Publish an agent."""
        blob = self.http.post("/api/v1/blobs", content=module)
        assert blob.status_code == 201, blob.text
        answer = self.http.post(
            "/api/v1/agents",
            json={
                "draft": {
                    "name": name,
                    "version": "1.0.0",
                    "description": f"the {name} agent",
                    "limits": {"fuel_max": 50_000_000_000, "wall_ms_max": 60_000},
                    **draft,
                },
                "module": blob.json()["digest"],
                "script": "",
            },
        )
        assert answer.status_code == 201, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def submit(self, agent: str, input: dict[str, str] | None = None, **more: Any) -> str:
        """Submit a task; its id."""
        key = more.pop("key", None)
        answer = self.http.post(
            "/api/v1/tasks",
            json={"agent": agent, **({"input": input} if input else {}), **more},
            headers={"Idempotency-Key": key} if key else {},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """A task as it stands."""
        value: dict[str, Any] = self.get(f"/api/v1/tasks/{task_id}")
        return value

    def settled(self, task_id: str, *, within_s: float) -> dict[str, Any]:
        """A task once it is settled."""

        def look() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["phase"] == "settled" else None

        return eventually(look, within_s=within_s, what=f"task {task_id} settled")  # type: ignore[return-value]

    def leased_to(self, task_id: str, *, within_s: float) -> str:
        """The worker that a task is leased to, once it is."""

        def look() -> str:
            task = self.task(task_id)
            return str(task["worker"]) if task["phase"] == "leased" else ""

        return eventually(look, within_s=within_s, what=f"task {task_id} leased")

    def has_workers(self, count: int, *, within_s: float = 30) -> None:
        """Wait for so many work streams."""
        eventually(
            lambda: self.info()["workers_connected"] >= count,
            within_s=within_s,
            what=f"{count} workers at {self.name}",
        )

    def kill(self) -> None:
        """As the kernel would: no goodbye."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, *, within_s: float = 30) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def log_text(self) -> str:
        """Everything it logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one event."""
        found = []
        for line in self.log_text().splitlines():
            if line.startswith("{") and f'"{event}"' in line:
                value = json.loads(line)
                if value.get("event") == event:
                    found.append(value)
        return found


class Lab:
    """Nodes of one test, ended with it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nodes: list[NodeProcess] = []

    def node(self, name: str, **settings: Any) -> NodeProcess:
        """A node that is not started yet."""
        node = NodeProcess(self.home, name, **settings)
        self.nodes.append(node)
        return node

    def seed(self, name: str = "seed", **settings: Any) -> NodeProcess:
        """A started bootstrap and relay node that does no work."""
        return self.node(
            name,
            node__role="bootstrap",
            mesh__relay_serve=True,
            owner__enabled=False,
            worker__enabled=False,
            **settings,
        ).start()

    def owner(self, name: str, seed: NodeProcess, **settings: Any) -> NodeProcess:
        """A started gateway that runs nothing itself."""
        return self.node(
            name,
            node__role="gateway",
            worker__enabled=False,
            mesh__bootstrap=[seed.addr()],
            **settings,
        ).start()

    def worker(self, name: str, seed: NodeProcess, **settings: Any) -> NodeProcess:
        """A worker that has no listening address; started, not waited for."""
        return self.node(
            name,
            owner__enabled=False,
            mesh__listen=[],
            mesh__bootstrap=[seed.addr()],
            **settings,
        )

    def end(self) -> None:
        """End everything that still runs."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
        for node in self.nodes:
            if node.process is not None:
                try:
                    node.process.wait(15)
                except subprocess.TimeoutExpired:
                    node.process.kill()
                    node.process.wait()
