from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from zerostate_node.ledger.sqlite import SqliteLedger
from zerostate_node.ports.ledger import Ledger

ENGINES = ("sqlite",)


@pytest.fixture(params=ENGINES)
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    """An empty ledger of each engine: the suites that use it are the contract of the port."""
    async with SqliteLedger(tmp_path / "ledger.sqlite", now_ms=lambda: 1) as opened:
        yield opened
