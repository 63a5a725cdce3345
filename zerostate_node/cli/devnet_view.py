"""The live view of a devnet: who runs what."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from zerostate_node.cli import render
from zerostate_node.cli.devnet_nodes import Child, Mesh
from zerostate_node.log import escape

TASKS_SHOWN = 8
TASKS_ASKED = 200


class View:
    """What was last seen of the mesh."""

    def __init__(self, mesh: Mesh, published: list[str]) -> None:
        self.mesh = mesh
        self.published = published
        self.infos: dict[str, dict[str, Any]] = {}
        self.tasks: list[dict[str, Any]] = []
        self.told: dict[str, str] = {}

    def look(self) -> None:
        """Ask the nodes how they are."""
        for child in self.mesh.children:
            answer = child.ask("/api/v1/node")
            if isinstance(answer, dict):
                self.infos[child.name] = answer
        page = self.mesh.gateway.ask("/api/v1/tasks", limit=TASKS_ASKED)
        if isinstance(page, dict):
            self.tasks = list(page.get("tasks") or [])

    def news(self) -> list[str]:
        """What changed since the last look, a sentence each."""
        lines = []
        for view in reversed(self.tasks):
            task_id, worker = str(view.get("task_id")), str(view.get("worker") or "")
            state = str(view.get("outcome") or view.get("phase"))
            if self.told.get(task_id) == state + worker:
                continue
            self.told[task_id] = state + worker
            by = f" at {self.mesh.name_of(worker)}" if worker else ""
            lines.append(f"task {task_id}  {view.get('agent_name')}: {state}{by}")
        if len(self.told) > 10 * TASKS_ASKED:
            shown = {str(view.get("task_id")) for view in self.tasks}
            self.told = {key: state for key, state in self.told.items() if key in shown}
        return lines

    def picture(self) -> RenderableType:
        """The whole view."""
        return Panel(
            Group(
                self._nodes(), Text(""), self._tasks(), Text(""), hints(self.mesh, self.published)
            ),
            title=f"devnet · {len(self.mesh.children)} nodes · Ctrl-C ends them",
            title_align="left",
            border_style="cyan",
        )

    def _nodes(self) -> Table:
        made = render.table(
            ("node", {"no_wrap": True, "style": "bold"}),
            ("peer", {"no_wrap": True}),
            ("pid", {"justify": "right"}),
            ("reached", {"no_wrap": True}),
            ("peers", {"justify": "right"}),
            ("runs", {"justify": "right"}),
            ("now", {"no_wrap": True, "overflow": "ellipsis", "ratio": 1}),
        )
        made.expand = True
        for child in self.mesh.children:
            info = self.infos.get(child.name, {})
            made.add_row(
                child.name,
                render.peer_text(child.peer),
                str(child.process.pid),
                _reached(info),
                str(info.get("peers_connected", "-")),
                str(info.get("runs") or "-"),
                self._doing(child, info),
            )
        return made

    def _doing(self, child: Child, info: dict[str, Any]) -> Text:
        if child.ended:
            return Text(child.ended, "red")
        if child is self.mesh.gateway:
            counts = Counter(str(view.get("phase")) for view in self.tasks)
            return Text(f"{counts['open']} waiting, {counts['leased']} running")
        mine = [
            view
            for view in self.tasks
            if view.get("phase") == "leased" and view.get("worker") == child.peer
        ]
        if not mine:
            return Text("idle" if info.get("slots") else "relaying", "dim")
        names = ", ".join(
            f"{view.get('agent_name')} {str(view.get('task_id'))[-6:]}" for view in mine[:4]
        )
        return render.safe(names, "green")

    def _tasks(self) -> RenderableType:
        if not self.tasks:
            return Text("no tasks yet", "dim")
        ended = Counter(str(v.get("outcome")) for v in self.tasks if v.get("outcome"))
        line = Text("tasks  ", "bold cyan")
        for outcome, count in ended.most_common():
            line.append_text(render.outcome(outcome)).append(f" {count}   ")
        made = Table.grid(padding=(0, 2), expand=True)
        for _ in range(4):
            made.add_column(no_wrap=True, overflow="ellipsis")
        for view in self.tasks[:TASKS_SHOWN]:
            worker = str(view.get("worker") or "")
            made.add_row(
                render.safe(view.get("task_id", ""), "dim"),
                render.safe(view.get("agent_name", "")),
                render.outcome(view.get("outcome"), str(view.get("phase", ""))),
                render.safe(self.mesh.name_of(worker) if worker else "", "dim"),
            )
        return Group(line, made)


def _reached(info: dict[str, Any]) -> str:
    if info.get("listen_addrs"):
        return "directly"
    return "by relay" if info.get("relays") else "not yet"


def hints(mesh: Mesh, published: list[str]) -> Text:
    """How to use the mesh from another terminal."""
    name = escape(published[0]) if published else "NAME"
    text = Text("in another terminal\n", "dim")
    text.append(f"  export ZEROSTATE_DATA_DIR={shlex.quote(str(mesh.gateway.data_dir))}\n", "green")
    if not published:
        text.append("  zerostate-node agent publish examples/markdown\n", "green")
        name = "markdown"
    text.append(f"  zerostate-node task submit {name} --input 'some text'", "green")
    return text


def _crash(child: Child) -> list[str]:
    return [f"{child.name} {child.ended}; its log ends:", *(f"  {line}" for line in child.tail())]


def show(mesh: Mesh, published: list[str], poll_s: float) -> None:
    """Show the mesh until all its nodes have ended; KeyboardInterrupt ends it sooner."""
    console, view = render.out(), View(mesh, published)
    if not console.is_terminal:
        click.echo(f"ready    {mesh.gateway.http_url}")
        click.echo(hints(mesh, published).plain)
        while mesh.alive:
            view.look()
            for child in mesh.news():
                for line in _crash(child):
                    click.echo(escape(line))
            for line in view.news():
                click.echo(escape(line))
            time.sleep(poll_s)
        return
    view.look()
    with Live(view.picture(), console=console, auto_refresh=False, screen=False) as live:
        while mesh.alive:
            view.look()
            for child in mesh.news():
                for line in _crash(child):
                    live.console.print(Text(escape(line), "red"))
            live.update(view.picture(), refresh=True)
            time.sleep(poll_s)
