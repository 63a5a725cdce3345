"""Our side: one gateway that owns tasks, two workers, all on loopback as processes."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.processes import Group, Process, eventually, rss_bytes

ROOT = Path(__file__).resolve().parents[1]
NOOP = ROOT / "examples" / "noop"
WORKERS = 2
READY_S = 60.0


class Ours:
    """The mesh under test."""

    name = "zerostate"

    def __init__(self, home: Path, group: Group, *, profile: str = "") -> None:
        self.home = home
        self.group = group
        self.ready_s: dict[str, float] = {}
        self.url = ""
        self._key = ""
        self._profile = profile  # name of a node to run under cProfile

    def start(self) -> None:
        """Everything up, the agent published, both workers connected."""
        owner = self._node("owner", role="gateway", worker={"enabled": False})
        self._key = (self.home / "owner" / "operator.key").read_text().strip()
        self.url = str(owner["http_url"])
        addr = self._get("/api/v1/node")["listen_addrs"][0]
        for index in range(WORKERS):
            self._node(
                f"worker{index + 1}",
                role="edge",
                owner={"enabled": False},
                mesh={"listen": [], "bootstrap": [addr], "dial_private": True},
                worker={"slots": 1},
                http={"enabled": False},
            )
        eventually(
            lambda: self._get("/api/v1/node")["workers_connected"] == WORKERS,
            within_s=READY_S,
            what="both workers connected to the owner",
        )
        agent = self._publish()
        self.client = self.group.start(
            "client",
            [sys.executable, "-m", "benchmarks.thin", self.url, self._key, agent],
            log=self.home / "client.log",
            cwd=ROOT,
            piped=True,
        )

    def versions(self) -> dict[str, str]:
        """Of what does the work."""
        names = ("libp2p", "trio", "wasmtime", "hypercorn", "quart-trio", "msgspec", "cryptography")
        own = importlib.import_module("zerostate_node").__version__
        return {"zerostate-node": own} | {n: importlib.metadata.version(n) for n in names}

    def counts(self) -> dict[str, int]:
        """Tasks that are not settled; for the check that nothing was left behind."""
        return {
            phase: len(self._get(f"/api/v1/tasks?phase={phase}")["tasks"])
            for phase in ("open", "leased")
        }

    def node_rss_bytes(self) -> dict[str, int]:
        """The daemons alone, without their sandbox processes."""
        return {
            name: rss_bytes(process.pid)
            for name, process in self.group.all.items()
            if name != "client"
        }

    # -- parts -------------------------------------------------------------------------------------

    def _node(self, name: str, *, role: str, **sections: dict[str, Any]) -> dict[str, Any]:
        config = self.home / f"{name}.toml"
        merged: dict[str, dict[str, Any]] = {
            "node": {"network": "dev", "role": role},
            "log": {"format": "json"},
            "mesh": {"listen": ["/ip4/127.0.0.1/tcp/0"], "dial_private": True},
            "http": {"port": 0},
            **sections,
        }
        lines = []
        for section, fields in merged.items():
            lines.append(f"[{section}]")
            lines += [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
        config.write_text("\n".join(lines) + "\n")
        data_dir = self.home / name
        command = [sys.executable]
        if self._profile == name:
            command += ["-m", "cProfile", "-o", str(self.home / f"{name}.prof")]
        command += ["-m", "zerostate_node", "start", "--config", str(config)]
        began = time.perf_counter()
        process = self.group.start(
            name,
            [*command, "--data-dir", str(data_dir)],
            log=self.home / f"{name}.log",
            cwd=ROOT,
        )
        run_file = data_dir / "node.json"
        eventually(
            lambda: process.alive() and run_file.exists(),
            within_s=READY_S,
            what=f"{name} ready",
        )
        self.ready_s[name] = time.perf_counter() - began
        value: dict[str, Any] = json.loads(run_file.read_text())
        return value

    def _publish(self) -> str:
        agent = tomllib.loads((NOOP / "agent.toml").read_text())
        blob = self._post(
            "/api/v1/blobs", (NOOP / agent["module"]).read_bytes(), "application/octet-stream"
        )
        draft = {k: agent[k] for k in ("name", "version", "description", "limits", "price")}
        body = {"draft": draft, "module": blob["digest"], "script": ""}
        answer = self._post("/api/v1/agents", json.dumps(body).encode(), "application/json")
        return str(answer["agent_id"])

    def _get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))

    def _post(self, path: str, body: bytes, kind: str) -> Any:
        request = urllib.request.Request(self.url + path, data=body, method="POST")
        request.add_header("content-type", kind)
        return self._ask(request)

    def _ask(self, request: urllib.request.Request) -> Any:
        request.add_header("authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise BenchError(f"{request.full_url}: {error.code} {error.read()[:500]!r}") from error

    client: Process
