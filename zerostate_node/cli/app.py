"""`zerostate-node` itself: the list of commands and what they have in common."""

from __future__ import annotations

import click

from zerostate_node import __version__
from zerostate_node.cli.shape import Group
from zerostate_node.errors import Exit

_HERE = "zerostate_node.cli"

COMMANDS = {
    "start": (f"{_HERE}.start:start", "Run a node."),
    "devnet": (f"{_HERE}.devnet:devnet", "Run a whole mesh on this machine, to try things."),
    "init": (f"{_HERE}.init:init", "Make a data directory and a settings file."),
    "run": (f"{_HERE}.run:run", "Run a module or script here, in the sandbox, without a network."),
    "agent": (f"{_HERE}.agent:agent", "Publish agents and look at them."),
    "task": (f"{_HERE}.task:task", "Submit tasks and get their results."),
    "receipt": (f"{_HERE}.receipt:receipt", "Check what a worker signed."),
    "peers": (f"{_HERE}.peers:peers", "Show whom this node knows."),
    "doctor": (f"{_HERE}.doctor:doctor", "Find out why something does not work."),
    "identity": (f"{_HERE}.identity:identity", "Show or make the node's key."),
    "config": (f"{_HERE}.config:config", "Show and check settings."),
}

EXIT_CODES = {
    Exit.DONE: "done",
    Exit.FAILED: "failed in a way that is not one of the below",
    Exit.USAGE: "the command line, a setting or a file of yours is wrong",
    Exit.UNREACHABLE: "no node, peer or store answers now; try again",
    Exit.NOT_FOUND: "no such agent, task, receipt or blob",
    Exit.REFUSED: "the answer is no; asking again will not help",
    Exit.TASK_FAILED: "the task ended, and not with completed",
    Exit.BUSY: "a port or data directory is held by another process",
    Exit.TIMED_OUT: "what was waited for did not come in time",
}


class Root(Group):
    """The root command; its help ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples and exit codes."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(f"{int(c)}  {c.name}", why) for c, why in EXIT_CODES.items()])


@click.group(
    cls=Root,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
@click.version_option(__version__, message="zerostate-node %(version)s")
@click.option(
    "--debug", is_flag=True, help="Show a traceback with errors. For start: also debug lines."
)
def root(debug: bool) -> None:
    """
    A peer-to-peer node that runs sandboxed WASM agents and signs what it ran.

    Publish a WASM module or a script as an agent on one node; submit a task for it on any node;
    a third node claims it, runs it under hard limits, and returns the result with a signed
    receipt that anyone can check and replay.
    """


root.examples = (
    ("zerostate-node start", "a node of your own, with nothing to set up"),
    ("zerostate-node devnet -n 4", "or a mesh of four on this machine"),
    ("zerostate-node agent publish hello.wasm", "then, in another terminal"),
    ("zerostate-node task submit hello --input 'some text'", ""),
    ("zerostate-node COMMAND --help", "more on each command, with examples"),
)
