"""Settings: every field and variable has an effect, wrong ones are named, the order holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zerostate_node import resources
from zerostate_node.errors import ConfigError
from zerostate_node.settings import ROLES, SECTIONS, fields_of, load, load_network, variable_of
from zerostate_node.settings.describe import effective, example_toml
from zerostate_node.settings.schema import Settings
from zerostate_node.settings.values import about, kind_of, shown

PEER = "12D3KooWGRUfN7pPGaRrRJ4eQmCBhDHDsLBkR4h7yQyVYCyd7yBB"
ADDRESS = f"/dns4/boot.example.org/tcp/4001/p2p/{PEER}"

# A text that is allowed and differs from the default, where the kind does not say one.
OTHER: dict[str, str] = {
    "node.network": "dev",
    "node.role": "gateway",
    "node.data_dir": "/somewhere/else",
    "node.region": "ord",
    "node.environment": "production",
    "mesh.listen": "/ip4/127.0.0.1/tcp/4009",
    "mesh.announce": "/dns4/node.example.org/tcp/4001",
    "mesh.bootstrap": ADDRESS,
    "mesh.relay_use": "always",
    "mesh.relays": ADDRESS,
    "worker.serves": "cap:text/markdown",
    "worker.publishers": "did:key:z6Mkn8v5wVjYcCJ5wDhVRvRkRvHFVKQvS3uS3tJmGuVUYk4h",
    "worker.slots": "3",
    "worker.price_floor_ucr": "7",
    "http.host": "0.0.0.0",
    "http.allowed_hosts": "node.example.org",
    "ledger.url": "sqlite:///other.db",
    "log.level": "debug",
    "log.format": "json",
}


def all_fields() -> Iterator[tuple[str, str, dataclasses.Field[Any]]]:
    for section in SECTIONS:
        for name, field in fields_of(section).items():
            yield section, name, field


def another(section: str, name: str, field: dataclasses.Field[Any]) -> str:
    key = f"{section}.{name}"
    if key in OTHER:
        return OTHER[key]
    if kind_of(field) == "switch":
        return "false" if field.default else "true"
    described, value = about(field), field.default
    for candidate in (value + 1, value - 1):
        high, low = described.most, described.least
        if (high is None or candidate <= high) and (low is None or candidate >= low):
            break
    return str(candidate)


def value(settings: Settings, section: str, name: str) -> Any:
    return getattr(getattr(settings, section), name)


FIELDS = [pytest.param(*item, id=f"{item[0]}.{item[1]}") for item in all_fields()]


@pytest.mark.parametrize(("section", "name", "field"), FIELDS)
def test_each_variable_of_a_setting_changes_that_setting_and_says_so(
    section: str, name: str, field: dataclasses.Field[Any]
) -> None:
    before = value(load(config=None, flags={}, environ={}), section, name)
    text = another(section, name, field)
    for variable in (variable_of(section, name), *about(field).env):
        if variable == "GIN_MODE":
            continue  # has words of its own, tested below
        settings = load(config=None, flags={}, environ={variable: text})
        assert value(settings, section, name) != before, variable
        assert str(settings.origins[f"{section}.{name}"]) == f"environment {variable}"


@pytest.mark.parametrize(("section", "name", "field"), FIELDS)
def test_each_setting_can_be_set_by_file_and_by_flag(
    tmp_path: Path, section: str, name: str, field: dataclasses.Field[Any]
) -> None:
    text = another(section, name, field)
    by_flag = load(config=None, flags={f"{section}.{name}": text}, environ={})
    quoted = text if kind_of(field) in ("switch", "number", "decimal") else f'"{text}"'
    if kind_of(field) == "list":
        quoted = f'["{text}"]'
    file = tmp_path / "node.toml"
    file.write_text(f"# a comment\n[{section}]\n{name} = {quoted}\n")
    by_file = load(config=file, flags={}, environ={})

    assert value(by_file, section, name) == value(by_flag, section, name)
    assert str(by_file.origins[f"{section}.{name}"]) == f"file {file}:3"


def test_later_sources_win_over_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\nrole = "gateway"\n[worker]\nslots = 5\n[http]\nport = 1111\n')

    def port_and_slots(environ: dict[str, str], flags: dict[str, str]) -> tuple[int, int]:
        settings = load(config=file, flags=flags, environ=environ)
        return settings.http.port, settings.worker.slots

    assert port_and_slots({}, {}) == (1111, 5)  # the preset of gateway says 1 slot: file wins
    assert port_and_slots({"PORT": "2222"}, {}) == (2222, 5)
    assert port_and_slots({"PORT": "2222"}, {"http.port": "3333"}) == (3333, 5)
    ours = {"PORT": "2222", "ZEROSTATE_HTTP_PORT": "4444"}
    assert port_and_slots(ours, {}) == (4444, 5)  # the full name wins over the short one
    assert port_and_slots({"PORT": ""}, {}) == (1111, 5)  # empty is unset


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_a_preset_that_loads(role: str) -> None:
    settings = load(config=None, flags={"node.role": role}, environ={})
    assert settings.node.role == role
    relay = role in ("relay", "bootstrap")
    assert settings.mesh.relay_serve is relay
    assert settings.owner.enabled is not relay
    assert settings.worker.enabled is not relay
    assert settings.mesh.dial_private is not relay
    if relay:
        assert settings.http.host == "127.0.0.1"


def test_a_relay_of_the_dev_network_may_dial_private_addresses() -> None:
    flags = {"node.role": "relay", "node.network": "dev"}
    assert load(config=None, flags=flags, environ={}).mesh.dial_private is True
    told = {**flags, "mesh.dial_private": "false"}
    assert load(config=None, flags=told, environ={}).mesh.dial_private is False


@pytest.mark.parametrize("name", ["alice", "bob", "carol"])
def test_the_dev_files_load(name: str) -> None:
    file = resources.find("configs") / "dev" / f"{name}.toml"
    settings = load(config=file, flags={}, environ={})
    assert settings.network.name == "dev"
    assert settings.node.data_dir.name == name


def test_the_example_file_changes_nothing_and_all_of_its_lines_are_settings(
    tmp_path: Path,
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(example_toml())
    plain = load(config=None, flags={}, environ={})
    assert dataclasses.replace(load(config=file, flags={}, environ={})).node == plain.node

    uncommented = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in example_toml().splitlines()
    )
    file.write_text(uncommented)
    settings = load(config=file, flags={}, environ={})
    assert {key: row["value"] for key, row in effective(settings).items()} == {
        key: row["value"] for key, row in effective(plain).items()
    }


@pytest.mark.parametrize(
    ("text", "complaint", "hint"),
    [
        ("[http]\nprot = 1\n", ":2: http.prot is not a setting", "http.port"),
        ("[htpp]\nport = 1\n", ":1: htpp is not a setting", ""),
        ("port = 1\n", ":1: port is not a setting", ""),
        ("[node]\nslots = 1\n", ":2: node.slots is not a setting", "worker.slots"),
        ("[http]\nport = 70000\n", ":2: http.port = 70000: must be at least 0", ""),
        ('[http]\nport = "x"\n', "must be a whole number", ""),
        ("[http]\nport = true\n", "not true or false", ""),
        ("[http]\nport = 1.5\n", "must be a whole number", ""),
        ("[owner]\nlease_ttl_s = -3\n", ":2: owner.lease_ttl_s = -3: must be at least 1s", ""),
        ("[owner]\nlease_ttl_s = nan\n", "must be", ""),
        ('[owner]\nlease_ttl_s = "soon"\n', "must be a duration", ""),
        ('[sandbox]\nmemory_bytes_max = "64 bananas"\n', "must be a size", ""),
        ('[mesh]\nlisten = ["/ip4/999.1.1.1/tcp/1"]\n', "is no multiaddr", ""),
        ("[mesh]\nlisten = [1]\n", "must be a list of texts", ""),
        ('[mesh]\nbootstrap = ["/ip4/1.2.3.4/tcp/1"]\n', "whom it leads to", ""),
        ('[node]\nrole = "boss"\n', "must be one of edge, gateway, relay, bootstrap", ""),
        ('[node]\nnetwork = "nowhere"\n', "there is no network 'nowhere'", "dev, main, test"),
        ('[node]\nregion = "a b"\n', "node.region", ""),
        ('[node]\nregion = "\\u001b[31m"\n', "holds control characters", ""),
        ('[ledger]\nurl = "postgresql://u:hunter2@h/db"\n', "not supported yet", ""),
        ("[mesh]\nrelay_serve = true\nlisten = []\n", "a relay must listen", "mesh.listen"),
        ("[http]\nbody_bytes_max = 12\n", "must be at least", ""),
        ("not toml", "is not TOML", ""),
    ],
)
def test_a_wrong_file_is_refused_with_its_place_and_what_is_allowed(
    tmp_path: Path, text: str, complaint: str, hint: str
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config=file, flags={}, environ={})
    assert complaint in caught.value.message
    assert hint in caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_missing_or_huge_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(config=tmp_path / "none.toml", flags={}, environ={})
    file = tmp_path / "huge.toml"
    file.write_bytes(b"#" * (1 << 20) + b"\n#")
    with pytest.raises(ConfigError, match="larger than"):
        load(config=file, flags={}, environ={})


def test_an_unknown_variable_with_our_prefix_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load(config=None, flags={}, environ={"ZEROSTATE_WORKER_SLOT": "2"})
    assert "ZEROSTATE_WORKER_SLOTS" in caught.value.hint
    load(config=None, flags={}, environ={"ZEROSTATE_URL": "http://x", "UNRELATED": "1"})


def test_variables_that_have_no_effect_yet_are_warned_of() -> None:
    environ = {"R2_BUCKET_NAME": "x", "P2P_BOOTSTRAP_PEER": "y", "GIN_MODE": "release"}
    settings = load(config=None, flags={}, environ=environ)
    assert settings.node.environment == "production"
    text = "\n".join(settings.warnings)
    assert "R2_BUCKET_NAME" in text
    assert "did you mean P2P_BOOTSTRAP_PEERS" in text
    assert "GIN_MODE is deprecated" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15s", 15.0), ("250ms", None), ("2m", 120.0), ("1h", 3600.0), ("20", 20.0), ("1.5m", 90.0)],
)
def test_durations_may_be_written_with_a_unit(text: str, expected: float | None) -> None:
    environ = {"ZEROSTATE_OWNER_LEASE_TTL_S": text}
    if expected is None:  # under the least allowed
        with pytest.raises(ConfigError):
            load(config=None, flags={}, environ=environ)
    else:
        assert load(config=None, flags={}, environ=environ).owner.lease_ttl_s == expected


def test_milliseconds_fields_take_seconds_with_a_unit_and_plain_milliseconds() -> None:
    for text, expected in (("5s", 5000), ("1500", 1500), ("1500ms", 1500)):
        flags = {"sandbox.wall_ms_max": text}
        assert load(config=None, flags=flags, environ={}).sandbox.wall_ms_max == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 << 20), ("64MB", 64_000_000), ("1.5GiB", 3 << 29), ("1_048_576", 1 << 20)],
)
def test_sizes_may_be_written_with_a_unit(text: str, expected: int) -> None:
    flags = {"sandbox.memory_bytes_max": text}
    assert load(config=None, flags=flags, environ={}).sandbox.memory_bytes_max == expected


def test_every_default_reads_back_from_how_it_is_shown() -> None:
    plain = load(config=None, flags={}, environ={"HOME": "/h"})
    for section, name, field in all_fields():
        text = shown(field, field.default)
        if text and name != "data_dir":
            again = load(config=None, flags={f"{section}.{name}": text}, environ={"HOME": "/h"})
            assert value(again, section, name) == value(plain, section, name), name


def test_a_password_in_an_address_is_never_shown() -> None:
    settings = load(config=None, flags={}, environ={})
    secret = dataclasses.replace(
        settings,
        ledger=dataclasses.replace(settings.ledger, url="postgresql://me:hunter2@host/db"),
    )
    row = effective(secret)["ledger.url"]
    assert "hunter2" not in str(row)
    assert "host/db" in row["text"]


def test_the_data_directory_follows_home_and_xdg() -> None:
    def folder(**environ: str) -> str:
        return str(load(config=None, flags={}, environ=environ).node.data_dir)

    assert folder(HOME="/home/a") == "/home/a/.local/share/zerostate-node"
    assert folder(HOME="/home/a", XDG_DATA_HOME="/x") == "/x/zerostate-node"
    assert folder(HOME="/home/a", ZEROSTATE_DATA_DIR="~/mine") == "/home/a/mine"


def test_the_ledger_path_is_absolute_with_four_slashes_and_in_the_data_directory_with_three() -> (
    None
):
    def path(url: str) -> str:
        flags = {"ledger.url": url, "node.data_dir": "/d"}
        return str(load(config=None, flags=flags, environ={}).ledger_path)

    assert path("sqlite:///a.db") == "/d/a.db"
    assert path("sqlite:////var/a.db") == "/var/a.db"


@pytest.mark.parametrize("name", ["main", "test", "dev"])
def test_the_shipped_networks_load_and_claim_no_servers(name: str) -> None:
    network = load_network(name)
    assert network.name == name
    assert network.peers == ()
    assert network.why


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shards = 1\n", "name"),
        ('name = "x"\nshards = 0\n', ":2: shards"),
        ('name = "x"\npeers = ["/ip4/1.2.3.4/tcp/1"]\n', "whom it leads to"),
        ('name = "x"\npeer = []\n', ":2: peer is not part"),
        ('name = "No Name"\n', "must be up to 32"),
    ],
)
def test_a_wrong_network_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_network(str(file))
    assert complaint in caught.value.message


def test_a_network_file_of_ones_own_gives_name_shards_and_peers(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(f'name = "lab"\nshards = 2\npeers = ["{ADDRESS}"]\n')
    flags = {"node.network": str(file), "mesh.bootstrap": ADDRESS}
    settings = load(config=None, flags=flags, environ={})
    assert (settings.network.name, settings.network.shards) == ("lab", 2)
    assert settings.bootstrap_peers == (ADDRESS,)  # named twice, dialled once


def test_a_resource_that_is_nowhere_names_both_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "zerostate_node")
    with pytest.raises(ConfigError) as caught:
        resources.find("configs")
    assert "_data" in caught.value.message
    (tmp_path / "zerostate_node" / "_data" / "configs").mkdir(parents=True)
    assert resources.find("configs").parent.name == "_data"
