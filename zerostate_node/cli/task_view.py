"""How tasks look."""

from __future__ import annotations

from typing import Any

from zerostate_node.cli import render


def _agent(view: dict[str, Any]) -> str:
    name = view.get("agent_name") or str(view.get("agent_id", "")).rpartition("/")[2]
    version = view.get("agent_version")
    return f"{name}@{version}" if version else str(name)


def print_page(page: dict[str, Any]) -> None:
    """A page of tasks as a table."""
    console, tasks = render.out(), page.get("tasks") or []
    if not tasks:
        console.print("no tasks yet; submit one with: zerostate-node task submit AGENT --input ...")
        return
    narrow = render.narrow()
    columns: list[tuple[str, dict[str, Any]]] = [
        ("task", {"no_wrap": True, "min_width": 26}),
        ("state", {"no_wrap": True}),
        ("agent", {"overflow": "ellipsis", "no_wrap": True, "ratio": 1}),
    ]
    if not narrow:
        columns += [
            ("worker", {"no_wrap": True}),
            ("try", {"justify": "right"}),
            ("in", {"justify": "right", "no_wrap": True}),
            ("out", {"justify": "right", "no_wrap": True}),
        ]
    columns.append(("age", {"justify": "right", "no_wrap": True}))
    made = render.table(*columns)
    made.expand = console.is_terminal
    for view in tasks:
        row: list[Any] = [
            render.safe(view.get("task_id", "")),
            render.outcome(view.get("outcome"), str(view.get("phase", ""))),
            render.safe(_agent(view), limit=80),
        ]
        if not narrow:
            row += [
                render.safe(render.peer_text(str(view.get("worker") or "-"))),
                str(view.get("attempt", 0)),
                render.size(view.get("input_bytes")),
                render.size(view.get("output_bytes")),
            ]
        row.append(render.age(view.get("created_ms")))
        made.add_row(*row)
    console.print(made)
    if page.get("cursor"):
        console.print(render.safe(f"more with: --cursor {page['cursor']}", "dim"))


def print_task(view: dict[str, Any]) -> None:
    """One task with its attempts."""
    console = render.out()
    state = render.outcome(view.get("outcome"), str(view.get("phase", "")))
    if view.get("phase") == "leased" and (view.get("progress") or -1) >= 0:
        state.append(f"  {view['progress']} %")
    fuel, price = view.get("fuel_used") or 0, view.get("price_ucr") or 0
    created, updated = view.get("created_ms") or 0, view.get("updated_ms") or 0
    console.print(
        render.facts(
            [
                ("task", view.get("task_id")),
                ("state", state),
                ("because", view.get("detail")),
                ("waiting for", view.get("waiting_for")),
                ("agent", f"{_agent(view)}  {view.get('agent_id', '')}"),
                ("capability", view.get("capability")),
                ("worker", view.get("worker")),
                ("owner", view.get("owner")),
                ("module", view.get("module_digest")),
                ("input", f"{render.size(view.get('input_bytes'))}  {view.get('input_digest')}"),
                (
                    "output",
                    f"{render.size(view.get('output_bytes'))}  {view.get('output_digest')}"
                    if view.get("output_digest")
                    else "",
                ),
                ("fuel", render.count(fuel) if fuel else ""),
                (
                    "price",
                    f"{render.count(price)} µcr of {view.get('budget_ucr', 0)}" if price else "",
                ),
                ("submitted", render.age(created)),
                ("took", render.duration(updated - created) if view.get("outcome") else ""),
                ("trace", view.get("trace")),
            ]
        )
    )
    attempts = view.get("attempts") or []
    if not attempts:
        return
    made = render.table(
        ("try", {"justify": "right"}),
        ("fence", {"justify": "right"}),
        ("worker", {"no_wrap": True}),
        ("outcome", {"no_wrap": True}),
        ("took", {"justify": "right", "no_wrap": True}),
        ("because", {"overflow": "fold", "ratio": 1}),
    )
    for attempt in attempts:
        ended, leased = attempt.get("ended_ms"), attempt.get("leased_ms") or 0
        made.add_row(
            str(attempt.get("attempt")),
            str(attempt.get("fence")),
            render.safe(render.peer_text(str(attempt.get("worker", "")))),
            render.outcome(attempt.get("outcome"), "running"),
            render.duration(ended - leased) if ended else "-",
            render.safe(attempt.get("detail", "")),
        )
    console.print()
    console.print(made)
