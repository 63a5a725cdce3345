"""`zerostate-node config`: what settings are in force, and whether they can work."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerostate_node.cli.shape import Group, command, json_option
from zerostate_node.errors import Busy, ConfigError, Exit, ZeroStateError

if TYPE_CHECKING:
    from zerostate_node.settings import Settings

config = Group("config", help="Show and check settings.", no_args_is_help=True)
config.examples = (
    ("zerostate-node config show --changed", "what differs from the defaults, and why"),
    ("zerostate-node config check --config node.toml", "before a start does"),
)


def settings_options(function: Any) -> Any:
    """The options of `start` that decide settings; they arrive as one `settings`."""
    import functools

    @functools.wraps(function)
    def gather(
        *args: Any,
        config_file: Path | None,
        network: str | None,
        role: str | None,
        data_dir: str | None,
        port: str | None,
        sets: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        from zerostate_node.settings import load

        flags: dict[str, str] = {}
        for item in sets:
            key, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(
                    f"--set {item[:128]!r} must be SECTION.FIELD=VALUE",
                    code="usage",
                    hint="for example --set worker.slots=2",
                )
            flags[key.strip()] = value
        for key, given in (
            ("node.network", network),
            ("node.role", role),
            ("node.data_dir", data_dir),
            ("http.port", port),
        ):
            if given:
                flags[key] = given
        if click.get_current_context().params.get("debug"):
            flags["log.level"] = "debug"
        settings = load(config=config_file, flags=flags, environ=os.environ)
        return function(*args, settings=settings, **kwargs)

    wrapped: Any = gather
    for option in (
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any other setting, such as worker.slots=2; repeat for more.",
        ),
        click.option("--port", metavar="PORT", help="HTTP port; 0 takes a free one.  [env: PORT]"),
        click.option(
            "--data-dir",
            metavar="DIR",
            help="Where the node keeps its things.  [env: ZEROSTATE_DATA_DIR]",
        ),
        click.option("--role", metavar="ROLE", help="edge, gateway, relay or bootstrap."),
        click.option("--network", metavar="NAME|FILE", help="main, test, dev, or a network file."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="ZEROSTATE_CONFIG",
            show_envvar=True,
            metavar="FILE",
            help="Settings file (TOML).",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


@command(
    "show",
    examples=(
        ("zerostate-node config show", "all settings"),
        ("zerostate-node config show --changed", "only what differs from the defaults"),
        ("zerostate-node config show --role relay --json", "what a role means, for a program"),
    ),
)
@click.option("--changed", is_flag=True, help="Only settings that are not at their default.")
@json_option
@settings_options
def show(settings: Settings, as_json: bool, changed: bool) -> None:
    """Show every setting in force, and where its value came from; secrets are left out."""
    from zerostate_node.cli import render
    from zerostate_node.settings.describe import effective

    found = effective(settings)
    if changed:
        found = {key: row for key, row in found.items() if row["origin"] != "default"}
    if as_json:
        network = settings.network
        render.emit_json(
            {
                "settings": {
                    key: {"value": row["value"], "origin": row["origin"]}
                    for key, row in found.items()
                },
                "network": {"name": network.name, "file": network.file, "shards": network.shards},
                "warnings": list(settings.warnings),
            }
        )
        return
    console = render.out()
    if not found:
        console.print(
            "no setting differs from its default; see all with: zerostate-node config show"
        )
        return
    made = render.table(
        ("setting", {"no_wrap": True}),
        ("value", {"overflow": "fold", "ratio": 2}),
        ("from", {"overflow": "fold", "ratio": 1}),
    )
    section = ""
    for key, row in found.items():
        if section and key.partition(".")[0] != section:
            made.add_section()
        section = key.partition(".")[0]
        plain = row["origin"] == "default"
        value = row["text"] if row["text"] != "" else "(empty)"
        made.add_row(
            render.safe(key, "" if plain else "bold"),
            render.safe(value, "" if plain else "bold", limit=2000),
            render.safe(row["origin"], "dim" if plain else "cyan", limit=500),
        )
    console.print(made)
    for warning in settings.warnings:
        render.err().print(render.safe(f"warning: {warning}", "yellow"))


@command(
    "check",
    examples=(
        ("zerostate-node config check --config node.toml", ""),
        ("zerostate-node config check --role relay --set mesh.listen=/ip4/0.0.0.0/tcp/4001", ""),
    ),
)
@json_option
@settings_options
def check(settings: Settings, as_json: bool) -> int:
    """
    Check that a node could start: settings, keys, ledger and ports; starts nothing.

    The exit code is that of the first thing that is wrong.
    """
    from zerostate_node.cli import render
    from zerostate_node.cli.doctor import _print as print_checks

    code, checks = Exit.DONE, []
    for name, look in CHECKS:
        try:
            checks.append({"name": name, "ok": True, "detail": look(settings), "hint": ""})
        except ZeroStateError as error:
            code = code or error.exit
            checks.append({"name": name, "ok": False, "detail": error.message, "hint": error.hint})
    for warning in settings.warnings:
        checks.append({"name": "warning", "ok": True, "detail": warning, "hint": ""})
    if as_json:
        render.emit_json({"ok": code == Exit.DONE, "checks": checks})
    else:
        print_checks(checks)
    return code


def _look_settings(settings: Settings) -> str:
    changed = sum(str(origin) != "default" for origin in settings.origins.values())
    return f"role {settings.node.role}, {changed} settings differ from the defaults"


def _look_network(settings: Settings) -> str:
    count = len(settings.bootstrap_peers)
    peers = f"{count} bootstrap peers" if count else "no bootstrap peers: only who dials us joins"
    return f"{settings.network.name} ({settings.network.file}), {peers}"


def _look_data_dir(settings: Settings) -> str:
    from zerostate_node import home
    from zerostate_node.cli.identity import identity_of
    from zerostate_node.ledger.datadir import DataDir, read_operator_key

    folder = settings.node.data_dir
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if not os.access(parent, os.W_OK):
            raise ConfigError(
                f"cannot make {folder}: {parent} is not writable",
                code="bad_data_dir",
                hint="choose another with --data-dir",
            )
        return f"{folder} will be made, with a fresh identity"
    with DataDir(folder):  # Busy when another node runs here
        if not (folder / home.IDENTITY_FILE).exists():
            return f"{folder}, a fresh identity will be made"
        if (folder / home.OPERATOR_FILE).exists():
            read_operator_key(folder)
        return f"{folder}, peer {identity_of(folder)[0]}"


def _look_ledger(settings: Settings) -> str:
    import sqlite3

    path = settings.ledger_path
    if not path.exists():
        return f"{path} will be made"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)
        try:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ConfigError(
            f"the ledger {path} cannot be read: {error}", code="bad_ledger"
        ) from error
    if answer != "ok":
        raise ConfigError(
            f"the ledger {path} is damaged: {answer}",
            code="bad_ledger",
            hint="restore it from a backup",
        )
    return f"{path} is readable and whole"


def _bind(host: str, port: int, what: str, hint: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise ConfigError(
                f"{what} {host}:{port} is not allowed: {error.strerror}", hint=hint
            ) from error
        except OSError as error:
            raise Busy(
                f"{what} {host}:{port} cannot be had: {error.strerror}",
                code="port_taken",
                hint=hint,
            ) from error


def _look_http(settings: Settings) -> str:
    http = settings.http
    if not http.enabled:
        return "off: the commands cannot talk to this node"
    _bind(http.host, http.port, "HTTP port", "choose another with --port, or 0 for a free one")
    return f"{http.host}:{http.port or '(a free port)'}"


def _look_mesh(settings: Settings) -> str:
    import re

    for address in settings.mesh.listen:
        if match := re.match(r"/ip[46]/([^/]+)/tcp/([0-9]+)", address):
            _bind(
                match[1], int(match[2]), "mesh port",
                "choose another with --set mesh.listen=/ip4/0.0.0.0/tcp/PORT",
            )  # fmt: skip
    return ", ".join(settings.mesh.listen) or "does not listen; reached through relays"


CHECKS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("settings", _look_settings),
    ("network", _look_network),
    ("data directory", _look_data_dir),
    ("ledger", _look_ledger),
    ("http", _look_http),
    ("mesh", _look_mesh),
)

for _command in (show, check):
    config.add_command(_command)
