"""The wheel: everything is in it, it builds the same twice, and it runs from any directory."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import httpx
import pytest
from e2e_nodes import eventually
from packaging_wheel import ROOT, Installed, build_wheel, copy_sources, tracked

from zerostate_node import __version__, resources

DATA = "zerostate_node/_data/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_sources(home / "source"), home / "out")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist()}


def test_the_wheel_holds_every_file_of_the_package_and_of_the_data_directories(
    wheel: Path,
) -> None:
    inside = contents(wheel)
    expected = {
        (name if name.startswith("zerostate_node/") else DATA + name): name
        for name in tracked("zerostate_node", *resources.NAMES)
    }
    for carried, name in expected.items():
        assert carried in inside, f"{name} is not in the wheel"
        assert inside[carried] == hashlib.sha256((ROOT / name).read_bytes()).hexdigest(), name
    others = {n for n in inside if n not in expected and ".dist-info/" not in n}
    assert not others, "in the wheel and not in the tree"
    # each kind that is read while running, by name: an empty list above would prove nothing
    for kind in (
        "zerostate_node/py.typed",
        "zerostate_node/gateway/page.css",
        "zerostate_node/ledger/migrations/sqlite/0001_tasks.sql",
        DATA + "configs/gateway.toml",
        DATA + "bootstrap/networks/main.toml",
        DATA + "protocols/README.md",
    ):
        assert kind in expected, kind
    assert any(name.endswith("/licenses/LICENSE") for name in inside)


def test_two_builds_at_two_places_and_times_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for place in ("first", "second/deeper"):
        source = copy_sources(tmp_path / place)
        if place != "first":  # what differs between two machines: times, umask, leftovers
            (source / "zerostate_node" / "__pycache__").mkdir()
            (source / "zerostate_node" / "__pycache__" / "node.cpython-311.pyc").write_bytes(b"x")
            os.utime(source / "zerostate_node" / "node.py", (86_400, 86_400))
            (source / "zerostate_node" / "node.py").chmod(0o600)
        wheel = build_wheel(source, tmp_path / place / "out", SOURCE_DATE_EPOCH="1700000000")
        digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_installed_command_says_its_version_and_reads_its_own_files(
    installed: Installed,
) -> None:
    assert installed.run("--version").stdout.strip() == f"zerostate-node {__version__}"
    where = Path(installed.ask("import zerostate_node; print(zerostate_node.__file__)"))
    assert installed.venv in where.parents
    for name in resources.NAMES:
        carried = Path(
            installed.ask(f"from zerostate_node import resources as r; print(r.find({name!r}))")
        )
        assert carried == where.parent / "_data" / name
        assert resources.find(name) == ROOT / name  # and the checkout reads its own


def test_settings_are_read_from_the_presets_in_the_wheel(installed: Installed) -> None:
    shown = installed.run("config", "show", "--json", ZEROSTATE_NODE_ROLE="relay")
    assert shown.returncode == 0, shown.stderr
    text = json.dumps(json.loads(shown.stdout))
    assert "preset relay.toml" in text
    assert str(ROOT) not in text
    free = {"ZEROSTATE_HTTP_PORT": "0", "ZEROSTATE_MESH_LISTEN": "/ip4/127.0.0.1/tcp/0"}
    checked = installed.run("config", "check", **free)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = installed.run("config", "check", ZEROSTATE_NODE_ROLE="king")
    assert (wrong.returncode, "ZEROSTATE_NODE_ROLE" in wrong.stderr) == (2, True)


def test_a_node_from_the_wheel_serves_and_runs_a_task_from_the_root_directory(
    installed: Installed,
) -> None:
    node = installed.start()
    try:

        def serving() -> str:
            assert node.poll() is None, (installed.home / "node.log").read_text()
            return installed.running()

        url = eventually(serving, within_s=60, what="node ready")
        health = httpx.get(f"{url}/health").json()
        assert health["version"] == __version__
        published = installed.run("agent", "publish", str(ROOT / "examples/markdown/markdown.wasm"))
        assert published.returncode == 0, published.stderr
        done = installed.run("task", "submit", "markdown", "--input", "# hello")
        assert (done.returncode, done.stdout.strip()) == (0, "<h1>hello</h1>"), done.stderr
    finally:
        node.terminate()
        code = node.wait(30)
    assert code == 0
