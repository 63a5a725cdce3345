"""`zerostate-node doctor`: what works, what does not, and what to do about it."""

from __future__ import annotations

import os
from typing import Any

from zerostate_node.cli.shape import Place, command, json_option, node_options
from zerostate_node.errors import Exit, ZeroStateError


@command(
    "doctor",
    examples=(
        ("zerostate-node doctor", "of the node on this machine"),
        ("zerostate-node doctor --json", "for a program; exit code 1 when something is wrong"),
    ),
)
@json_option
@node_options
def doctor(place: Place, as_json: bool) -> int:
    """
    Find out why something does not work.

    Looks at the settings and files here, then asks the running node: reachability, relays, clock,
    disk, ledger, sandbox, and why there is no work.
    """
    from zerostate_node.cli import render
    from zerostate_node.cli.client import connect

    checks = local_checks(place)
    try:
        client = connect(place)
        answer = client.get("/api/v1/doctor")
        checks.append(_check("node", True, f"answers at {client.base_url}"))
        checks += [c for c in answer.get("checks") or [] if isinstance(c, dict)]
    except ZeroStateError as error:
        checks.append(_check("node", False, error.message, error.hint))
    healthy = all(check.get("ok") for check in checks)
    if as_json:
        render.emit_json({"ok": healthy, "checks": checks})
    else:
        _print(checks)
    return Exit.DONE if healthy else Exit.FAILED


def _check(name: str, ok: bool, detail: str, hint: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail, "hint": hint}


def local_checks(place: Place) -> list[dict[str, Any]]:
    """What can be told without the node."""
    from zerostate_node.cli.client import settings_flags
    from zerostate_node.ledger.datadir import read_operator_key
    from zerostate_node.settings import load

    checks = []
    try:
        settings = load(
            config=place.config, flags=settings_flags(place.data_dir), environ=os.environ
        )
    except ZeroStateError as error:
        return [_check("settings", False, error.message, error.hint)]
    node = settings.node
    checks.append(_check("settings", True, f"network {settings.network.name}, role {node.role}"))
    checks += [_check("settings", False, warning) for warning in settings.warnings]
    if place.url:
        return checks
    if not node.data_dir.is_dir():
        missing = f"{node.data_dir} is not there yet"
        return [*checks, _check("data directory", False, missing, "zerostate-node start makes it")]
    try:
        read_operator_key(node.data_dir)
        checks.append(_check("data directory", True, f"{node.data_dir}, private"))
    except ZeroStateError as error:
        checks.append(_check("data directory", False, error.message, error.hint))
    return checks


def _print(checks: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from zerostate_node.cli import render

    made = Table.grid(padding=(0, 2))
    made.add_column(width=1)
    made.add_column(no_wrap=True, style="bold", max_width=24, overflow="ellipsis")
    made.add_column(overflow="fold")
    for check in checks:
        ok = bool(check.get("ok"))
        text = render.safe(check.get("detail", ""))
        if check.get("hint") and not ok:
            text.append("\n→ " + render.safe(check["hint"]).plain, "cyan")
        made.add_row(
            render.safe("✓" if ok else "✗", "green" if ok else "red"),
            render.safe(check.get("name", ""), limit=64),
            text,
        )
    console = render.out()
    console.print(made)
    wrong = sum(not check.get("ok") for check in checks)
    console.print()
    console.print(
        render.safe("all is well" if not wrong else f"{wrong} of {len(checks)} need attention",
                    "green" if not wrong else "yellow")
    )  # fmt: skip
