"""
The node as process 1, which is what it is in a container: nobody reaps for it, and signals that it
does not handle do nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_nodes import eventually

ALONE = ("unshare", "--map-root-user", "--user", "--pid", "--fork", "--mount-proc")


def _possible() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _possible(), reason="no process namespaces for this user here")


class First:
    """A node that is process 1 of a namespace of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with (home / "node.log").open("wb") as log:
            self.outside = subprocess.Popen(
                [
                    *ALONE, "--kill-child", sys.executable, "-m", "zerostate_node", "start",
                    "--data-dir", str(home / "data"), "--port", "0", "--network", "dev",
                    "--set", "mesh.listen=/ip4/127.0.0.1/tcp/0", "--set", "worker.slots=1",
                ],
                stdout=log, stderr=subprocess.STDOUT, cwd=home,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def ready(self) -> bool:
        """Whether it serves."""
        assert self.outside.poll() is None, (self.home / "node.log").read_text()
        return (self.home / "data" / "node.json").exists()

    @property
    def pid(self) -> int:
        """Its id as seen from here."""
        (one,) = children(self.outside.pid)
        return one


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    """R, S, Z and so on; empty when it is gone and reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def first(tmp_path: Path) -> Iterator[First]:
    node = First(tmp_path)
    try:
        eventually(node.ready, within_s=60, what="node ready")
        yield node
    finally:
        node.outside.kill()  # --kill-child ends the namespace with it
        node.outside.wait()


def test_sandbox_processes_that_die_are_reaped_and_replaced(first: First) -> None:
    assert '"pid": 1' in (first.home / "data" / "node.json").read_text()
    one = first.pid
    before = children(one)
    assert before
    for child in before:
        os.kill(child, signal.SIGKILL)

    def replaced() -> bool:
        now = children(one)
        return all(not state(child) for child in before) and len(now) >= len(before)

    eventually(replaced, within_s=20, what="no zombies, and new sandbox processes")
    assert "Z" not in {state(child) for child in children(one)}


def test_one_sigterm_ends_process_1_with_code_0(first: First) -> None:
    os.kill(first.pid, signal.SIGTERM)
    assert first.outside.wait(25) == 0, (first.home / "node.log").read_text()
    assert not (first.home / "data" / "node.json").exists()
