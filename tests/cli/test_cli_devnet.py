"""A whole mesh in one command: it comes up, works, and leaves no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "markdown"


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    return True


def wait_until_gone(pids: list[int], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if not gone(pid)]
        time.sleep(0.05)


@contextlib.contextmanager
def devnet(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    command = [sys.executable, "-m", "zerostate_node", "devnet", "--json", "--timeout", "110s"]
    with (home / "err").open("wb") as err:
        process = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=err,
            env=environment(home, ZEROSTATE_WORKER_ENABLED="false"),  # must not reach the nodes
            cwd=home,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (home / "err").read_text()[-4000:]
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_task_given_to_the_gateway_is_run_by_a_worker_that_does_not_listen(
    cli: Command, tmp_path: Path
) -> None:
    with devnet(tmp_path, "-n", "3", "--agent", str(EXAMPLE)) as (process, ready):
        names = [node["name"] for node in ready["nodes"]]
        pids = [node["pid"] for node in ready["nodes"]]
        assert names == ["relay", "gateway", "worker-1"]
        worker = ready["nodes"][2]
        there = {"ZEROSTATE_URL": ready["gateway_url"], "ZEROSTATE_KEY_FILE": ready["key_file"]}
        words = ["task", "submit", "markdown", "--input", "# Hi", "--json", "--timeout", "60s"]
        done = cli(*words, timeout=90, **there)
        assert done.code == 0, done.err
        task = json.loads(done.out)
        assert task["result"] == {"text": "<h1>Hi</h1>\n"}
        assert task["worker"] == worker["peer"]

        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert all(map(gone, pids))
        assert not Path(ready["data_dir"]).exists()


def test_the_nodes_die_with_a_devnet_that_is_killed(tmp_path: Path) -> None:
    with devnet(tmp_path, "-n", "3", "--data-dir", str(tmp_path / "mesh")) as (process, ready):
        pids = [node["pid"] for node in ready["nodes"]]
        process.kill()
        process.wait()
        wait_until_gone(pids)


def test_a_node_that_cannot_start_ends_the_devnet_with_its_log(
    cli: Command, tmp_path: Path
) -> None:
    mesh = tmp_path / "mesh"
    (mesh / "relay").mkdir(parents=True)
    (mesh / "relay").chmod(0o755)  # a data directory that is open to others
    done = cli("devnet", "-n", "3", "--data-dir", str(mesh), timeout=120)
    assert done.code == 3
    assert "relay ended, exit code 2 before it was ready" in done.err
    assert "chmod 700" in done.err


def test_a_node_that_is_killed_is_told_of_and_the_rest_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zerostate_node", "devnet", "-n", "3", "--timeout", "110s"]
    command += ["--data-dir", str(tmp_path / "mesh")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
        cwd=tmp_path,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        found = json.loads((tmp_path / "mesh" / "worker-1" / "node.json").read_text())
        os.kill(found["pid"], signal.SIGKILL)
        for line in process.stdout:
            if line.startswith("worker-1"):
                break
        assert "worker-1 killed by SIGKILL; its log ends:" in line
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("count", ["2", "33", "x"])
def test_a_mesh_is_of_three_to_thirty_two(cli: Command, count: str) -> None:
    assert cli("devnet", "-n", count).code == 2
