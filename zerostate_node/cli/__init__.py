"""The commands: parse, call, render."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from zerostate_node.errors import Exit, ZeroStateError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run a command and leave with its exit code.

    Errors are rendered here and nowhere else: `error: ...`, then `hint: ...` where there is one;
    as one JSON object with `--json`; never a traceback without `--debug`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a locale without the letter is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(perform(words))


def perform(words: list[str]) -> int:
    """The exit code of a command line, everything printed."""
    import click

    from zerostate_node.cli import problems
    from zerostate_node.cli.app import root

    before = words[: words.index("--")] if "--" in words else words
    as_json, debug = "--json" in before, "--debug" in before
    try:
        result = root.main(args=words, prog_name="zerostate-node", standalone_mode=False)
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else Exit.DONE
    except ZeroStateError as error:
        if debug:
            problems.show_traceback()
        return problems.show(error, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", color=None)
        return Exit.USAGE
    except click.UsageError as error:
        return problems.show_usage(error, as_json=as_json)
    except click.ClickException as error:
        return problems.show_usage(error, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        problems.note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        problems.close_stdout()  # the reader has what it wanted: `... | head`
        return Exit.DONE
    except BaseExceptionGroup as group:  # trio's nurseries wrap what their tasks raise
        if group.subgroup(KeyboardInterrupt):
            problems.note("interrupted")
            return INTERRUPTED
        if debug:
            problems.show_traceback()
        return problems.show_group(group, as_json=as_json)
    except Exception as error:  # last bulkhead: a defect of ours is said in words
        if debug:
            problems.show_traceback()
        return problems.show_defect(error, as_json=as_json)
