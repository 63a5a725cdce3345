"""`zerostate-node start`: run a node until it is told to stop."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from zerostate_node.cli.config import settings_options
from zerostate_node.cli.shape import command, json_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zerostate_node.settings import Settings

FRAME_COLUMNS = 19  # of a framed address: borders, padding and its label


@command(
    "start",
    examples=(
        ("zerostate-node start", "works with nothing set up"),
        (
            "zerostate-node start --port 0 --data-dir ./second "
            "--set mesh.listen=/ip4/0.0.0.0/tcp/0",
            "another one beside it",
        ),
        ("zerostate-node start --role relay --config relay.toml", "a server that helps others"),
        ("zerostate-node start --set mesh.bootstrap=/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo...", ""),
    ),
)
@click.option("--debug", is_flag=True, help="Log debug lines, and tracebacks with errors.")
@click.option("--migrate-only", is_flag=True, help="Bring the ledger up to date and stop.")
@json_option
@settings_options
def start(settings: Settings, as_json: bool, migrate_only: bool, debug: bool) -> int:
    """
    Run a node. Ctrl-C or SIGTERM stops it gracefully: running work ends or is handed back.

    With nothing given it joins the main network as an edge node: it makes an identity, keeps its
    things in your home, serves its API on 127.0.0.1:8080, takes tasks and runs them.
    """
    import structlog

    from zerostate_node import log

    log.configure(settings.log.level, settings.log.format, environment=settings.node.environment)
    for warning in settings.warnings:
        structlog.get_logger().warning("setting", why=warning)
    from zerostate_node import node

    def on_ready(info: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps({"ready": True, **info}, default=str))
        else:
            welcome(settings, info)

    return int(node.run(settings, migrate_only=migrate_only, on_ready=on_ready))


def welcome(settings: Settings, info: dict[str, Any]) -> None:
    """What a person sees once the node is ready."""
    import sys

    from zerostate_node.cli import render

    console = render.out()
    # A frame would break addresses that are to be copied.
    longest = max((len(str(a)) for a in info.get("announce_addrs") or ()), default=0)
    framed = console.is_terminal and longest + FRAME_COLUMNS <= console.width
    shown = panel(settings, info, framed=framed, hints=console.is_terminal)
    console.print(shown, soft_wrap=not framed)
    sys.stdout.flush()


def panel(
    settings: Settings, info: dict[str, Any], *, framed: bool = True, hints: bool = True
) -> RenderableType:
    """Who the node is, where it answers, what to try next."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    from zerostate_node import __version__
    from zerostate_node.cli import render

    url = str(info.get("http_url") or "")
    does = [
        word
        for word, yes in (
            ("takes tasks", settings.owner.enabled),
            (f"runs {settings.worker_slots} at a time", settings.worker.enabled),
            ("relays for others", settings.mesh.relay_serve),
        )
        if yes
    ]
    addresses = [
        str(address) for address in info.get("announce_addrs") or info.get("listen_addrs") or ()
    ]
    reached = addresses[:4] or ["relays only: it does not listen"]
    facts = render.facts(
        [
            ("console", Text(render.safe(url).plain, "bold cyan underline") if url else "off"),
            ("peer", info.get("peer")),
            ("network", f"{settings.network.name} · role {settings.node.role}"),
            ("does", ", ".join(does) or "nothing yet"),
            *[("reached at" if n == 0 else "", address) for n, address in enumerate(reached)],
            ("data", str(info.get("data_dir") or settings.node.data_dir)),
        ]
    )
    nexts = [("zerostate-node doctor", "is everything all right?")]
    if settings.owner.enabled:
        nexts = [
            ("zerostate-node agent publish FILE.wasm", "give it something to run"),
            ("zerostate-node task submit AGENT --input 'text'", "and run it"),
            *nexts,
        ]
    if place := _place(settings):
        nexts = [(place, ""), *nexts]
    width = max(len(line) for line, why in nexts if why)
    tries = Text()
    for line, why in nexts:
        tries.append(f"  {line:<{width}}", "green").append(f"  {why}\n", "dim")
    body = Group(facts, Text(""), Text("try next, in another terminal", "dim"), tries)
    title = f"zerostate-node {__version__} is ready"
    if not framed:
        return Group(Text(title, style="bold"), *(body.renderables if hints else (facts,)))
    return Panel(body, title=title, title_align="left", border_style="cyan", padding=(1, 2, 0, 2))


def _place(settings: Settings) -> str:
    """The line that leads the other commands to this node, where they need one."""
    origin = settings.origins.get("node.data_dir")
    if origin is not None and origin.kind in ("flag", "file"):
        return f"export ZEROSTATE_DATA_DIR={shlex.quote(str(settings.node.data_dir))}"
    return ""
