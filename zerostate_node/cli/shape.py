"""What every command shares: help that teaches, examples, common options."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _styled(name: str) -> str:
    return click.style(name, fg="cyan", bold=True)


class Formatter(click.HelpFormatter):
    """Click's formatter with headings that stand out (click drops the colour when piped)."""

    def write_heading(self, heading: str) -> None:
        """Write a heading."""
        super().write_heading(_styled(heading))

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """Write the usage line."""
        super().write_usage(prog, args, prefix or _styled("Usage") + ": ")


click.Context.formatter_class = Formatter


class _Taught:
    """Adds `examples` to a command's help."""

    examples: Sequence[tuple[str, str]] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the epilog."""
        if self.examples:
            with formatter.section("Examples"):
                for line, why in self.examples:
                    if why:
                        formatter.write(f"  {click.style('# ' + why, dim=True)}\n")
                    formatter.write(f"  {line}\n")
        super().format_epilog(ctx, formatter)  # type: ignore[misc]


class Command(_Taught, click.Command):
    """A command with examples."""


class Group(_Taught, click.Group):
    """
    A group whose commands are imported when they are asked for.

    `lazy` maps a command's name to (`module:attribute`, one line of help), so that `--help`
    imports nothing but click.
    """

    def __init__(
        self, *args: Any, lazy: dict[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order they are declared: the order a newcomer needs them."""
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands with their one line, importing none of the lazy ones."""
        rows = [(name, line) for name, (_, line) in self.lazy.items()]
        rows += [(n, c.get_short_help_str(80)) for n, c in self.commands.items() if not c.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        name = args[0] if args else ""
        known = self.list_commands(ctx)
        if name and name not in known and not name.startswith("-"):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            raise click.UsageError(
                f"there is no command {name[:64]!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"),
                ctx,
            )
        return super().resolve_command(ctx, args)


def command(name: str, *, examples: Sequence[tuple[str, str]]) -> Callable[[Any], Command]:
    """A command with examples: (line, why) each."""

    def decorate(function: Any) -> Command:
        made = click.command(name, cls=Command)(function)
        made.examples = tuple(examples)
        return made

    return decorate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which node a command is about, as the command line says it."""

    config: Path | None
    data_dir: str
    url: str
    key_file: str
    timeout_s: float


def json_option(function: F) -> F:
    """`--json`: for commands whose output a program may read."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON for programs instead of text for people.",
    )(function)


def home_options(function: F) -> F:
    """`--config` and `--data-dir`: for commands about a node's own files."""
    for option in (
        click.option(
            "--data-dir",
            default="",
            metavar="DIR",
            help="Where the node keeps its things.  [env: ZEROSTATE_DATA_DIR]",
        ),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="ZEROSTATE_CONFIG",
            show_envvar=True,
            metavar="FILE",
            help="Settings file (TOML).",
        ),
    ):
        function = option(function)
    return function


def node_options(function: F) -> F:
    """Options of a command that talks to a running node; they arrive as one `place`."""

    @functools.wraps(function)
    def gather(
        *args: Any,
        config_file: Path | None,
        data_dir: str,
        url: str,
        key_file: str,
        http_timeout: float,
        **kwargs: Any,
    ) -> Any:
        place = Place(
            config=config_file,
            data_dir=data_dir,
            url=url,
            key_file=key_file,
            timeout_s=http_timeout,
        )
        return function(*args, place=place, **kwargs)

    wrapped: Any = gather
    for option in (
        click.option(
            "--http-timeout",
            type=click.FloatRange(0.1, 3600),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for one answer of the node.",
        ),
        click.option(
            "--key-file",
            default="",
            envvar="ZEROSTATE_KEY_FILE",
            show_envvar=True,
            metavar="FILE",
            help="Its operator key, when not the one in the data directory.",
        ),
        click.option(
            "--url",
            default="",
            envvar="ZEROSTATE_URL",
            show_envvar=True,
            metavar="URL",
            help="The node's HTTP address, when not the one in the data directory.",
        ),
    ):
        wrapped = option(wrapped)
    result: F = home_options(wrapped)
    return result
