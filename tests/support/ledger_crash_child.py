"""
A process that opens and settles tasks until it is killed.

It prints a task's id only after the commit that settled it returned, so every id that came out of
the pipe must be in the file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
import trio
from ledger_samples import lease, opening, settling

from zerostate_node.ledger.sqlite import SqliteLedger


async def main(path: Path) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    out = trio.lowlevel.FdStream(1)
    lock = trio.Lock()
    async with SqliteLedger(path, now_ms=lambda: 1) as ledger, trio.open_nursery() as nursery:

        async def work(first: int) -> None:
            for number in range(first, 1 << 30, 16):
                request = opening(number)
                task_id = request.row.spec.task_id
                await ledger.commit([request])
                await ledger.commit([lease(task_id, 1), settling(task_id, 1)])
                async with lock:
                    await out.send_all(task_id.encode() + b"\n")

        for first in range(16):
            nursery.start_soon(work, first)


trio.run(main, Path(sys.argv[1]))
