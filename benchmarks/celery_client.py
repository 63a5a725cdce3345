"""
The client of the other side, as a process: Celery's own way to submit and to wait.

Takes the same orders as `thin.py`. Concurrent submitters are processes, since Celery's result
consumer loses results when threads share it. Runs in the environment of requirements.lock.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from typing import Any

from celery.result import ResultSet
from celery_app import app, noop  # type: ignore[import-not-found]

WAIT_S = 60.0


def batch(tasks: int) -> dict[str, Any]:
    """All tasks as fast as the broker takes them; ends when all results are here."""
    results = [noop.apply_async() for _ in range(tasks)]
    accepted = time.perf_counter()
    values = ResultSet(results, app=app).join_native(timeout=WAIT_S)
    took = time.perf_counter()
    if len(values) != tasks:
        raise SystemExit(f"{len(values)} results of {tasks}")
    for result in results:
        result.forget()
    return {"accepted": accepted, "took": took}


def single(tasks: int) -> dict[str, Any]:
    """One at a time: from the call to the result."""
    times: list[float] = []
    for _ in range(tasks):
        started = time.perf_counter()
        result = noop.apply_async()
        result.get(timeout=WAIT_S)
        times.append(time.perf_counter() - started)
        result.forget()
    return {"times_s": times}


def submitter(orders: Any) -> None:
    """One process: serves orders until the pipe closes."""
    try:
        while True:
            orders.send(batch(orders.recv()))
    except (EOFError, KeyboardInterrupt):
        pass


class Submitters:
    """Processes with a connection each; they live as long as this client."""

    def __init__(self) -> None:
        self._pipes: list[Any] = []

    def batch(self, tasks: int, count: int) -> dict[str, Any]:
        """Share the tasks among `count` processes."""
        context = multiprocessing.get_context("spawn")
        while len(self._pipes) < count:
            mine, its = context.Pipe()
            context.Process(target=submitter, args=(its,), daemon=True).start()
            its.close()
            mine.send(1)  # connected, before anything is measured
            mine.recv()
            self._pipes.append(mine)
        pipes = self._pipes[:count]
        started = time.perf_counter()
        for index, pipe in enumerate(pipes):
            pipe.send(tasks // count + (index < tasks % count))
        answers = [pipe.recv() for pipe in pipes]
        return {
            "took_s": max(a["took"] for a in answers) - started,
            "accepted_s": max(a["accepted"] for a in answers) - started,
        }


def main() -> None:
    submitters = Submitters()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "batch":
            answer = submitters.batch(order["tasks"], order["submitters"])
        else:
            answer = single(order["tasks"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
