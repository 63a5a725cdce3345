from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from sandbox_guests import Bench, bench


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests that are not about caching: each guest compiles once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
async def lab(shared_cache: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    """A pool of one slot."""
    async with bench(shared_cache, tmp_path) as running:
        yield running
