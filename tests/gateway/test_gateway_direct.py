"""What is answered without the framework looks to a client like everything else."""

from __future__ import annotations

import httpx
from gateway_http import Served


async def submit(api: httpx.AsyncClient) -> str:
    stored = (await api.post("/api/v1/blobs", content=b"\0asm module")).json()
    body = {"draft": {"name": "echo", "version": "1"}, "module": stored["digest"]}
    assert (await api.post("/api/v1/agents", json=body)).status_code == 201
    answer = await api.post("/api/v1/tasks", json={"agent": "echo"})
    return str(answer.json()["task_id"])


async def test_its_answers_carry_the_same_headers(api: httpx.AsyncClient) -> None:
    direct = await api.get(f"/api/v1/tasks/{await submit(api)}")
    framed = await api.get("/api/v1/tasks")
    assert direct.status_code == framed.status_code == 200
    assert set(direct.headers) == set(framed.headers)
    assert direct.headers["content-type"] == framed.headers["content-type"]


async def test_its_problems_are_the_same_problems(api: httpx.AsyncClient) -> None:
    direct = await api.get("/api/v1/tasks/01M821JE889TNW89WA9A1PPXNC")
    framed = await api.get("/api/v1/agents/nobody")
    assert direct.status_code == framed.status_code == 404
    assert set(direct.headers) == set(framed.headers)
    assert set(direct.json()) == set(framed.json())


async def test_a_query_it_does_not_know_is_refused_and_not_overlooked(
    api: httpx.AsyncClient,
) -> None:
    answer = await api.get(f"/api/v1/tasks/{await submit(api)}", params={"verbose": "1"})
    assert answer.status_code == 400
    assert "verbose" in answer.json()["detail"]


async def test_a_method_it_does_not_take_is_405(api: httpx.AsyncClient) -> None:
    answer = await api.put("/api/v1/tasks", json={})
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "POST"}


async def test_it_asks_for_the_key_first(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as stranger:
        answer = await stranger.post("/api/v1/tasks", json={"agent": "echo"})
    assert answer.status_code == 401
