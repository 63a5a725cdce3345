"""What a person reads after a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times better we are; below 1 we lose."""
    return {
        "tasks_per_s": round(ours["tasks_per_s"] / theirs["tasks_per_s"], 2),
        "single_p50": round(theirs["single_p50_ms"] / ours["single_p50_ms"], 2),
        "single_p99": round(theirs["single_p99_ms"] / ours["single_p99_ms"], 2),
        "cpu": round(theirs["cpu_ms_per_task_all"] / ours["cpu_ms_per_task_all"], 2),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The tables."""
    machine = report["machine"]
    plan = report["plan"]
    console.print(
        f"[bold]no-op tasks[/], {plan['rounds']} rounds of {plan['tasks']} with "
        f"{' and '.join(f'{n} submitters ({s})' for s, n in plan['submitters'].items())}, "
        f"and {plan['singles']} one at a time, the sides in turn"
    )
    console.print(
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, "
        f"{machine['fsync_per_s']} fsync/s, load before {machine['load_before']}"
    )
    sides = report["sides"]
    names = list(sides)
    table = Table()
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    if "ratios" in report:
        table.add_column("ours is better by", justify="right")
    found = report.get("ratios", {})
    rows = (
        ("tasks/s, submit to settled", "tasks_per_s", "tasks_per_s"),
        ("  slowest and fastest round", "tasks_per_s_rounds", ""),
        ("acknowledged/s", "accepted_per_s", ""),
        ("one at a time, p50 ms", "single_p50_ms", "single_p50"),
        ("one at a time, p99 ms", "single_p99_ms", "single_p99"),
        ("CPU ms a task, all processes", "cpu_ms_per_task_all", "cpu"),
    )
    for title, field, ratio in rows:
        cells = []
        for name in names:
            value = sides[name]["figures"][field]
            cells.append(f"{min(value)} - {max(value)}" if isinstance(value, list) else str(value))
        if found:
            cells.append(_times(found[ratio]) if ratio else "")
        table.add_row(title, *cells)
    console.print(table)
    for name in names:
        side = sides[name]
        spent = side["figures"]["cpu_ms_per_task"]
        memory = side["rss_mib"]
        parts = ", ".join(f"{p} {spent[p]:.2f} ms {memory[p]:.0f} MiB" for p in spent)
        console.print(f"{name}: CPU a task and memory at the end: {parts}")
        console.print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in side["versions"].items()))
    for note in report["notes"]:
        console.print(note)
    losses = [name for name, ratio in found.items() if ratio < 1]
    if found:
        console.print(f"we lose on: {', '.join(losses) or 'none of these'}")


def _times(ratio: float) -> str:
    return f"[green]{ratio:.2f}x[/]" if ratio >= 1 else f"[red]{ratio:.2f}x[/]"
