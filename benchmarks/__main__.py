"""`python -m benchmarks`: our workload and the same on Celery and Redis, in one run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import machine, report
from benchmarks.errors import BenchError
from benchmarks.ours import ROOT, Ours
from benchmarks.processes import Group
from benchmarks.rival import Rival, ensure_celery, ensure_redis
from benchmarks.rounds import Plan, Side, measure

CACHE = ROOT / ".cache" / "benchmarks"
# Each side gets the number that suits it best here: ours are connections, Celery's are processes.
SUBMITTERS = {"zerostate": 32, "celery": 4}
FULL = Plan(warmup=200, tasks=2000, submitters=SUBMITTERS, rounds=4, singles=200)
QUICK = Plan(warmup=200, tasks=400, submitters=SUBMITTERS, rounds=3, singles=60)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quick", is_flag=True, help="Fewer tasks: a first impression in under 45 s.")
@click.option("--tasks", type=click.IntRange(1), help="Tasks of one round.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds for each side.")
@click.option("--submitters", type=click.IntRange(1, 512), help="Connections that submit to us.")
@click.option("--celery-submitters", type=click.IntRange(1, 64), help="Processes of Celery's side.")
@click.option("--only", type=click.Choice(["zerostate", "celery"]), help="One side alone.")
@click.option("--keep", is_flag=True, help="Keep logs and data; their place is printed.")
@click.option("--profile", default="", help="Run this node (owner, worker1) under cProfile.")
def main(
    as_json: bool,
    quick: bool,
    tasks: int | None,
    rounds: int | None,
    submitters: int | None,
    celery_submitters: int | None,
    only: str | None,
    keep: bool,
    profile: str,
) -> None:
    """No-op tasks end to end, side by side: how many a second, how long one takes, at what cost."""
    plan = QUICK if quick else FULL
    plan = dataclasses.replace(
        plan,
        tasks=tasks or plan.tasks,
        rounds=rounds or plan.rounds,
        submitters={
            "zerostate": submitters or plan.submitters["zerostate"],
            "celery": celery_submitters or plan.submitters["celery"],
        },
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    try:
        found = _run(home, plan, only, profile)
    except BenchError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(1)
    finally:
        if keep or profile:
            click.echo(f"kept: {home}", err=True)
        else:
            shutil.rmtree(home, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        report.show(found, Console())


def _run(home: Path, plan: Plan, only: str | None, profile: str) -> dict[str, Any]:
    began = time.perf_counter()
    redis = python = None
    if only != "zerostate":
        redis, python = ensure_redis(), ensure_celery(CACHE)
    facts = machine.facts(home)
    with Group() as our_group, Group() as their_group:
        sides: list[Side] = []
        ours = theirs = None
        if only != "celery":
            (home / "ours").mkdir()
            ours = Ours(home / "ours", our_group, profile=profile)
            ours.start()
            sides.append(ours)
        if redis is not None and python is not None:
            (home / "celery").mkdir()
            theirs = Rival(home / "celery", their_group, redis=redis, python=python)
            theirs.start()
            sides.append(theirs)
        idle_rss = ours.node_rss_bytes() if ours else {}
        found = measure(sides, plan)
        left = ours.counts() if ours else {}
        result: dict[str, Any] = {
            "machine": facts,
            "plan": dataclasses.asdict(plan),
            "sides": {
                side.name: {
                    "figures": found[side.name].summary(),
                    "rss_mib": _mib(side.group.rss_bytes()),
                    "ready_s": {k: round(v, 2) for k, v in side.ready_s.items()},  # type: ignore[attr-defined]
                    "versions": side.versions(),  # type: ignore[attr-defined]
                }
                for side in sides
            },
            "notes": [],
        }
        if ours is not None:
            result["sides"][ours.name]["daemon_rss_mib"] = {
                "before": _mib(idle_rss),
                "after": _mib(ours.node_rss_bytes()),
            }
            if any(left.values()):
                raise BenchError(f"tasks were left behind: {left}")
    if ours is not None and theirs is not None:
        result["ratios"] = report.ratios(
            result["sides"][ours.name]["figures"], result["sides"][theirs.name]["figures"]
        )
    if os.getloadavg()[0] > 2 * facts["cores"] + 2:
        result["notes"].append(
            f"the machine was busy with other work (load {os.getloadavg()[0]:.1f})"
        )
    result["took_s"] = round(time.perf_counter() - began, 1)
    return result


def _mib(sizes: dict[str, int]) -> dict[str, float]:
    return {name: round(size / 2**20, 1) for name, size in sizes.items()}


if __name__ == "__main__":
    main()
