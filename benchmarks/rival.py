"""The other side: Celery on a Redis that makes every write durable before it answers."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.processes import Group, Process, eventually, free_port

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
WORKERS = 2
READY_S = 60.0


def ensure_redis() -> str:
    """The path of redis-server, installed from the distribution when we may. Raises BenchError."""
    found = shutil.which("redis-server")
    if found:
        return found
    hint = "on Debian: apt-get install redis-server"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BenchError("redis-server is needed for the comparison", hint=hint)
    print("installing redis-server", file=sys.stderr)
    apt = ["apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0"]
    # Installing must not start a server of its own on the default port.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for step in (["update"], ["install", "--no-install-recommends", "redis-server"]):
        done = subprocess.run([*apt, *step], env=environment, capture_output=True, text=True)
    found = shutil.which("redis-server")
    if found is None:
        raise BenchError(f"redis-server could not be installed: {done.stderr[-500:]}", hint=hint)
    return found


def ensure_celery(cache: Path) -> Path:
    """The Python of an environment with exactly what the lock names. Raises BenchError."""
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = cache / f"celery-{digest}"
    python = home / "bin" / "python"
    done = home / ".done"
    if done.exists():
        return python
    print("setting up Celery, once", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(python), *pip, "--no-deps", "-r", str(LOCK)],
    ):
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            raise BenchError(f"{' '.join(command[:4])} failed: {(ran.stderr or ran.stdout)[-800:]}")
    done.touch()
    return python


class Rival:
    """Celery with two prefork workers of one process each."""

    name = "celery"

    def __init__(self, home: Path, group: Group, *, redis: str, python: Path) -> None:
        self.home = home
        self.group = group
        self.ready_s: dict[str, float] = {}
        self._redis = redis
        self._python = python

    def start(self) -> None:
        """Redis and both workers up, the client connected."""
        port = free_port()
        data = self.home / "redis"
        data.mkdir()
        self.group.start(
            "redis",
            [
                self._redis,
                *("--port", str(port)),
                *("--bind", "127.0.0.1"),
                *("--dir", str(data)),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *("--save", ""),
                *("--daemonize", "no"),
            ],
            log=self.home / "redis.log",
        )
        eventually(lambda: _pong(port), within_s=READY_S, what="redis answers")
        environment = {
            "BENCH_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "ignore",
        }
        for index in range(WORKERS):
            began = time.perf_counter()
            name = f"worker{index + 1}"
            log = self.home / f"{name}.log"
            process = self.group.start(
                name,
                [
                    str(self._python),
                    *("-m", "celery", "-A", "celery_app", "worker"),
                    *("--pool", "prefork", "--concurrency", "1"),
                    *("--hostname", f"{name}@localhost"),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                    *("--loglevel", "WARNING"),
                ],
                log=log,
                cwd=HERE,
                env=environment,
            )
            eventually(
                lambda p=process: p.alive() and self._answers(p.name, environment),  # type: ignore[misc]
                within_s=READY_S,
                what=f"Celery's {name} ready",
            )
            self.ready_s[name] = time.perf_counter() - began
        self.client = self.group.start(
            "client",
            [str(self._python), "celery_client.py"],
            log=self.home / "client.log",
            cwd=HERE,
            env=environment,
            piped=True,
        )

    def versions(self) -> dict[str, str]:
        """Of what does the work."""
        names = ("celery", "kombu", "redis")
        script = f"import importlib.metadata as m; print(*map(m.version, {names!r}))"
        found = subprocess.run(
            [str(self._python), "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
        server = subprocess.run(
            [self._redis, "--version"], capture_output=True, text=True, check=True
        ).stdout
        versions = dict(zip(("celery", "kombu", "redis-py"), found, strict=True))
        return versions | {"redis-server": server.partition("v=")[2].split()[0]}

    def _answers(self, name: str, environment: dict[str, str]) -> bool:
        command = ["-m", "celery", "-A", "celery_app", "inspect", "-t", "1", "ping"]
        ping = subprocess.run(
            [str(self._python), *command, "-d", f"{name}@localhost"],
            capture_output=True,
            cwd=HERE,
            env={**os.environ, **environment},
        )
        return ping.returncode == 0

    client: Process


def _pong(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith(b"+PONG")
    except OSError:
        return False
