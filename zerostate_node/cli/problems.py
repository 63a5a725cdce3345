"""How errors look: one place, one shape."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback

import click

from zerostate_node.errors import Exit, ZeroStateError

TEXT_CHARACTERS_MAX = 2_000


class WaitedTooLong(ZeroStateError):
    """What was waited for did not come in the time given; it may still come."""

    exit = Exit.TIMED_OUT
    default_code = "timed_out"


def _plain(text: str) -> str:
    from zerostate_node.log import escape

    return escape(text[:TEXT_CHARACTERS_MAX])


def _print(code: str, message: str, hint: str, exit_code: int, *, as_json: bool) -> int:
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            error = {"code": code, "message": message, "hint": hint, "exit": int(exit_code)}
            click.echo(json.dumps({"error": error}), err=True)
        else:
            label = click.style("error:", fg="red", bold=True)
            click.echo(f"{label} {_plain(message)}", err=True)
            if hint:
                click.echo(f"{click.style('hint:', fg='cyan')} {_plain(hint)}", err=True)
    return int(exit_code)


def show(error: ZeroStateError, *, as_json: bool) -> int:
    """An error that this program raises on purpose."""
    return _print(error.code, error.message, error.hint, error.exit, as_json=as_json)


def show_usage(error: click.ClickException, *, as_json: bool) -> int:
    """A command line that makes no sense."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "zerostate-node"
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    hint = f"see {path} --help"
    return _print("usage", message, hint, Exit.USAGE, as_json=as_json)


def show_group(group: BaseExceptionGroup[BaseException], *, as_json: bool) -> int:
    """The first error on purpose among several at once; a defect when there is none."""
    leaves: list[BaseException] = [group]
    found: list[BaseException] = []
    while leaves:
        leaf = leaves.pop(0)
        if isinstance(leaf, BaseExceptionGroup):
            leaves.extend(leaf.exceptions)
        else:
            found.append(leaf)
    for error in found:
        if isinstance(error, ZeroStateError):
            return show(error, as_json=as_json)
    return show_defect(found[0] if found else group, as_json=as_json)


def show_defect(error: BaseException, *, as_json: bool) -> int:
    """An exception that nobody foresaw."""
    message = f"this is a defect in zerostate-node: {type(error).__name__}: {error}"
    hint = "run it again with --debug to see where; a report with that helps"
    return _print("defect", message, hint, Exit.FAILED, as_json=as_json)


def show_traceback() -> None:
    """The traceback of the current exception, one escaped line at a time."""
    for line in traceback.format_exc().rstrip().split("\n"):
        click.echo(_plain(line), err=True)


def note(text: str) -> None:
    """A remark on standard error."""
    with contextlib.suppress(BrokenPipeError):
        click.echo(text, err=True)


def close_stdout() -> None:
    """Point standard output at nothing, so that Python's exit does not fail on flushing it."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
