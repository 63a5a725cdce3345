import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

_TESTS = Path(__file__).parents[1]
for _folder in ("fakes", "support"):
    sys.path.insert(0, str(_TESTS / _folder))

from fake_desk import FakeDesk  # noqa: E402
from gateway_http import KEY, Serve, Served, serve  # noqa: E402


@pytest.fixture
async def desk(tmp_path: Path) -> FakeDesk:
    return FakeDesk(tmp_path)


@pytest.fixture
def serving(desk: FakeDesk) -> Serve:
    """Serve the desk of this test with settings that differ."""

    @asynccontextmanager
    async def open_it(**settings: object) -> AsyncIterator[Served]:
        async with serve(desk, **settings) as served:
            yield served

    return open_it


@pytest.fixture
async def served(desk: FakeDesk) -> AsyncIterator[Served]:
    async with serve(desk) as served:
        yield served


@pytest.fixture
async def api(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key."""
    async with httpx.AsyncClient(
        base_url=served.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20
    ) as client:
        yield client
