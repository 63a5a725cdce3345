"""`zerostate-node peers`: whom this node knows."""

from __future__ import annotations

from typing import Any

import click

from zerostate_node.cli.shape import Place, command, json_option, node_options


@command(
    "peers",
    examples=(
        ("zerostate-node peers", "connected ones first"),
        ("zerostate-node peers --connected --json", "for a program"),
    ),
)
@click.option("--connected", is_flag=True, help="Only peers that are connected now.")
@json_option
@node_options
def peers(place: Place, as_json: bool, connected: bool) -> None:
    """Show whom this node knows, how it reaches them, and how they behaved."""
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json

    found = connect(place).get("/api/v1/peers").get("peers") or []
    if connected:
        found = [peer for peer in found if peer.get("connected")]
    if as_json:
        emit_json({"peers": found})
    else:
        print_peers(found)


def print_peers(found: list[dict[str, Any]]) -> None:
    """Peers as a table that fits the terminal."""
    from zerostate_node.cli import render

    console = render.out()
    if not found:
        console.print(
            "no peers yet; name one with --set mesh.bootstrap=/ip4/.../p2p/... or see: "
            "zerostate-node doctor"
        )
        return
    narrow = render.narrow()
    columns: list[tuple[str, dict[str, Any]]] = [
        ("peer", {"no_wrap": True}),
        ("reached", {"no_wrap": True, "overflow": "ellipsis", "max_width": 18}),
        ("does", {"no_wrap": True, "overflow": "ellipsis", "ratio": 2}),
    ]
    if not narrow:
        columns += [
            ("region", {"no_wrap": True, "overflow": "ellipsis", "max_width": 10}),
            ("work", {"no_wrap": True}),
            ("score", {"justify": "right"}),
            ("program", {"no_wrap": True, "overflow": "ellipsis", "ratio": 1}),
        ]
    columns.append(("heard", {"justify": "right", "no_wrap": True}))
    made = render.table(*columns)
    made.expand = console.is_terminal
    for peer in found:
        does = [
            word for word, key in (("takes tasks", "owns"), ("relays", "relays")) if peer.get(key)
        ]
        if peer.get("works"):
            slots = peer.get("slots") or 0
            does.insert(0, f"works ({peer.get('running') or 0}/{slots} for us)")
        here = bool(peer.get("connected"))
        reached = str(peer.get("via") or ("direct" if here else "away"))
        if reached.startswith("relay:"):
            reached = "relay " + render.peer_text(reached.removeprefix("relay:"))
        row: list[Any] = [
            render.safe(render.peer_text(str(peer.get("peer", ""))), "bold" if here else "dim"),
            render.safe(reached, "green" if here else "dim"),
            render.safe(", ".join(does) or ", ".join(map(str, peer.get("roles") or ())) or "-"),
        ]
        if not narrow:
            score = peer.get("score") or 0
            row += [
                render.safe(peer.get("region") or "-"),
                render.safe(peer.get("work_stream") or "-"),
                render.safe(score, "red" if isinstance(score, int) and score < 0 else ""),
                render.safe(peer.get("program") or "-"),
            ]
        row.append(render.age(peer.get("heard_ms")))
        made.add_row(*row)
    console.print(made)
    here_count = sum(bool(peer.get("connected")) for peer in found)
    console.print(f"{here_count} connected, {len(found) - here_count} remembered", style="dim")
