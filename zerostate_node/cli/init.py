"""`zerostate-node init`: a data directory and a settings file to start from."""

from __future__ import annotations

import os
from pathlib import Path

import click

from zerostate_node.cli.shape import command, json_option
from zerostate_node.errors import ConfigError


@command(
    "init",
    examples=(
        ("zerostate-node init", "node.toml here, data in the usual place"),
        ("zerostate-node init bob.toml --data-dir ./bob --role gateway --network dev", ""),
    ),
)
@click.argument("file", type=click.Path(path_type=Path), default=Path("node.toml"))
@click.option("--data-dir", default="", metavar="DIR", help="Where the node keeps its things.")
@click.option("--role", default="edge", show_default=True, help="edge, gateway, relay, bootstrap.")
@click.option("--network", default="main", show_default=True, help="main, test, dev, or a file.")
@click.option("--force", is_flag=True, help="Write over FILE.")
@json_option
def init(file: Path, data_dir: str, role: str, network: str, force: bool, as_json: bool) -> None:
    """
    Write FILE with every setting explained, and make the data directory and identity it names.

    Not needed for a first try: `zerostate-node start` works with nothing at all.
    """
    from zerostate_node import home
    from zerostate_node.cli import render
    from zerostate_node.cli.identity import identity_of
    from zerostate_node.ledger.datadir import DataDir
    from zerostate_node.settings import load
    from zerostate_node.settings.describe import example_toml

    flags = {"node.role": role, "node.network": network}
    if data_dir:
        flags["node.data_dir"] = data_dir
    settings = load(config=None, flags=flags, environ=os.environ)
    folder = settings.node.data_dir
    text = example_toml()
    for name, value in (("network", network), ("role", role), ("data_dir", str(folder))):
        lines = text.splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if line.startswith(f"#{name} = "))
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        lines[at] = f'{name} = "{escaped}"\n'
        text = "".join(lines)
    if file.exists() and not force:
        raise ConfigError(
            f"{file} exists already", code="file_exists", hint="--force writes over it"
        )
    keys = (folder / home.IDENTITY_FILE, folder / home.OPERATOR_FILE)
    if not all(key.exists() for key in keys):  # with both, a node may run here meanwhile
        with DataDir(folder) as held:
            held.identity_seed()
            held.operator_key()
    try:
        file.write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", code="no_file") from error
    peer, did = identity_of(folder)
    if as_json:
        render.emit_json({"file": str(file), "data_dir": str(folder), "peer": peer, "did": did})
        return
    console = render.out()
    console.print(render.facts([("settings", str(file)), ("data", str(folder)), ("peer", peer)]))
    console.print(f"next: zerostate-node start --config {file}", style="dim")
