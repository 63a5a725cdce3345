"""What must hold of the whole tree. Each check is first shown something that it must find."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import house_tree as house
import pytest

from zerostate_node.wire import ids

LINES_MAX = 500
# Longer ones, each with how long it may get and why it is one file.
LONGER = {
    "zerostate_node/services/driver.py": (800, "the one place where facts about tasks are stepped"),
    "zerostate_node/services/worker.py": (650, "one life of a worker, in order"),
    "zerostate_node/node.py": (600, "the composition root is read from top to bottom"),
    "tests/services/test_services_driver.py": (600, "one suite for one service"),
    "tests/services/test_services_work.py": (700, "one suite for one conversation"),
    "tests/ledger/test_ledger_contract.py": (600, "one contract for all ledgers"),
}
GUEST_LINES_MAX = 700  # sources of examples: one guest, few files, nothing else to import
FILE_BYTES_MAX = 1_500_000
SOURCES = (".py", ".c", ".h", ".rs", ".zig", ".ts", ".js", ".go", ".css", ".sql", ".sh")
# Where these are what is talked about.
MEANT = {
    "unwanted words": {"tests/house/test_house_tree.py", "tests/support/house_tree.py"},
    # passwords that the tests see redacted
    "secrets": {"tests/settings/test_settings_load.py", "tests/settings/test_settings_log.py"},
}

Check = Callable[[str], list[Any]]
EVERYWHERE: dict[str, Check] = {
    "machine paths": house.machine_paths,
    "hosts of registries": house.registry_hosts,
    "secrets": house.secrets,
    "unwanted words": house.unwanted_words,
}
BAD = [
    (house.machine_paths, "see /" + "root/notes.md"),
    (house.machine_paths, "cd /" + "work/main"),
    (house.machine_paths, "/" + "home/alice/key"),
    (house.registry_hosts, "https://py" + "pi.org/simple"),
    (house.registry_hosts, "https://registry.npm" + "js.org"),
    (house.secrets, "-----BEGIN PRIV" + "ATE KEY-----"),
    (house.secrets, "AKIA" + "ABCDEFGHIJKLMNOP"),
    (house.secrets, "ed25519:" + "A" * 43 + "="),
    (house.secrets, "postgres://bob:" + "hunter22@db.example.org/x"),
    (house.unwanted_words, "# TO" + "DO: later"),
    (house.unwanted_words, "a black" + "list"),
    (house.sleeps, "import time\ndef f():\n    time.sleep(1)\n"),
    (house.sleeps, "import time\ndef f():\n    while not done():\n        time.sleep(1)\n"),
    (house.mocks, "from unittest import mock\n"),
    (house.mocks, "from unittest.mock import patch\n"),
    (house.environment_reads, "x = os.environ.get('ZEROSTATE_SECRET_SWITCH')"),
]


@pytest.mark.parametrize(("check", "text"), BAD)
def test_each_check_finds_what_it_looks_for(check: Check, text: str) -> None:
    assert check(text)


def test_the_checks_let_pass_what_is_fine() -> None:
    polling = (
        "import time\ndef f():\n    end = time.monotonic() + 1\n"
        "    while time.monotonic() < end:\n        time.sleep(0.1)\n"
    )
    assert not house.sleeps(polling)
    assert not house.machine_paths("protocol /zerostate/work/1, file /etc/zerostate/node.env")
    assert not house.secrets("postgres://user:[redacted]@db, Bearer <key>")


@pytest.mark.parametrize("what", EVERYWHERE)
def test_no_file_holds_what_does_not_belong_in_a_tree(what: str) -> None:
    found = {
        name: bad
        for name in house.tracked()
        if name not in MEANT.get(what, ()) and (bad := EVERYWHERE[what](house.text_of(name)))
    }
    assert not found


def test_no_file_is_too_large_and_no_link_leads_out_of_the_tree() -> None:
    large = [n for n in house.tracked() if (house.ROOT / n).stat().st_size > FILE_BYTES_MAX]
    assert not large
    links = [n for n in house.tracked() if (house.ROOT / n).is_symlink()]
    assert not links


def test_no_source_file_is_longer_than_a_person_reads_at_once() -> None:
    long = {}
    for name in house.tracked():
        if name.endswith(SOURCES):
            limit = GUEST_LINES_MAX if name.startswith("examples/") else LINES_MAX
            limit = LONGER.get(name, (limit, ""))[0]
            if (lines := house.text_of(name).count("\n")) > limit:
                long[name] = (lines, limit)
    assert not long
    assert not [name for name in LONGER if name not in house.tracked()], "an exception for nobody"


def test_no_two_test_modules_have_one_name() -> None:
    names = [
        Path(name).name
        for name in house.tracked()
        if name.startswith("tests/") and name.endswith(".py") and not name.endswith("/conftest.py")
    ]
    assert not [name for name, count in Counter(names).items() if count > 1]
    assert not [name for name in names if name == "__init__.py"]


def test_tests_wait_by_polling_against_a_deadline_and_never_by_sleeping() -> None:
    found = {
        name: lines
        for name in house.tracked()
        if name.startswith("tests/")
        and name.endswith(".py")
        and (lines := house.sleeps(house.text_of(name)))
    }
    assert not found


def test_nothing_of_ours_is_mocked() -> None:
    found = {
        name: names
        for name in house.tracked()
        if name.startswith("tests/")
        and name.endswith(".py")
        and (names := house.mocks(house.text_of(name)))
    }
    assert not found


def test_only_the_settings_know_variables_of_the_environment() -> None:
    allowed = {"COLUMNS", "XDG_CACHE_HOME"}  # of the terminal and the user, not of a node
    found = {
        name: set(names) - allowed
        for name in house.tracked()
        if name.startswith("zerostate_node/")
        and name.endswith(".py")
        and set(names := house.environment_reads(house.text_of(name))) - allowed
    }
    assert not found


def test_each_protocol_folder_is_in_the_register_and_each_id_has_its_folder() -> None:
    register = house.text_of("protocols/README.md")
    folders = {name.split("/")[1] for name in house.tracked() if name.count("/") >= 3
               and name.startswith("protocols/")}  # fmt: skip
    assert folders
    for folder in folders:
        assert f"({folder}/1/README.md)" in register, folder
        assert f"protocols/{folder}/1/README.md" in house.tracked(), folder
    for contract in ids.REGISTER:
        assert f"| `{contract}` |" in register, contract


def test_imports_point_down() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=house.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "Contracts: 2 kept, 0 broken" in done.stdout


def test_the_rule_about_imports_can_be_broken(tmp_path: Path) -> None:
    for name in house.tracked():
        if name.startswith("zerostate_node/") and name.endswith(".py"):
            copy = tmp_path / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(house.text_of(name))
    (tmp_path / "pyproject.toml").write_text(house.text_of("pyproject.toml"))
    for module, import_ in (
        ("wire/ids.py", "import trio\n"),
        ("services/hub.py", "import zerostate_node.mesh.addrs\n"),
    ):
        broken = tmp_path / "zerostate_node" / module
        broken.write_text(broken.read_text() + import_)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LINT, "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 kept, 2 broken" in done.stdout


# The copy comes before the checkout that the environment is linked to.
_LINT = """
import sys
sys.path.insert(0, ".")
from importlinter.cli import lint_imports_command
lint_imports_command()
"""
