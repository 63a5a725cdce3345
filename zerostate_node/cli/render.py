"""
Text for people: consoles, tables, sizes, ages.

Names, descriptions, error texts and addresses come from strangers. Everything of theirs goes
through `safe`, which escapes control and bidirectional characters and is no markup.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from zerostate_node.log import escape
from zerostate_node.units import DAY_MS, GIB, HOUR_MS, KIB, MIB, MINUTE_MS, SECOND_MS

CELL_CHARACTERS_MAX = 400
PIPE_COLUMNS = 200

OUTCOME_STYLES = {
    "completed": "green",
    "cancelled": "yellow",
    "timed_out": "yellow",
    "lost": "magenta",
}


def _console(file: TextIO) -> Console:
    # A pipe has no width: lines stay whole there, so that grep and cut find what they look for.
    width = None if file.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width)


def out() -> Console:
    """The console of standard output."""
    return _console(sys.stdout)


def err() -> Console:
    """The console of standard error: progress and remarks, never results."""
    return _console(sys.stderr)


def safe(value: Any, style: str = "", *, limit: int = CELL_CHARACTERS_MAX) -> Text:
    """A stranger's text, fit for a terminal."""
    text = escape(str(value)[: limit + 1])
    return Text(text if len(text) <= limit else text[: limit - 1] + "…", style=style)


def emit_json(value: Any) -> None:
    """One JSON document on standard output; indented on a terminal, one line when piped."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(value, indent=indent, ensure_ascii=True, sort_keys=False))


def table(*columns: tuple[str, Mapping[str, Any]], title: str = "") -> Table:
    """An empty table; a column is (heading, rich's column options)."""
    made = Table(
        box=SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        header_style="bold cyan",
        show_edge=False,
    )
    for heading, options in columns:
        made.add_column(heading, **options)
    return made


def narrow(columns: int = 90) -> bool:
    """Whether the terminal has no room for wide tables."""
    return out().width < columns


def size(value: int | None) -> str:
    """Bytes, for people."""
    if value is None:
        return "-"
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value} B"


def duration(ms: float) -> str:
    """Milliseconds, for people."""
    for unit, name in ((DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "m"), (SECOND_MS, "s")):
        if ms >= unit:
            return f"{ms / unit:.3g} {name}"
    return f"{ms:.3g} ms"


def age(at_ms: int | None, now_ms: int | None = None) -> str:
    """How long ago a wall-clock time was."""
    if not at_ms:
        return "-"
    passed = (now_ms if now_ms is not None else time.time_ns() // 1_000_000) - at_ms
    if -1000 < passed < 1000:
        return "now"
    units = ((DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "min"), (SECOND_MS, "s"))
    unit, name = next(pair for pair in units if abs(passed) >= pair[0])
    return f"{round(abs(passed) / unit)} {name}" + (" ago" if passed > 0 else "")


def percent(share: float) -> str:
    """A share of 1, for people."""
    if share >= 0.0995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"


def count(value: int) -> str:
    """A large number, grouped."""
    return f"{value:,}".replace(",", " ")


def peer_text(peer: str) -> str:
    """A peer id short enough for a table; the first 8 characters of all of them are the same."""
    return "…" + peer[-8:] if len(peer) > 12 else peer


def outcome(word: str | None, phase: str = "") -> Text:
    """How a task stands, coloured by what it means."""
    if word:
        return Text(escape(word), style=OUTCOME_STYLES.get(word, "red"))
    return Text(escape(phase), style="cyan" if phase == "leased" else "dim")


class Facts:
    """Two columns: what, and how it is; a word that does not fit beside gets lines of its own."""

    def __init__(self, rows: list[tuple[str, Text]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        column = max((len(name) for name, _ in self.rows), default=0) + 2
        room = options.max_width - column
        for name, value in self.rows:
            grid = Table.grid()
            if max((cell_len(word) for word in value.plain.split()), default=0) > room:
                if name:
                    yield Text(name, style="dim")
                for part in value.plain.split("  "):  # whole, so that a digest can be copied
                    yield Text("  " + part, style=value.style)
                continue
            grid.add_column(style="dim", no_wrap=True, width=column)
            grid.add_column(overflow="fold")
            grid.add_row(name, value)
            yield grid

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        column = max((len(name) for name, _ in self.rows), default=0) + 2
        widest = max((cell_len(value.plain) for _, value in self.rows), default=0)
        return Measurement(column, min(options.max_width, column + widest))


def facts(pairs: Iterable[tuple[str, Any]]) -> Facts:
    """What, and how it is. Values that are empty are left out."""
    return Facts(
        [
            (name, value if isinstance(value, Text) else safe(value))
            for name, value in pairs
            if value not in (None, "", ())
        ]
    )
