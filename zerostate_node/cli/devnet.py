"""`zerostate-node devnet`: a whole mesh on this machine, in one command."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerostate_node.cli.shape import command
from zerostate_node.errors import ConfigError, Exit

if TYPE_CHECKING:
    from zerostate_node.cli.devnet_nodes import Child

NODES_MAX = 32
POLL_S = 0.5


@command(
    "devnet",
    examples=(
        ("zerostate-node devnet -n 4", "a relay, a gateway and two workers"),
        ("zerostate-node devnet --agent examples/markdown", "with an agent to call at once"),
        ("zerostate-node devnet --data-dir ./mesh", "kept for the next time"),
        ("zerostate-node devnet --json", "one line when ready, for a program; then it stays"),
    ),
)
@click.option(
    "--nodes",
    "-n",
    type=click.IntRange(3, NODES_MAX),
    default=4,
    show_default=True,
    help="How many: one relay, one gateway, the rest workers.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Keep the nodes' things here.  [default: a folder that is removed at the end]",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="HTTP port of the gateway.")
@click.option("--slots", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Tasks that each worker runs at once.")  # fmt: skip
@click.option("--agent", "agents", multiple=True, type=click.Path(path_type=Path),
              help="Publish this agent at the gateway; repeat for more.")  # fmt: skip
@click.option("--timeout", default="60s", show_default=True, help="How long the start may take.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready.")
def devnet(
    nodes: int,
    data_dir: Path | None,
    port: int,
    slots: int,
    agents: tuple[Path, ...],
    timeout: str,
    as_json: bool,
) -> int:
    """
    Run a mesh of NODES processes on loopback until Ctrl-C.

    One is bootstrap and relay, one is the gateway that takes your tasks and runs none, the others
    are workers that do not listen at all, as if behind a NAT. Shows live who runs what.
    """
    from zerostate_node.cli.devnet_nodes import Mesh
    from zerostate_node.cli.devnet_view import show
    from zerostate_node.cli.request import seconds

    timeout_s = seconds(timeout, "--timeout") or 60.0
    with _folder(data_dir) as folder, _signals():
        mesh = Mesh(folder, workers=nodes - 2, port=port, slots=slots)
        try:
            _start(mesh, timeout_s, quiet=as_json)
            published = [_publish(mesh.gateway, path) for path in agents]
            if as_json:
                _print_ready(mesh, published)
                while mesh.alive:
                    time.sleep(POLL_S)
                    mesh.news()
            else:
                show(mesh, published, POLL_S)
        except KeyboardInterrupt:
            pass
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                if not as_json:
                    click.echo("stopping the nodes; Ctrl-C again to end them at once", err=True)
                mesh.stop()
            mesh.kill()
    return Exit.DONE


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the mesh like Ctrl-C."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    former = {n: signal.signal(n, interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        try:
            given.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {given}: {error.strerror}", code="no_file") from error
        yield given.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="zerostate-devnet-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(mesh: Any, timeout_s: float, *, quiet: bool) -> None:
    """Start all nodes, saying how far it is."""
    from zerostate_node.cli import render

    console = render.err()

    def line(child: Child) -> str:
        return f"{child.name:<10} ready  {child.peer}  {child.http_url}"

    if quiet:
        for _ in mesh.start(timeout_s):
            pass
    elif console.is_terminal:
        with console.status("starting the relay") as status:
            for count, child in enumerate(mesh.start(timeout_s), 1):
                console.print(render.safe("✓ ", "green").append(render.safe(line(child)).plain, ""))
                status.update(f"starting: {count} of {len(mesh.plan)} ready")
    else:
        for child in mesh.start(timeout_s):
            click.echo(line(child))


def _publish(gateway: Child, path: Path) -> str:
    """Publish an agent at the gateway; its name."""
    from zerostate_node.cli.agent import publish_at

    view, _ = publish_at(gateway.client(), path)
    return str(view.get("name"))


def _print_ready(mesh: Any, published: list[str]) -> None:
    document = {
        "ready": True,
        "gateway_url": mesh.gateway.http_url,
        "key_file": str(mesh.gateway.key_file),
        "data_dir": str(mesh.gateway.data_dir),
        "agents": published,
        "nodes": [child.as_json() for child in mesh.children],
    }
    click.echo(json.dumps(document))
