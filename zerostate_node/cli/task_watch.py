"""Waiting for a task to end, and saying what happens meanwhile."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text

from zerostate_node.cli import problems, render
from zerostate_node.cli.client import Client
from zerostate_node.cli.events import Heard, follow
from zerostate_node.cli.problems import WaitedTooLong
from zerostate_node.errors import TaskFailed
from zerostate_node.log import escape

_ADVICE = {
    "trapped": "the agent failed on this input; what it says to that: --watch, or run the module "
    "itself with: zerostate-node run",
    "out_of_fuel": "give it more with --fuel, up to what the agent's card and the worker allow",
    "out_of_memory": "give it more with --memory, up to what the agent's card and the worker allow",
    "timed_out": "give it longer with --run-timeout or --deadline",
    "output_too_large": "the agent's card limits its output; ask for less",
    "refused": "no worker takes it as it is; see why with: zerostate-node doctor",
    "unfetchable": "the module or input could not be fetched by any worker",
    "lost": "every worker that took it was lost; submit it again",
}
_LOCAL_ADVICE = {
    "trapped": "the guest failed on this input; what it wrote to standard error is above",
    "out_of_fuel": "give it more with --fuel",
    "out_of_memory": "give it more with --memory",
    "timed_out": "give it longer with --timeout",
    "output_too_large": "raise stdout_bytes_max in its agent.toml",
}


def failure(view: dict[str, Any]) -> TaskFailed:
    """The error of a task that ended, and not with `completed`."""
    outcome = str(view.get("outcome") or "unknown")
    detail = str(view.get("detail") or "")
    words = f"the task ended {outcome}" + (f": {detail}" if detail else "")
    return TaskFailed(words, code=outcome, hint=advice(outcome))


def advice(outcome: str, *, local: bool = False) -> str:
    """What to do about an outcome; `local` for `zerostate-node run`."""
    if local:
        return _LOCAL_ADVICE.get(outcome, "")
    return _ADVICE.get(outcome, "")


def sentence(heard: Heard) -> str:
    """An event in words; empty for those not worth a line."""
    body = heard.body
    match heard.kind:
        case "task.open":
            return "accepted; waiting for a worker"
        case "task.leased":
            worker = render.peer_text(str(body.get("worker", "?")))
            attempt = body.get("attempt", 1)
            again = f" (attempt {attempt})" if isinstance(attempt, int) and attempt > 1 else ""
            return f"leased by {worker}{again}"
        case "task.progress":
            percent = body.get("progress", -1)
            return f"running, {percent} %" if isinstance(percent, int) and percent >= 0 else ""
        case "task.retry":
            worker = render.peer_text(str(body.get("worker", "?")))
            return f"attempt {body.get('attempt', '?')} at {worker} failed; trying again"
        case "task.settled":
            return f"ended: {body.get('outcome', '?')}"
        case "reconnected":
            return "connection to the node was lost and is back"
    return ""


class _Teller:
    """Says events on standard error: a live line, or one line each."""

    def __init__(self, *, lines: bool, quiet: bool, as_json: bool) -> None:
        self.console = render.err()
        self.as_json = as_json
        self.lines = lines or as_json
        self.status = None
        if not self.lines and not quiet and self.console.is_terminal:
            self.status = self.console.status("submitted")
        self.started_s = time.monotonic()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        if self.status is None:
            yield
            return
        with self.status:
            yield

    def say(self, text: str) -> None:
        if not text:
            return
        if self.lines:
            passed = f"{time.monotonic() - self.started_s:7.2f}s  "
            self.console.print(Text(passed, style="dim").append(escape(text), style=""))
        elif self.status is not None:
            self.status.update(render.safe(text))

    def hear(self, heard: Heard) -> None:
        if self.as_json:
            click.echo(
                json.dumps({"kind": heard.kind, "task_id": heard.task_id, "body": heard.body})
            )
            return
        if heard.kind == "task.log":
            if self.lines or self.status is not None:
                for line in str(heard.body.get("text", "")).splitlines():
                    self.console.print(Text("log  ", style="dim").append(escape(line)))
            return
        self.say(sentence(heard))


def _from_view(view: dict[str, Any]) -> str:
    """How a task stands, when no event said so yet."""
    if view.get("phase") == "leased":
        percent = view.get("progress", -1)
        worker = render.peer_text(str(view.get("worker", "")))
        return f"leased by {worker}" + (f", {percent} %" if percent and percent > 0 else "")
    if view.get("phase") == "settled":
        return f"ended: {view.get('outcome', '?')}"
    waiting = str(view.get("waiting_for") or "")
    return f"accepted, and waits: {waiting}" if waiting else "accepted; waiting for a worker"


def wait(
    client: Client,
    task_id: str,
    *,
    timeout_s: float | None,
    lines: bool,
    quiet: bool,
    as_json: bool = False,
) -> dict[str, Any]:
    """
    The view of a task once it is settled.

    Args:
        timeout_s: how long to wait, seconds; None for as long as it takes.
        lines: say every event on a line of its own.
        quiet: no live line.
        as_json: print every event as JSON on standard output.

    Raises:
        WaitedTooLong: it is not settled yet; it goes on without us.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    path = f"/api/v1/tasks/{task_id}"
    view: dict[str, Any] = client.get(path)
    teller = _Teller(lines=lines, quiet=quiet, as_json=as_json)
    if view.get("phase") == "settled" and not as_json:
        if lines:
            teller.say(_from_view(view))
        return view
    try:
        with teller.telling():
            if not as_json:
                teller.say(_from_view(view))
            for heard in follow(client, task_id, deadline_s=deadline_s):
                if heard.task_id not in ("", task_id):
                    continue
                teller.hear(heard)
                if heard.kind in ("snapshot", "task.settled", "reconnected"):
                    view = client.get(path)
                    if view.get("phase") == "settled":
                        return view
    except KeyboardInterrupt:
        problems.note(
            f"\ntask {task_id} goes on; look again with task watch, end it with task cancel"
        )
        raise
    except WaitedTooLong as error:
        waiting = _from_view(client.get(path))
        raise WaitedTooLong(
            f"task {task_id} has not ended after {timeout_s:g} s ({waiting}); it goes on",
            hint=f"look again with: zerostate-node task watch {task_id}",
        ) from error
    raise AssertionError("follow() never ends")
