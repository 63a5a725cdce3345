"""What a person does wrong gets a named error that says what to do, and its own exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e_nodes import Lab, NodeProcess, eventually, spin_module

from zerostate_node.errors import Exit


def zerostate(*args: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "zerostate_node", *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=home,
        env={**os.environ, "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
    )


def says(done: subprocess.CompletedProcess[str], exit: Exit, *words: str) -> None:
    """The right exit code, an error and a hint in words, and no traceback."""
    told = done.stdout + done.stderr
    assert done.returncode == exit, told
    assert "error:" in done.stderr, told
    assert "Traceback" not in told, told
    for word in words:
        assert word in told, f"{word!r} not in: {told}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--set", "worker.slotz=3"), ("worker.slotz", "worker.slots")),
        (("--set", "mesh.listen=/ip4/300.1.1.1/tcp/1"), ("mesh.listen", "300.1.1.1")),
        (("--set", "mesh.bootstrap=/ip4/127.0.0.1/tcp/4001"), ("/p2p/",)),
        (("--set", "worker.slots=-1"), ("worker.slots",)),
        (("--network", "nowhere"), ("nowhere", "main")),
        (("--role", "king"), ("king", "edge")),
        (("--port", "99999"), ("99999",)),
        (("--config", "missing.toml"), ("missing.toml",)),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_starts(
    tmp_path: Path, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = zerostate("start", "--data-dir", str(tmp_path / "d"), *args, home=tmp_path)
    says(done, Exit.USAGE, *words)


def test_an_unknown_key_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[node]\nnetwork = "dev"\n\n[http]\nprot = 8081\n')
    done = zerostate(
        "start", "--config", "node.toml", "--data-dir", str(tmp_path / "d"), home=tmp_path
    )
    says(done, Exit.USAGE, "node.toml:5", "http.prot", "http.port")


@pytest.mark.parametrize("what", ["http", "mesh"])
def test_a_taken_port_is_named(tmp_path: Path, what: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        setting = {
            "http": (f"http.port={port}", "mesh.listen=/ip4/127.0.0.1/tcp/0"),
            "mesh": ("http.port=0", f"mesh.listen=/ip4/127.0.0.1/tcp/{port}"),
        }[what]
        flags = [word for value in setting for word in ("--set", value)]
        done = zerostate("start", "--data-dir", str(tmp_path / "d"), *flags, home=tmp_path)
    says(done, Exit.BUSY, str(port), "hint:")


def test_a_second_node_on_one_data_directory_is_refused(lab: Lab, tmp_path: Path) -> None:
    alice = lab.node("alice").start()
    assert alice.process is not None
    done = zerostate("start", "--port", "0", "--data-dir", str(alice.data_dir), home=tmp_path)
    says(done, Exit.BUSY, str(alice.process.pid), "hint:")
    assert alice.http.get("/health").status_code == 200


def test_loose_file_modes_are_refused_with_the_command_that_mends_them(tmp_path: Path) -> None:
    data = tmp_path / "d"
    assert zerostate("init", "--data-dir", str(data), home=tmp_path).returncode == 0
    key = data / "identity.key"
    key.chmod(0o644)
    says(
        zerostate("start", "--port", "0", "--data-dir", str(data), home=tmp_path),
        Exit.USAGE,
        "chmod 600",
        str(key),
    )
    key.chmod(0o600)
    data.chmod(0o755)
    says(
        zerostate("start", "--port", "0", "--data-dir", str(data), home=tmp_path),
        Exit.USAGE,
        "chmod 700",
    )


def test_requests_that_cannot_be_met_are_named(lab: Lab, tmp_path: Path) -> None:
    alice = lab.node("alice").start()
    alice.publish("spin", spin_module(), limits={"stdin_bytes_max": 1024})
    at = ("--data-dir", str(alice.data_dir))

    (tmp_path / "hello.wasm").write_text("not a module")
    says(
        zerostate("agent", "publish", "hello.wasm", *at, home=tmp_path),
        Exit.REFUSED,
        "no WASM module",
    )
    says(
        zerostate("task", "submit", "nobody", "--input", "x", *at, home=tmp_path),
        Exit.NOT_FOUND,
        "nobody",
        "agent list",
    )
    says(
        zerostate("task", "submit", "spin", "--input", "x" * 2000, *at, home=tmp_path),
        Exit.REFUSED,
        "2000",
        "1024",
    )
    says(
        zerostate("task", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV", *at, home=tmp_path),
        Exit.NOT_FOUND,
    )
    (tmp_path / "big").write_bytes(bytes(60 << 20))
    says(
        zerostate("task", "submit", "spin", "--input", "@big", *at, home=tmp_path),
        Exit.REFUSED,
    )
    (tmp_path / "junk.receipt").write_bytes(b"\x93junk")
    says(
        zerostate("receipt", "verify", "junk.receipt", *at, home=tmp_path),
        Exit.USAGE,
        "no receipt",
    )
    assert alice.http.get("/health").status_code == 200


def test_a_command_without_a_node_says_how_to_start_one(tmp_path: Path) -> None:
    done = zerostate("task", "list", "--data-dir", str(tmp_path / "d"), home=tmp_path)
    says(done, Exit.UNREACHABLE, "zerostate-node start")
    as_json = zerostate("task", "list", "--json", "--data-dir", str(tmp_path / "d"), home=tmp_path)
    assert as_json.returncode == Exit.UNREACHABLE
    problem: dict[str, Any] = json.loads((as_json.stdout + as_json.stderr).strip())
    assert "hint" in json.dumps(problem)


def test_a_node_of_another_network_is_named_and_let_go(lab: Lab) -> None:
    seed = lab.seed()
    stranger: NodeProcess = lab.node(
        "stranger", node__network="test", mesh__bootstrap=[seed.addr()]
    ).start()

    def told() -> list[dict[str, Any]]:
        checks = stranger.get("/api/v1/doctor")["checks"]
        return [c for c in checks if c["name"] == "network"]

    (check, *_) = eventually(told, within_s=20, what="the doctor names the wrong network")
    assert check["ok"] is False
    assert "'dev'" in check["detail"]
    assert "'test'" in check["detail"]
    assert "--network" in check["hint"]
