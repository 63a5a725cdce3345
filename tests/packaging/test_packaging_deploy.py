"""What deploys a node says the same as the code: ports, paths, commands, variables, times."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e_nodes import Lab
from packaging_dockerfile import Stage, in_context, stages_of
from packaging_wheel import ROOT, SOURCES, tracked

from zerostate_node import node
from zerostate_node.cli.app import COMMANDS
from zerostate_node.errors import Exit
from zerostate_node.settings import ROLES, SECTIONS, Settings, fields_of, load, variable_of
from zerostate_node.settings.values import about

DOCKERFILE = ROOT / "Dockerfile"
FLY = {name: ROOT / name for name in ("fly.toml", "bootstrap/deploy/fly.relay.toml")}
UNIT = ROOT / "bootstrap/deploy/zerostate-node.service"
VARIABLES = {
    variable
    for section in SECTIONS
    for name, field in fields_of(section).items()
    for variable in (variable_of(section, name), *about(field).env)
}
# Of the image, for Python and the shell.
SYSTEM = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
KINDS = pytest.mark.parametrize("name", FLY)


def image() -> Stage:
    return stages_of(DOCKERFILE)[-1]


def fly(name: str) -> dict[str, Any]:
    return tomllib.loads(FLY[name].read_text())


def deployed(name: str) -> Settings:
    """The settings that a node has there: the image's variables, then Fly's."""
    inherited = {k: v for k, v in image().environ.items() if k not in SYSTEM}
    return load(config=None, flags={}, environ={**inherited, **fly(name)["env"]})


def seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+)(ms|s|m)", text)
    assert match, text
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2]]


def tcp_port(address: str) -> int:
    match = re.fullmatch(r"/ip4/0\.0\.0\.0/tcp/([0-9]+)", address)
    assert match, f"{address} is not reachable from outside of its container"
    return int(match[1])


# -- the image -------------------------------------------------------------------------------------


def test_the_image_is_built_in_one_stage_and_run_from_another() -> None:
    build, run = stages_of(DOCKERFILE)
    assert build.name
    assert build.base == run.base, "the environment is copied: it needs the same Python"
    assert any(line.startswith(f"--from={build.name}") for line in run.all("COPY"))
    assert not run.copied, "sources in the image that runs"
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    python = re.fullmatch(r"python:(3\.[0-9]+)-slim", run.base)
    assert python, run.base
    assert python[1] in {f"3.{minor}" for minor in range(11, 14)}, requires


def test_what_the_image_installs_is_pinned_by_hash_and_nothing_else_is_fetched() -> None:
    build = stages_of(DOCKERFILE)[0]
    commands = [c.strip() for line in build.all("RUN") for c in line.split("&&")]
    pips = [c for c in commands if "/pip " in c]
    assert len(pips) == 4
    for command in pips:
        pinned = "--require-hashes" in command and "-r requirements" in command
        local = "--no-index" in command or command.endswith("-w /wheels .")
        assert pinned or local, command
        assert "--no-deps" in command, command
        assert " wheel " not in command or "--no-build-isolation" in command, command
    assert not any(word in c for c in commands for word in ("curl ", "wget ", "apt-get"))


def test_the_context_holds_what_is_copied_and_no_more_than_the_wheel_needs() -> None:
    ignore = ROOT / ".dockerignore"
    copied = stages_of(DOCKERFILE)[0].copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert in_context(ignore, source), f"{source} is copied, and ignored"
    assert set(copied) - {"requirements.lock", "requirements-build.lock"} == {
        name for name in SOURCES if name != ".gitignore"
    }
    for kept_out in (
        ".git/config", ".venv/bin/python", "tests/wire/conftest.py", "identity.key", ".env",
        "zerostate_node/__pycache__/node.cpython-312.pyc", "data/ledger.sqlite",
    ):  # fmt: skip
        assert not in_context(ignore, kept_out), f"{kept_out} would reach the build"


def test_the_image_runs_as_a_fixed_user_who_owns_a_private_volume() -> None:
    run = image()
    uid, gid = run.last("USER").split(":")
    assert uid.isdigit()
    assert int(uid) >= 10_000, "an id that no user of the host has"
    made = " ".join(run.all("RUN"))
    volume = run.last("VOLUME")
    assert f"--uid {uid}" in made
    assert f"install -d -o {uid} -g {gid} -m 0700 {volume}" in made
    order = [word for word, _ in run.steps]
    assert order.index("RUN") < order.index("VOLUME"), "a volume takes over what was there before"
    data_dir = Path(run.environ["ZEROSTATE_NODE_DATA_DIR"])
    assert data_dir.parent == Path(volume), "below the volume, whose own mode the host decides"


def test_each_variable_of_the_image_is_a_setting_and_none_is_a_secret() -> None:
    environ = image().environ
    assert set(environ) - SYSTEM <= VARIABLES
    secret = {
        variable_of(section, name)
        for section in SECTIONS
        for name, field in fields_of(section).items()
        if about(field).secret
    }
    assert not set(environ) & secret
    text = DOCKERFILE.read_text()
    assert not re.search(r"(?i)\b(ARG|SECRET|TOKEN|PASSWORD|API_KEY)\b", text)


def test_the_image_starts_a_command_that_exists_on_the_ports_it_exposes() -> None:
    run = image()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (program,), (command,) = run.command("ENTRYPOINT"), run.command("CMD")
    assert program in scripts
    assert command in COMMANDS
    settings = load(
        config=None,
        flags={},
        environ={k: v for k, v in run.environ.items() if k not in SYSTEM},
    )
    assert not settings.warnings
    ports = {settings.http.port, tcp_port(settings.mesh.listen[0])}
    assert ports == {int(port) for port in run.last("EXPOSE").split()}
    assert settings.http.host == "0.0.0.0"
    assert settings.http.allowed_hosts
    assert run.last("STOPSIGNAL") == "SIGTERM"
    stop = re.search(r"docker run .*--stop-timeout ([0-9]+)", DOCKERFILE.read_text())
    assert stop
    assert int(stop[1]) > node.DRAIN_S_MAX


def test_the_health_check_of_the_image_tells_a_node_that_serves_from_one_that_does_not(
    lab: Lab,
) -> None:
    alice = lab.node("alice").start()
    program, *arguments = image().command("HEALTHCHECK")
    assert program == "python"

    def check() -> int:
        environ = {**os.environ, "ZEROSTATE_NODE_DATA_DIR": str(alice.data_dir)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, check=False).returncode

    assert check() == 0
    alice.kill()  # leaves its run file behind
    assert check() != 0


# -- Fly -------------------------------------------------------------------------------------------


@KINDS
def test_each_variable_given_on_fly_is_a_setting_and_together_they_load(name: str) -> None:
    config = fly(name)
    assert set(config["env"]) <= VARIABLES
    settings = deployed(name)
    assert settings.node.role in ROLES
    assert not settings.warnings, "the node would complain at each start"
    assert settings.node.environment == "production"


@KINDS
def test_the_p2p_port_on_fly_is_raw_tcp_and_always_there(name: str) -> None:
    config = fly(name)
    (service,) = config["services"]
    settings = deployed(name)
    assert service["protocol"] == "tcp"
    assert service["internal_port"] == tcp_port(settings.mesh.listen[0])
    for port in service["ports"]:
        assert port["handlers"] == [], "libp2p cannot be spoken through a handler"
        assert not port.get("force_https")
    assert service["auto_stop_machines"] == "off"
    assert service["min_machines_running"] >= 1
    (announced,) = settings.mesh.announce
    assert announced == f"/dns4/{config['app']}.fly.dev/tcp/{service['ports'][0]['port']}"


@KINDS
def test_a_machine_on_fly_keeps_its_identity_and_gets_the_time_to_leave(name: str) -> None:
    config = fly(name)
    (mount,) = config["mounts"]
    data_dir = deployed(name).node.data_dir
    assert data_dir.parent == Path(mount["destination"]) == Path(image().last("VOLUME"))
    assert config["kill_signal"] == "SIGTERM"
    assert node.DRAIN_S_MAX < seconds(config["kill_timeout"]) <= 300
    assert mount["source"] in FLY[name].read_text().split("[", 1)[0], "no word on how to make it"


def test_http_on_fly_is_served_apart_from_p2p_and_checked_as_the_node_answers(lab: Lab) -> None:
    config, settings = fly("fly.toml"), deployed("fly.toml")
    http = config["http_service"]
    assert http["internal_port"] == settings.http.port != config["services"][0]["internal_port"]
    assert http["force_https"] is True
    assert http["auto_stop_machines"] == "off", "an owner of tasks that stops is a dead owner"
    assert http["min_machines_running"] >= 1
    assert settings.http.host == "0.0.0.0"
    assert settings.http.allowed_hosts == (f"{config['app']}.fly.dev",)
    (check,) = http["checks"]
    assert (check["interval"], check["timeout"], check["grace_period"]) == ("10s", "2s", "5s")
    (inside,) = fly("bootstrap/deploy/fly.relay.toml")["checks"].values()
    alice = lab.node(
        "alice", http__host="0.0.0.0", http__allowed_hosts=list(settings.http.allowed_hosts)
    ).start()
    url = alice.run_file()["http_url"]
    for each in (check, inside):
        # Fly asks by the machine's address, people by its name, others by names of theirs
        for host, status in (
            ("172.19.0.2:8080", 200),
            (settings.http.allowed_hosts[0], 200),
            ("rebound.example", 421),
        ):
            answer = httpx.request(each["method"], url + each["path"], headers={"Host": host})
            assert answer.status_code == status, (each, host)


def test_a_relay_on_fly_relays_has_no_public_http_and_a_place_for_each_connection() -> None:
    name = "bootstrap/deploy/fly.relay.toml"
    config, settings = fly(name), deployed(name)
    assert settings.mesh.relay_serve
    assert not settings.worker.enabled
    assert not settings.mesh.dial_private
    assert "http_service" not in config
    assert config["checks"]["health"]["port"] == settings.http.port
    limit = config["services"][0]["concurrency"]
    assert limit["type"] == "connections"
    assert limit["soft_limit"] < limit["hard_limit"] == settings.mesh.connections_max
    deploy = re.search(r"fly deploy --config (\S+) --dockerfile (\S+)", FLY[name].read_text())
    assert deploy
    assert all((ROOT / path).is_file() for path in deploy.groups())


def test_fly_builds_the_image_of_this_tree() -> None:
    assert ROOT / fly("fly.toml")["build"]["dockerfile"] == DOCKERFILE


# -- systemd ---------------------------------------------------------------------------------------


def unit() -> configparser.ConfigParser:
    class Many(dict[str, Any]):
        """Keys may come again: their values are kept, one a line."""

        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.ConfigParser(
        dict_type=Many, strict=False, interpolation=None, comment_prefixes=("#",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_starts_a_relay_with_known_variables_in_its_own_directory() -> None:
    service = unit()["Service"]
    environ = dict(line.split("=", 1) for line in service["Environment"].splitlines() if line)
    assert set(environ) <= VARIABLES
    settings = load(config=None, flags={}, environ=environ)
    assert settings.mesh.relay_serve
    assert not settings.warnings
    program, command = service["ExecStart"].split()
    assert Path(program).name == "zerostate-node"
    assert command in COMMANDS
    assert settings.node.data_dir == Path("/var/lib") / service["StateDirectory"]
    assert service["StateDirectoryMode"] == "0700"
    assert service["User"] != "root"
    assert service["NoNewPrivileges"] == "yes"


def test_the_unit_lets_runs_end_and_does_not_repeat_a_start_that_cannot_work() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > node.DRAIN_S_MAX
    assert service["KillMode"] == "mixed", "sandbox processes would get the signal as well"
    assert service["Restart"] == "always"
    assert int(service["RestartPreventExitStatus"]) == Exit.USAGE
    assert "MemoryDenyWriteExecute" not in service, "compiled guests could not run"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    program = tmp_path / "zerostate-node"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={program}", UNIT.read_text()))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not complaints


# -- presets ---------------------------------------------------------------------------------------


def test_each_role_has_one_preset_and_each_preset_a_role() -> None:
    presets = {Path(name).stem for name in tracked("configs") if name.count("/") == 1}
    assert presets - {"node.example"} == set(ROLES)


def test_networks_and_presets_named_in_what_deploys_exist() -> None:
    networks = {path.stem for path in (ROOT / "bootstrap/networks").glob("*.toml")}
    for name in FLY:
        assert fly(name)["env"]["ZEROSTATE_NODE_NETWORK"] in networks
    assert json.dumps(sorted(networks)) == '["dev", "main", "test"]'
