"""`zerostate-node identity`: who this node is."""

from __future__ import annotations

import time
from pathlib import Path

import click

from zerostate_node.cli.shape import Group, command, home_options, json_option
from zerostate_node.errors import Busy, NotFound

identity = Group("identity", help="Show or make the node's key.", no_args_is_help=True)
identity.examples = (
    ("zerostate-node identity show", "peer id and did:key, no secrets"),
    ("zerostate-node identity new --data-dir ./bob", "before a first start"),
)


def identity_of(folder: Path) -> tuple[str, str]:
    """
    (peer id, did:key) of a data directory that has an identity.

    Raises:
        NotFound: it has none yet.
        ConfigError: the key file is loose or damaged.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from zerostate_node import home
    from zerostate_node.ledger.datadir import DataDir
    from zerostate_node.wire import ids

    if not (folder / home.IDENTITY_FILE).exists():
        raise NotFound(
            f"there is no identity in {folder} yet",
            code="no_identity",
            hint="it is made by the first start, or by: zerostate-node identity new",
        )
    seed = DataDir(folder).identity_seed()
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    peer = ids.peer_id_of(public)
    return peer, ids.did_of(peer)


def _data_dir(config_file: Path | None, data_dir: str) -> Path:
    import os

    from zerostate_node.cli.client import settings_flags
    from zerostate_node.settings import load

    return load(
        config=config_file, flags=settings_flags(data_dir), environ=os.environ
    ).node.data_dir


def _tell(folder: Path, as_json: bool, former: str = "") -> None:
    from zerostate_node import home
    from zerostate_node.cli import render

    peer, did = identity_of(folder)
    file = str(folder / home.IDENTITY_FILE)
    if as_json:
        document = {"peer": peer, "did": did, "file": file}
        render.emit_json({**document, "former": former} if former else document)
        return
    render.out().print(
        render.facts([("peer", peer), ("did", did), ("key file", file), ("former key", former)])
    )


@command(
    "show",
    examples=(
        ("zerostate-node identity show", ""),
        ("zerostate-node identity show --json", "for a program"),
    ),
)
@json_option
@home_options
def show(config_file: Path | None, data_dir: str, as_json: bool) -> None:
    """Show the peer id and did:key of this node; never its secret."""
    _tell(_data_dir(config_file, data_dir), as_json)


@command(
    "new",
    examples=(
        ("zerostate-node identity new --data-dir ./bob", ""),
        ("zerostate-node identity new --replace", "keeps the former key beside it"),
    ),
)
@click.option("--replace", is_flag=True, help="Become a stranger to all peers; keeps the old key.")
@json_option
@home_options
def new(config_file: Path | None, data_dir: str, as_json: bool, replace: bool) -> None:
    """Make a fresh identity. The node must not be running."""
    from zerostate_node import home
    from zerostate_node.ledger.datadir import DataDir

    folder, former = _data_dir(config_file, data_dir), ""
    with DataDir(folder) as held:
        path = folder / home.IDENTITY_FILE
        if path.exists():
            if not replace:
                raise Busy(
                    f"there is an identity in {folder} already: {identity_of(folder)[0]}",
                    code="identity_exists",
                    hint="--replace makes a new one; peers, receipts and agents know the old one",
                )
            former = str(path.with_name(f"{home.IDENTITY_FILE}.{int(time.time())}"))
            path.rename(former)
        held.identity_seed()
    _tell(folder, as_json, former)


for _command in (show, new):
    identity.add_command(_command)
