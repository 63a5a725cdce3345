"""`zerostate-node task`: submit work, watch it, get its result."""

from __future__ import annotations

import base64
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from zerostate_node.cli.request import request, seconds
from zerostate_node.cli.shape import Group, Place, command, json_option, node_options
from zerostate_node.errors import ConfigError, Refused
from zerostate_node.units import KIB, MIB

INLINE_INPUT_BYTES_MAX = 256 * KIB  # larger ones are uploaded first, streamed
JSON_RESULT_BYTES_MAX = 4 * MIB
PAGE_TASKS_MAX = 200  # of one answer: the API

task = Group("task", help="Submit tasks and get their results.", no_args_is_help=True)
task.examples = (
    ("zerostate-node task submit markdown --file README.md --output README.html", ""),
    ("zerostate-node task list --phase leased", "what runs now"),
)


def read_input(text: str | None, file: Path | None) -> bytes | Path | None:
    """
    The input a command line means: TEXT, `-` for standard input, `@FILE`, or a file.

    Raises:
        ConfigError: both given, or the file cannot be read.
    """
    if text is not None and file is not None:
        raise ConfigError("give either --input or --file, not both", code="usage")
    if text == "-" or (file is not None and str(file) == "-"):
        return sys.stdin.buffer.read()
    if text is not None and text.startswith("@"):
        file = Path(text[1:])
    elif text is not None:
        return text.encode("utf-8", "surrogateescape")
    if file is None:
        return None
    try:
        if not file.is_file():
            raise ConfigError(f"there is no file {file}", code="no_file")
        with file.open("rb"):
            return file
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", code="no_file") from error


def _input_body(client: Any, given: bytes | Path | None) -> dict[str, str] | None:
    """The input as the API takes it; large ones become a blob first."""
    if given is None:
        return None
    if isinstance(given, Path) and given.stat().st_size <= INLINE_INPUT_BYTES_MAX:
        given = given.read_bytes()
    if isinstance(given, bytes) and len(given) <= INLINE_INPUT_BYTES_MAX:
        return {"base64": base64.b64encode(given).decode()}
    if isinstance(given, bytes):
        return {"digest": client.upload("/api/v1/blobs", given)["digest"]}
    with given.open("rb") as file:
        return {"digest": client.upload("/api/v1/blobs", file)["digest"]}


def write_result(source: Any, output: Path | None, *, raw: bool) -> None:
    """
    Bytes of a result to a file, to a pipe exactly, or to a terminal escaped.

    Args:
        source: called with a binary file to write into.
        output: where to; None is standard output.
        raw: whether even a terminal gets the bytes as they are.
    """
    if output is not None:
        _write_file(source, output)
        return
    sys.stdout.flush()
    if raw or not sys.stdout.isatty():
        source(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    from zerostate_node.log import escape

    class Terminal:
        """Writes a stranger's bytes so that they cannot command the terminal."""

        last = ""

        def __init__(self) -> None:
            import codecs

            self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

        def write(self, data: bytes) -> int:
            for line in self.decoder.decode(bytes(data)).splitlines(keepends=True):
                bare = line.rstrip("\r\n")
                ended = "\n" if line[len(bare) :] else ""
                sys.stdout.write("\t".join(map(escape, bare.split("\t"))) + ended)
                self.last = ended
            return len(data)

    terminal = Terminal()
    source(terminal)
    if not terminal.last:
        sys.stdout.write("\n")
    sys.stdout.flush()


def _write_file(source: Any, output: Path) -> None:
    """Whole or not at all: a broken download leaves no half file under the name asked for."""
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            source(file)
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}", code="no_file") from error
    finally:
        temporary.unlink(missing_ok=True)


@command(
    "submit",
    examples=(
        ("zerostate-node task submit markdown --input '# Hello'", "text in, result on stdout"),
        ("zerostate-node task submit csvstats --file sales.csv -o stats.json", "a file in and out"),
        ("cat doc.txt | zerostate-node task submit grep --input - --arg needle", "in a pipe"),
        ("zerostate-node task submit --capability text/diff --file two.txt", "whoever can do it"),
        ("zerostate-node task submit long-one --no-wait --json", "its id, and no waiting"),
    ),
)
@click.argument("agent", required=False, default="")
@click.option("--input", "text", metavar="TEXT|-|@FILE", help="Input: a text, - for stdin, @FILE.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="Input: a file.")
@click.option("--arg", "args", multiple=True, metavar="TEXT", help="Argument; repeat for more.")
@click.option("--capability", default="", help="Any agent that has this capability.")
@click.option("--version", default="", help="The agent's version; else its newest.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the result.")
@click.option("--watch", is_flag=True, help="Print what happens, line by line, to stderr.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--raw", is_flag=True, help="Do not escape control characters on a terminal.")
@click.option(
    "--timeout", metavar="DURATION", help="Stop waiting after this (30s, 5m); it goes on."
)
@click.option("--run-timeout", metavar="DURATION", help="Wall clock of one run.")
@click.option("--deadline", metavar="DURATION", help="For the whole task, retries included.")
@click.option("--budget", type=click.IntRange(0), metavar="UCR", help="Most to pay, micro-credits.")
@click.option("--fuel", type=click.IntRange(1), help="Most fuel of one run.")
@click.option("--memory", metavar="SIZE", help="Most memory of one run, such as 64MiB.")
@click.option("--attempts", type=click.IntRange(1, 16), help="How many workers may try it.")
@click.option("--idempotency-key", default="", help="Submitting again with it opens nothing new.")
@json_option
@node_options
def submit(place: Place, as_json: bool, agent: str, capability: str, **options: Any) -> int | None:
    """
    Submit a task to AGENT, wait, and print its result.

    AGENT is a name, an agent id, or either with @VERSION. The result goes to standard output byte
    for byte; progress goes to standard error. A task that does not complete ends with exit code 6
    and its honest outcome.
    """
    from zerostate_node.cli import task_watch
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json

    if bool(agent) == bool(capability):
        raise ConfigError(
            "say what to run: an AGENT, or --capability", code="usage",
            hint="see what there is with: zerostate-node agent list",
        )  # fmt: skip
    given = read_input(options["text"], options["file"])
    timeout_s = seconds(options["timeout"], "--timeout")
    body = request(agent, capability, options)
    client = connect(place)
    if (content := _input_body(client, given)) is not None:
        body["input"] = content
    key = options["idempotency_key"] or secrets.token_urlsafe(18)
    submitted = client.post_patiently("/api/v1/tasks", body, headers={"Idempotency-Key": key})
    if not options["wait"]:
        if as_json:
            emit_json(submitted)
        else:
            click.echo(submitted["task_id"])
        return None
    task_id = submitted["task_id"]
    view = task_watch.wait(
        client, task_id, timeout_s=timeout_s, lines=options["watch"], quiet=as_json
    )
    return finish(client, view, output=options["output"], raw=options["raw"], as_json=as_json)


def finish(
    client: Any, view: dict[str, Any], *, output: Path | None, raw: bool, as_json: bool
) -> int | None:
    """Print how a settled task ended; TaskFailed when it did not complete."""
    from zerostate_node.cli.render import emit_json
    from zerostate_node.cli.task_watch import failure

    done = view.get("outcome") == "completed"
    path = f"/api/v1/tasks/{view['task_id']}/result"
    if as_json:
        document = dict(view)
        size = view.get("output_bytes") or 0
        if done and output is None and size <= JSON_RESULT_BYTES_MAX:
            data, _ = client.download(path, bytes_max=JSON_RESULT_BYTES_MAX)
            document["result"] = as_json_bytes(data)
        elif done and output is not None:
            write_result(lambda file: client.download_to(path, file), output, raw=raw)
            document["result"] = {"file": str(output)}
        emit_json(document)
        return None if done else int(failure(view).exit)
    if not done:
        raise failure(view)
    write_result(lambda file: client.download_to(path, file), output, raw=raw)
    return None


def as_json_bytes(data: bytes) -> dict[str, str]:
    """Bytes in JSON: `text` where they are UTF-8, else `base64`."""
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


@command(
    "list",
    examples=(
        ("zerostate-node task list", "the newest first"),
        ("zerostate-node task list --phase open --limit 200 --json", "for a program"),
    ),
)
@click.option(
    "--phase", type=click.Choice(["open", "leased", "settled"]), help="Only tasks in this phase."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=25, show_default=True)
@click.option("--cursor", default="", help="Go on where an earlier list ended.")
@json_option
@node_options
def list_tasks(place: Place, as_json: bool, phase: str | None, limit: int, cursor: str) -> None:
    """List tasks of this node, newest first."""
    from zerostate_node.cli import task_view
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json

    client, page = connect(place), {}
    tasks: list[Any] = []
    while len(tasks) < limit:  # the node gives only so many at once
        asked = min(PAGE_TASKS_MAX, limit - len(tasks))
        page = client.get("/api/v1/tasks", phase=phase, limit=asked, cursor=cursor)
        tasks += page.get("tasks") or []
        cursor = str(page.get("cursor") or "")
        if not cursor:
            break
    page = {**page, "tasks": tasks}
    if as_json:
        emit_json(page)
    else:
        task_view.print_page(page)


@command("show", examples=(("zerostate-node task show 01JC...", "what became of it, and why"),))
@click.argument("task_id")
@json_option
@node_options
def show(place: Place, as_json: bool, task_id: str) -> None:
    """Show one task: how it stands, who ran it, every attempt."""
    from zerostate_node.cli import task_view
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json

    task_id = known_id(task_id)
    view = connect(place).get(f"/api/v1/tasks/{task_id}")
    if as_json:
        emit_json(view)
    else:
        task_view.print_task(view)


@command(
    "watch",
    examples=(
        ("zerostate-node task watch 01JC...", "until it ends"),
        ("zerostate-node task watch 01JC... --json", "one JSON event a line"),
    ),
)
@click.argument("task_id")
@click.option("--timeout", metavar="DURATION", help="Stop watching after this (30s, 5m).")
@json_option
@node_options
def watch(place: Place, as_json: bool, task_id: str, timeout: str | None) -> int:
    """Follow a task to its end: who runs it, progress, its log lines."""
    from zerostate_node.cli import task_watch
    from zerostate_node.cli.client import connect

    task_id = known_id(task_id)
    view = task_watch.wait(
        connect(place),
        task_id,
        timeout_s=seconds(timeout, "--timeout"),
        lines=True,
        quiet=False,
        as_json=as_json,
    )
    if view.get("outcome") == "completed":
        return 0
    raise task_watch.failure(view)


@command("cancel", examples=(("zerostate-node task cancel 01JC... --reason 'wrong file'", ""),))
@click.argument("task_id")
@click.option(
    "--reason", default="cancelled by the operator", show_default=True, help="Why, for the record."
)
@json_option
@node_options
def cancel(place: Place, as_json: bool, task_id: str, reason: str) -> None:
    """Ask for the end of a task; whoever runs it is told to stop."""
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json, err, safe

    task_id = known_id(task_id)
    view = connect(place).post(f"/api/v1/tasks/{task_id}/cancel", {"reason": reason})
    if as_json:
        emit_json(view)
        return
    ended = view.get("outcome")
    err().print(safe("cancelled" if ended == "cancelled" else "cancel asked for; it ends soon"))


@command(
    "result",
    examples=(
        ("zerostate-node task result 01JC... -o page.html", ""),
        ("zerostate-node task result 01JC... | jq .", "byte for byte, into a pipe"),
    ),
)
@click.argument("task_id")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--raw", is_flag=True, help="Do not escape control characters on a terminal.")
@node_options
def result(place: Place, task_id: str, output: Path | None, raw: bool) -> None:
    """Get the result of a task that completed."""
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.task_watch import failure

    task_id = known_id(task_id)
    client = connect(place)
    try:
        write_result(
            lambda file: client.download_to(f"/api/v1/tasks/{task_id}/result", file),
            output,
            raw=raw,
        )
    except Refused as error:
        if error.code in ("no_output", "not_finished"):
            view = client.get(f"/api/v1/tasks/{task_id}")
            if view.get("phase") == "settled" and view.get("outcome") != "completed":
                raise failure(view) from error
        raise


def known_id(text: str) -> str:
    """A task id, or ConfigError: a mistyped one is found before anyone is asked."""
    from zerostate_node.wire.ids import is_task_id

    if not is_task_id(text.upper()):
        raise ConfigError(
            f"{text[:64]!r} is no task id", code="usage",
            hint="26 letters and digits; see them with: zerostate-node task list",
        )  # fmt: skip
    return text.upper()


for _command in (submit, list_tasks, show, watch, result, cancel):
    task.add_command(_command)
