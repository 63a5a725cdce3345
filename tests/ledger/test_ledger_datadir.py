from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zerostate_node.errors import Busy, ConfigError
from zerostate_node.ledger.datadir import DataDir, read_operator_key

ROOT = Path(__file__).resolve().parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught, DataDir(path) as data:
        data.identity_seed()
    return caught.value


def test_a_new_data_directory_and_its_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    before = os.umask(0)
    try:
        with DataDir(path) as data:
            data.identity_seed()
            data.operator_key()
    finally:
        os.umask(before)
    assert mode(path) == 0o700
    assert mode(path / "identity.key") == 0o600
    assert mode(path / "operator.key") == 0o600
    assert mode(path / "node.lock") == 0o600
    assert sorted(os.listdir(path)) == ["identity.key", "node.lock", "operator.key"]


def test_the_keys_are_the_same_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with DataDir(path) as data:
        seed, operator = data.identity_seed(), data.operator_key()
    with DataDir(path) as data:
        assert data.identity_seed() == seed
        assert data.operator_key() == operator
    assert len(seed) == 32
    assert len(operator) >= 43
    assert read_operator_key(path) == operator
    line = (path / "identity.key").read_text()
    assert line == f"ed25519:{base64.b64encode(seed).decode()}\n"


@pytest.mark.parametrize("loose", [0o755, 0o750, 0o710, 0o701, 0o777])
def test_a_data_directory_open_to_others_is_refused_with_the_command_to_run(
    tmp_path: Path, loose: int
) -> None:
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(loose)
    error = refusal(path)
    assert error.code == "loose_data_dir"
    assert f"chmod 700 {path}" in error.hint
    assert os.listdir(path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_data_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    assert refusal(path).code == "foreign_data_dir"


def test_a_file_where_the_data_directory_belongs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("no directory")
    assert refusal(path).code == "no_data_dir"
    assert refusal(path / "below").code == "no_data_dir"


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o644])
def test_a_key_open_to_others_is_refused(tmp_path: Path, loose: int) -> None:
    path = tmp_path / "data"
    with DataDir(path) as data:
        data.identity_seed()
        data.operator_key()
    (path / "identity.key").chmod(loose)
    (path / "operator.key").chmod(loose)
    assert refusal(path).code == "loose_key"
    with pytest.raises(ConfigError) as caught:
        read_operator_key(path)
    assert caught.value.code == "loose_key"
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "ed25519:",
        "ed25519:AAAA",
        "ed25519:" + "A" * 44,
        "rsa:" + base64.b64encode(bytes(32)).decode(),
        "ed25519:" + base64.b64encode(bytes(33)).decode(),
        "ed25519:" + base64.b64encode(bytes(32)).decode() + "\n\n",
        "x" * 100_000,
        "\xff\xfe",
    ],
)
def test_a_key_file_with_anything_else_in_it_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    key = path / "identity.key"
    key.write_text(text, encoding="latin-1")
    key.chmod(0o600)
    assert refusal(path).code == "bad_key"
    assert key.read_text(encoding="latin-1") == text
    key.rename(path / "operator.key")
    with pytest.raises(ConfigError), DataDir(path) as data:
        data.operator_key()


def test_a_link_or_a_pipe_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    (path / "identity.key").symlink_to(tmp_path / "elsewhere")
    assert refusal(path).code == "bad_key"
    assert not (tmp_path / "elsewhere").exists()
    (path / "identity.key").unlink()
    os.mkfifo(path / "identity.key", 0o600)
    assert refusal(path).code == "bad_key"


def test_a_half_written_key_of_a_crash_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    (path / ".identity.key.tmp").write_text("ed25519:hal")
    with DataDir(path) as data:
        assert len(data.identity_seed()) == 32
    assert not (path / ".identity.key.tmp").exists()


def test_reading_a_missing_operator_key_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_operator_key(tmp_path)
    assert caught.value.code == "no_key"
    assert caught.value.hint


def test_keys_are_made_only_under_the_lock(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.open()
    data.close()
    with pytest.raises(RuntimeError):
        data.identity_seed()


HOLDER = """
import sys, pathlib
from zerostate_node.ledger.datadir import DataDir
DataDir(pathlib.Path(sys.argv[1])).open()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_node_on_one_data_directory_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "data"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Busy, match=f"process {holder.pid}"), DataDir(path):
        pass
    holder.kill()  # however it ends, the lock ends with it
    holder.communicate()
    with DataDir(path), pytest.raises(Busy, match=f"process {os.getpid()}"), DataDir(path):
        pass
