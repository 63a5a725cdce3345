"""The OpenAPI document and the page."""

import re

import httpx
import jsonschema
import pytest
from fake_desk import FakeDesk
from gateway_http import KEY, Serve, Served
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from zerostate_node.gateway.metrics import HttpMetrics
from zerostate_node.gateway.routes import build_routes
from zerostate_node.gateway.streams import Streams
from zerostate_node.ports.desk import Check

ROUTES = build_routes(Streams(HttpMetrics(CollectorRegistry())), "0")


async def document(served: Served) -> dict:
    async with httpx.AsyncClient(base_url=served.url) as client:
        return (await client.get("/openapi.json")).json()


async def test_the_document_is_valid_openapi(served: Served) -> None:
    OpenAPIV31SpecValidator(await document(served)).validate()


async def test_the_document_has_every_route_and_no_other(served: Served) -> None:
    paths = (await document(served))["paths"]
    told = {(method.upper(), path) for path, found in paths.items() for method in found}
    assert told == {(route.method, route.template) for route in ROUTES}
    for route in ROUTES:
        operation = paths[route.template][route.method.lower()]
        assert (operation["security"] != []) == route.private
        assert ("401" in operation["responses"]) == route.private
        assert operation["summary"]


async def test_every_rule_of_the_server_is_in_the_table(served: Served) -> None:
    """A route added beside the table would be served and not told of."""
    rules = {route.rule for route in ROUTES if route.handle is not None}
    from zerostate_node.gateway import GatewaySettings
    from zerostate_node.gateway.app import build_app

    app = build_app(ROUTES, FakeDesk(None), GatewaySettings())  # type: ignore[arg-type]
    assert {str(rule) for rule in app.url_map.iter_rules()} == rules


async def test_operation_ids_are_unique(served: Served) -> None:
    paths = (await document(served))["paths"]
    names = [found["operationId"] for path in paths.values() for found in path.values()]
    assert len(names) == len(set(names))


async def test_answers_match_their_schemas(served: Served, desk: FakeDesk) -> None:
    told = await document(served)
    async with httpx.AsyncClient(
        base_url=served.url, headers={"authorization": f"Bearer {KEY}"}
    ) as client:
        module = (await client.post("/api/v1/blobs", content=b"m")).json()["digest"]
        body = {"draft": {"name": "echo", "version": "1"}, "module": module}
        seen = {("post", "/api/v1/agents"): await client.post("/api/v1/agents", json=body)}
        made = await client.post("/api/v1/tasks", json={"agent": "echo"})
        seen["post", "/api/v1/tasks"] = made
        task_id = made.json()["task_id"]
        desk.finish(task_id, b"x")
        for path in ("/health", "/ready", "/api/v1/peers", "/api/v1/doctor", "/api/v1/agents"):
            seen["get", path] = await client.get(path)
        seen["get", "/api/v1/agents/{ref}"] = await client.get("/api/v1/agents/echo")
        seen["get", "/api/v1/tasks"] = await client.get("/api/v1/tasks")
        seen["get", "/api/v1/tasks/{task_id}"] = await client.get(f"/api/v1/tasks/{task_id}")
        missing = await client.get("/api/v1/tasks/01HF7YAT00B6X42H2022GR73KG")
    for (method, path), answer in seen.items():
        responses = told["paths"][path][method]["responses"]
        check(answer.json(), responses[str(answer.status_code)], told)
    check(missing.json(), told["paths"]["/api/v1/tasks/{task_id}"]["get"]["responses"]["404"], told)


def check(value: object, response: dict, told: dict) -> None:
    (content,) = response["content"].values()
    schema = {**content["schema"], "components": told["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


# -- the page --------------------------------------------------------------------------------------
async def page(served: Served, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=served.url) as client:
        return await client.get("/", headers=headers)


async def publish(desk: FakeDesk, name: str, **draft: object) -> None:
    async def module():  # noqa: ANN202
        yield b"m"

    stored = await desk.put_blob(module())
    await desk.publish({"name": name, "version": "1", **draft}, module=stored["digest"])


async def test_the_page_tells_who_the_node_is_and_what_to_try(
    served: Served, desk: FakeDesk
) -> None:
    await publish(desk, "word-count", description="counts words", capabilities=["text/count"])
    answer = await page(served)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for part in (
        desk.info()["peer"],
        "ready",
        "word-count",
        "counts words",
        "text/count",
        "zerostate-node task submit word-count",
        f"{served.url}/api/v1/tasks",
        'name="viewport"',
    ):
        assert part in answer.text, part


async def test_the_page_has_no_secret_and_nothing_of_tasks(served: Served, desk: FakeDesk) -> None:
    await publish(desk, "echo")
    async with httpx.AsyncClient(
        base_url=served.url, headers={"authorization": f"Bearer {KEY}"}
    ) as client:
        body = {"agent": "echo", "input": {"text": "PRIVATE-INPUT"}, "args": ["PRIVATE-ARG"]}
        task_id = (await client.post("/api/v1/tasks", json=body)).json()["task_id"]
        text = (await client.get("/")).text
    for private in (KEY, "PRIVATE", task_id, desk.info()["data_dir"]):
        assert private not in text
    assert re.search(r"Tasks waiting</dt><dd>1<", text)


async def test_what_strangers_named_is_text_on_the_page(served: Served, desk: FakeDesk) -> None:
    hostile = "<script>alert(1)</script>\u202eevil\"'&" + "x" * 5000
    await publish(desk, "bad", description=hostile, capabilities=[hostile])
    desk.checks.append(Check(name=hostile, ok=False, detail=hostile, hint=hostile))
    text = (await page(served)).text
    assert "<script" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text
    assert "x" * 400 not in text
    assert "not ready" in text


async def test_the_page_runs_nothing_and_loads_nothing(served: Served) -> None:
    answer = await page(served)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert " style=" not in answer.text  # the policy would drop it
    assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)
    style = re.search(r"<style>(.*?)</style>", answer.text, re.S)
    assert style is not None
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


async def test_a_forged_host_is_text_on_the_page(serving: Serve) -> None:
    async with serving(host="0.0.0.0") as served:
        answer = await page(served, host="a$(reboot)'<b>")
        assert answer.status_code == 200
        assert "<b>" not in answer.text
        assert "http://a$(reboot)'" not in answer.text


async def test_the_page_is_made_although_the_ledger_is_away(
    served: Served, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zerostate_node.errors import Unavailable

    async def away(**_: object) -> None:
        raise Unavailable("the ledger is away")

    monkeypatch.setattr(desk, "tasks", away)
    monkeypatch.setattr(desk, "ready", away)
    answer = await page(served)
    assert answer.status_code == 200
    assert "not ready" in answer.text


async def test_the_page_costs_the_desk_one_look_a_second(
    served: Served, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = desk.agents

    async def counted(**query: str):  # noqa: ANN202
        nonlocal looks
        looks += 1
        return await real(**query)

    monkeypatch.setattr(desk, "agents", counted)
    async with httpx.AsyncClient(base_url=served.url) as client:
        for _ in range(20):
            await client.get("/")
    assert looks <= 3
