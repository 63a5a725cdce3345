"""How agents look."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from zerostate_node.cli import render

_STATUS = {"active": "green", "deprecated": "yellow", "revoked": "red"}


def _status(view: dict[str, Any]) -> Text:
    word = str(view.get("status", ""))
    return render.safe(word, _STATUS.get(word, "red"))


def _price(view: dict[str, Any]) -> str:
    price = view.get("price") or {}
    call, fuel = price.get("per_call_ucr") or 0, price.get("per_mfuel_ucr") or 0
    if not call and not fuel:
        return "free"
    parts = ([f"{call} µcr a call"] if call else []) + ([f"{fuel} µcr / Mfuel"] if fuel else [])
    return " + ".join(parts)


def print_list(agents: list[dict[str, Any]], *, narrowed: bool) -> None:
    """Agents as a table."""
    console = render.out()
    if not agents:
        console.print(
            "no agent fits; list all with: zerostate-node agent list"
            if narrowed
            else "no agents yet; publish one with: zerostate-node agent publish FILE"
        )
        return
    narrow = render.narrow()
    columns: list[tuple[str, dict[str, Any]]] = [
        ("agent", {"no_wrap": True, "overflow": "ellipsis", "max_width": 32}),
        ("version", {"no_wrap": True, "overflow": "ellipsis", "max_width": 12}),
    ]
    if not narrow:
        columns += [
            ("status", {"no_wrap": True}),
            ("by", {"no_wrap": True}),
            ("size", {"justify": "right", "no_wrap": True}),
            ("price", {"no_wrap": True, "overflow": "ellipsis", "max_width": 20}),
        ]
    columns.append(("what it does", {"no_wrap": True, "overflow": "ellipsis", "ratio": 1}))
    made = render.table(*columns)
    made.expand = console.is_terminal
    for view in agents:
        status = view.get("status")
        name_style = "bold" if status == "active" else "dim strike"
        row: list[Any] = [
            render.safe(view.get("name", ""), name_style, limit=64),
            render.safe(view.get("version", ""), limit=64),
        ]
        if not narrow:
            publisher = str(view.get("publisher", ""))
            row += [
                _status(view),
                Text("this node", "cyan")
                if view.get("local")
                else render.safe("…" + publisher[-8:]),
                render.size(view.get("module_bytes")),
                render.safe(_price(view)),
            ]
        row.append(render.safe(view.get("description", "")))
        made.add_row(*row)
    console.print(made)


def print_agent(view: dict[str, Any], card: dict[str, Any]) -> None:
    """One agent: what it is, may use and costs, and how to call it."""
    console, limits = render.out(), view.get("limits") or {}
    skills = card.get("skills") if isinstance(card.get("skills"), list) else []
    console.print(
        render.facts(
            [
                ("agent", Text(render.safe(view.get("name", "")).plain, "bold")),
                ("version", f"{view.get('version')}"),
                ("id", view.get("agent_id")),
                ("status", _status(view)),
                ("what it does", view.get("description")),
                ("skills", "; ".join(_skill(skill) for skill in skills or [])),
                ("capabilities", ", ".join(map(str, view.get("capabilities") or ()))),
                ("versions", ", ".join(map(str, view.get("versions") or ()))),
                ("price", _price(view)),
                (
                    "limits",
                    f"{render.count(limits.get('fuel_max') or 0)} fuel, "
                    f"{render.size(limits.get('memory_bytes_max'))} memory, "
                    f"{render.duration(limits.get('wall_ms_max') or 0)}, "
                    f"{render.size(limits.get('stdin_bytes_max'))} in, "
                    f"{render.size(limits.get('stdout_bytes_max'))} out"
                    if limits
                    else "",
                ),
                ("module", f"{render.size(view.get('module_bytes'))}  {view.get('module_digest')}"),
                ("script", view.get("script_digest")),
                ("publisher", "this node" if view.get("local") else view.get("publisher")),
                ("card lasts", render.age(view.get("expires_ms"))),
            ]
        )
    )
    if view.get("status") == "active":
        console.print()
        name = render.safe(view.get("name", "")).plain
        console.print(f"try: zerostate-node task submit {name} --input '...'", style="dim")


def _skill(skill: Any) -> str:
    if not isinstance(skill, dict):
        return str(skill)
    return f"{skill.get('name') or skill.get('id')}"


def print_published(view: dict[str, Any], warnings: list[str]) -> None:
    """What an author sees after publishing."""
    console = render.out()
    name = render.safe(view.get("name", "")).plain
    head = Text("published ", "green").append(
        f"{name}@{render.safe(view.get('version')).plain}", "bold"
    )
    console.print(head)
    console.print(
        render.facts(
            [
                ("id", view.get("agent_id")),
                ("module", f"{render.size(view.get('module_bytes'))}  {view.get('module_digest')}"),
                ("script", view.get("script_digest")),
                ("capabilities", ", ".join(map(str, view.get("capabilities") or ()))),
            ]
        )
    )
    for warning in warnings:
        render.err().print(Text("note: ", "yellow").append(render.safe(warning).plain, ""))
    console.print(f"try: zerostate-node task submit {name} --input '...'", style="dim")
