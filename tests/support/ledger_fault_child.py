"""
A process that commits forty tasks one after another and says of each how it went.

Run under `strace -e inject=...`, so that the disk fails in the middle.
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
import trio
from ledger_samples import opening

from zerostate_node.errors import Unavailable
from zerostate_node.ledger.sqlite import SqliteLedger


async def main(path: Path) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    async with SqliteLedger(path, now_ms=lambda: 1) as ledger:
        for number in range(40):
            request = opening(number)
            try:
                await ledger.commit([request])
                print("ok", request.row.spec.task_id, flush=True)
            except Unavailable as error:
                print(error.code, request.row.spec.task_id, flush=True)


trio.run(main, Path(sys.argv[1]))
