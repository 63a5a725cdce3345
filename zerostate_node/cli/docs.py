"""
Writes what is made from the code: `docs/settings.md`, `docs/cli.md`, `configs/node.example.toml`.

    python -m zerostate_node.cli.docs           write them
    python -m zerostate_node.cli.docs --check   exit 1 when one is not current
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from zerostate_node.cli.app import EXIT_CODES, root
from zerostate_node.settings.describe import example_toml, settings_markdown

_HEAD = """\
# Commands

Made from the commands themselves (`python -m zerostate_node.cli.docs`); change them there.
`zerostate-node COMMAND --help` says the same in a terminal.

"""


def commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and all below it, each with the context that knows its path."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from commands(child, click.Context(child, info_name=name, parent=context))


def _plain(text: str) -> str:
    return click.unstyle(text).rstrip()


def _section(command: click.Command, context: click.Context) -> str:
    level = "##" if context.command_path.count(" ") < 2 else "###"
    parts = [f"{level} {context.command_path}\n\n{_plain(command.help or '')}\n"]
    usage = _plain(command.get_usage(context)).removeprefix("Usage: ")
    parts.append(f"\n```\n{usage}\n```\n")
    rows = []
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            rows.append(f"| `{record[0]}` | {record[1]} |".replace("TEXT|-|@", "TEXT\\|-\\|@"))
    if rows:
        parts.append("\n| Option | Meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    if examples := getattr(command, "examples", ()):
        lines = [(f"# {why}\n" if why else "") + line for line, why in examples]
        parts.append("\n```sh\n" + "\n".join(lines) + "\n```\n")
    return "".join(parts)


def cli_markdown() -> str:
    """The text of `docs/cli.md`."""
    context = click.Context(root, info_name="zerostate-node", max_content_width=100)
    context.terminal_width = 100
    codes = "\n".join(
        f"| {int(code)} | `{code.name}` | {why} |" for code, why in EXIT_CODES.items()
    )
    parts = [_HEAD, "Exit codes:\n\n| Code | Name | Meaning |\n|---|---|---|\n", codes, "\n"]
    for command, at in commands(root, context):
        at.terminal_width, at.max_content_width = 100, 100
        parts.append("\n" + _section(command, at))
    return "".join(parts)


MADE: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_markdown,
    "docs/cli.md": cli_markdown,
    "configs/node.example.toml": example_toml,
}


def main() -> None:
    """Write or check the files of a checkout."""
    base = Path(__file__).resolve().parents[2]
    stale = []
    for name, make in MADE.items():
        path, text = base / name, make()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    verb = "not current" if "--check" in sys.argv else "written"
    print(f"{verb}: {', '.join(stale)}" if stale else "all current")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
