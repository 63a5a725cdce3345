from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READY_S_MAX = 60


@dataclasses.dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, object]:
        found = json.loads(self.err.strip().splitlines()[-1])
        error: dict[str, object] = found["error"]
        return error


def environment(home: Path, **more: str) -> dict[str, str]:
    """A clean one: none of the variables of whoever runs the tests."""
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


Command = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    """Run `python -m zerostate_node ...` for real, in an empty home."""

    def run(*words: str, input: bytes = b"", timeout: float = 60, **more: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "zerostate_node", *words],
            input=input,
            capture_output=True,
            timeout=timeout,
            env=environment(tmp_path, **more),
            cwd=tmp_path,
        )
        out = done.stdout.decode("utf-8", "surrogateescape")
        return Done(done.returncode, out, done.stderr.decode("utf-8", "replace"))

    return run


@dataclasses.dataclass
class LiveNode:
    """A node process that serves."""

    data_dir: Path
    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveNode]:
    """One real node, alone, for all tests that only need something to talk to."""
    home = tmp_path_factory.mktemp("node")
    data_dir = home / "data"
    command = [sys.executable, "-m", "zerostate_node", "start", "--json", "--network", "dev"]
    command += ["--port", "0", "--data-dir", str(data_dir)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--set", "mesh.listen=/ip4/127.0.0.1/tcp/0", "--set", "worker.slots=1"],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(home),
            cwd=home,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # ends at once when the process does
        assert line, (home / "log").read_text()[-4000:]
        ready = json.loads(line)
        assert ready["ready"] is True
        yield LiveNode(data_dir, ready["http_url"], process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    assert process.returncode == 0, (home / "log").read_text()[-4000:]
    assert not (data_dir / "node.json").exists()


@pytest.fixture
def at(cli: Command, node: LiveNode) -> Command:
    """The same, talking to the live node."""

    def run(*words: str, **options: object) -> Done:
        options.setdefault("ZEROSTATE_DATA_DIR", str(node.data_dir))
        return cli(*words, **options)

    return run
