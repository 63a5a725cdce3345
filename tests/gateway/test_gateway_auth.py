"""Who may do what: every route with no key, a wrong key and the key; and which hosts are served."""

import httpx
import pytest
from fake_desk import FakeDesk
from gateway_http import KEY, Serve, Served
from prometheus_client import CollectorRegistry

from zerostate_node.errors import ConfigError
from zerostate_node.gateway import Gateway, GatewaySettings
from zerostate_node.gateway.metrics import HttpMetrics
from zerostate_node.gateway.routes import build_routes
from zerostate_node.gateway.streams import Streams
from zerostate_node.wire import ids

OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics")} | {
    ("GET", "/openapi.json")
}
ROUTES = [
    (route.method, route.template)
    for route in build_routes(Streams(HttpMetrics(CollectorRegistry())), "0")
]
WRONG = [
    None,
    "",
    KEY,
    f"Basic {KEY}",
    "Bearer",
    f"Bearer {KEY[:-1]}",
    f"Bearer {KEY}x",
    f"Bearer {KEY.upper()}",
    f"Bearer {KEY} {KEY}",
    "Bearer ü",
]


def concrete(template: str) -> str:
    return (
        template.replace("{task_id}", "01HF7YAT00B6X42H2022GR73KG")
        .replace("{digest}", ids.digest_of(b""))
        .replace("{ref}", "echo")
    )


async def test_only_the_five_open_routes_answer_without_the_key(served: Served) -> None:
    assert {(method, path) for method, path in ROUTES} >= OPEN
    async with httpx.AsyncClient(base_url=served.url) as client:
        for method, template in ROUTES:
            for offered in WRONG:
                headers = [] if offered is None else [(b"authorization", offered.encode())]
                answer = await client.request(method, concrete(template), headers=headers)
                if (method, template) in OPEN:
                    assert answer.status_code == 200, (method, template)
                    continue
                assert answer.status_code == 401, (method, template, offered)
                assert answer.json()["code"] == "unauthorized"
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert KEY not in answer.text


async def test_the_key_opens_every_route(served: Served) -> None:
    headers = {"authorization": f"bearer {KEY}"}  # the scheme is case-insensitive
    async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
        for method, template in ROUTES:
            async with client.stream(method, concrete(template)) as answer:
                assert answer.status_code not in (401, 403, 405, 500), (method, template)
                if answer.status_code == 404:
                    assert "no_route" not in (await answer.aread()).decode()


async def test_a_stranger_cannot_tell_which_private_paths_exist(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        for path in ("/api", "/api/", "/api/v1/nothing", "/api/v2/node", "/api%2Fv1/node"):
            assert (await client.get(path)).status_code == 401, path
        for path in ("//api/v1/node", "/./api/v1/node", "/x/../api/v1/node", "/API/v1/node"):
            answer = await client.send(
                client.build_request("GET", "/", extensions={"target": path.encode()})
            )
            assert answer.status_code in (401, 404), path


async def test_two_authorization_headers_are_refused(served: Served) -> None:
    head = b"GET /api/v1/node HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    right = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
    wrong = b"Authorization: Bearer x\r\n"
    assert b" 200 " in (await served.raw(head + right + b"\r\n"))[:20]
    assert b" 400 " in (await served.raw(head + right + wrong + b"\r\n"))[:20]


async def test_a_submit_without_the_key_opens_nothing(served: Served, desk: FakeDesk) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.post("/api/v1/tasks", json={"agent": "echo"})
    assert answer.status_code == 401
    assert desk.submitted == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:1", 200),
        ("127.9.9.9", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("0.0.0.0", 421),
        ("", 421),
        ("[", 421),
    ],
)
async def test_a_web_page_cannot_reach_a_loopback_node_by_rebinding(
    served: Served, host: str, status: int
) -> None:
    for path in (b"/", b"/health", b"/api/v1/node"):
        answer = await served.raw(
            b"GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n"
            % (path, host.encode(), KEY.encode())
        )
        assert b" %d " % status in answer[:20], path


async def test_a_configured_host_is_served(serving: Serve) -> None:
    async with serving(allowed_hosts=("node.example",)) as served:
        for host, status in ((b"node.example:443", b"200"), (b"other.example", b"421")):
            answer = await served.raw(
                b"GET /health HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host
            )
            assert status in answer[:20]


async def test_a_node_that_listens_to_the_network_answers_for_any_name(serving: Serve) -> None:
    async with serving(host="0.0.0.0") as served:
        assert served.url == f"http://127.0.0.1:{served.port}"
        answer = await served.raw(
            b"GET /health HTTP/1.1\r\nHost: node.example\r\nConnection: close\r\n\r\n"
        )
        assert b" 200 " in answer[:20]


async def test_a_short_key_is_refused(desk: FakeDesk) -> None:
    for key in ("", "short"):
        with pytest.raises(ConfigError):
            Gateway(desk, GatewaySettings(port=0), operator_key=key, version="0")
