"""Each error becomes its status, as problem+json, without anything that is not for clients."""

import json

import httpx
import pytest
from fake_desk import FakeDesk
from gateway_http import KEY, Serve, Served

from zerostate_node.errors import (
    Busy,
    ConductError,
    ConfigError,
    NotFound,
    Refused,
    TaskFailed,
    Unavailable,
    WireError,
)
from zerostate_node.ports.desk import Submit
from zerostate_node.wire import ids

TASK = "/api/v1/tasks/01HF7YAT00B6X42H2022GR73KG"

MAPPING = [
    (NotFound("no such task"), 404, "not_found"),
    (WireError("not a receipt", code="bad_receipt"), 400, "bad_receipt"),
    (ConfigError("no"), 400, "bad_config"),
    (Refused("big", code="too_large"), 413, "too_large"),
    (Refused("big", code="input_too_large"), 413, "input_too_large"),
    (Refused("other", code="idempotency_conflict"), 409, "idempotency_conflict"),
    (Refused("wait", code="not_finished"), 409, "not_finished"),
    (Refused("late", code="already_settled"), 409, "already_settled"),
    (Refused("none", code="no_output"), 409, "no_output"),
    (Refused("twice", code="version_exists"), 409, "version_exists"),
    (Refused("no", code="ambiguous", hint="say which"), 422, "ambiguous"),
    (ConductError("may not"), 422, "not_allowed"),
    (Unavailable("away", retry_after_s=2.5), 503, "unavailable"),
    (Busy("secret detail"), 500, "internal"),
    (TaskFailed("secret detail"), 500, "internal"),
    (RuntimeError("secret detail"), 500, "internal"),
    (ExceptionGroup("secret detail", [ValueError("secret detail")]), 500, "internal"),
    (KeyError("secret detail"), 500, "internal"),
]


@pytest.mark.parametrize(
    ("error", "status", "code"), MAPPING, ids=[f"{s}-{c}-{type(e).__name__}" for e, s, c in MAPPING]
)
async def test_an_error_of_the_desk_has_one_status(
    api: httpx.AsyncClient, desk: FakeDesk, error: Exception, status: int, code: str
) -> None:
    desk.broken = error
    answer = await api.get(TASK, headers={"x-request-id": "r1"})
    problem = answer.json()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["code"], problem["request_id"]) == (status, code, "r1")
    assert set(problem) == {"type", "title", "status", "code", "detail", "hint", "request_id"}
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    if status == 503:
        assert answer.headers["retry-after"] == "3"
    if code == "ambiguous":
        assert (problem["detail"], problem["hint"]) == ("no", "say which")


async def test_no_route_and_wrong_method_are_problems_too(api: httpx.AsyncClient) -> None:
    missing = await api.get("/api/v1/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_route")
    wrong = await api.put("/api/v1/tasks", json={})
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST"
    options = await api.options("/api/v1/tasks")
    assert options.status_code == 405


BAD_TASKS = [
    (b"{", "bad_json", ""),
    (b'{"agent":"\xff"}', "bad_json", ""),
    (b'{"agent": NaN}', "bad_json", ""),
    (b'{"args":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad_", ""),
    (b"[]", "bad_request", "array"),
    (b"{}", "bad_request", "exactly one of agent and capability"),
    (b'{"agent":"a","capability":"b"}', "bad_request", "exactly one"),
    (b'{"agent":"a","agnet":"b"}', "bad_request", "`agnet`"),
    (b'{"agent":7}', "bad_request", "$.agent"),
    (b'{"agent":"' + b"a" * 301 + b'"}', "bad_request", "$.agent"),
    (b'{"agent":"a","input":{}}', "bad_request", "exactly one of text"),
    (b'{"agent":"a","input":{"text":"","base64":""}}', "bad_request", "exactly one of text"),
    (b'{"agent":"a","input":{"base64":"%%%"}}', "bad_request", "base64"),
    (b'{"agent":"a","input":{"digest":"sha256:F00"}}', "bad_request", "$.input.digest"),
    (b'{"agent":"a","input":"text"}', "bad_request", "$.input"),
    (b'{"agent":"a","args":' + json.dumps(["x"] * 33).encode() + b"}", "bad_request", "$.args"),
    (b'{"agent":"a","limits":{"fule_max":1}}', "bad_request", "`fule_max`"),
    (b'{"agent":"a","limits":{"fuel_max":0}}', "bad_request", "$.limits.fuel_max"),
    (b'{"agent":"a","limits":{"fuel_max":1.5}}', "bad_request", "$.limits.fuel_max"),
    (b'{"agent":"a","limits":{"fuel_max":' + b"9" * 5000 + b"}}", "bad_request", ""),
    (b'{"agent":"a","budget_ucr":-1}', "bad_request", "$.budget_ucr"),
    (b'{"agent":"a","retry":{"attempts":1}}', "bad_request", "`attempts`"),
    (b'{"agent":"a","retry":{"attempts_max":17}}', "bad_request", "$.retry.attempts_max"),
]


@pytest.mark.parametrize(("body", "code", "named"), BAD_TASKS, ids=range(len(BAD_TASKS)))
async def test_a_task_of_the_wrong_shape_is_refused_by_name(
    api: httpx.AsyncClient, desk: FakeDesk, body: bytes, code: str, named: str
) -> None:
    answer = await api.post(
        "/api/v1/tasks", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"].startswith(code)
    assert named in answer.json()["detail"]
    assert desk.submitted == []


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/api/v1/tasks?limit=0", "limit"),
        ("/api/v1/tasks?limit=201", "limit"),
        ("/api/v1/tasks?limit=many", "limit"),
        ("/api/v1/tasks?phase=done", "phase"),
        ("/api/v1/tasks?pahse=open", "`pahse`"),
        ("/api/v1/tasks?limit=1&limit=2", "limit"),
        ("/api/v1/node?x=1", "`x`"),
        ("/api/v1/agents?q=" + "q" * 129, "q"),
        ("/api/v1/events?after=-2", "after"),
        ("/api/v1/blobs/sha256:xyz", "digest"),
    ],
)
async def test_a_bad_parameter_is_named(api: httpx.AsyncClient, path: str, named: str) -> None:
    answer = await api.get(path)
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["detail"]


@pytest.mark.parametrize("key", ["k" * 129, "a b", "ü".encode().decode("latin-1")])
async def test_an_idempotency_key_out_of_shape_is_refused(
    api: httpx.AsyncClient, key: str, desk: FakeDesk
) -> None:
    answer = await api.post(
        "/api/v1/tasks",
        content=b'{"agent":"echo"}',
        headers=[(b"content-type", b"application/json"), (b"idempotency-key", key.encode())],
    )
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["detail"]


async def test_a_form_is_not_json(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/tasks", data={"agent": "echo"})
    assert (answer.status_code, answer.json()["code"]) == (415, "not_json")
    assert "application/json" in answer.json()["hint"]


@pytest.mark.parametrize("bad", ["x", "01hf7yat00b6x42h2022gr73kg", "8" * 26, "0" * 500])
async def test_what_cannot_be_a_task_id_is_not_found(api: httpx.AsyncClient, bad: str) -> None:
    for path in (f"/api/v1/tasks/{bad}", f"/api/v1/tasks/{bad}/result"):
        answer = await api.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await api.get("/api/v1/events", params={"task_id": bad[:26]})
    assert answer.status_code == 404


async def test_an_unknown_digest_is_not_found(api: httpx.AsyncClient) -> None:
    answer = await api.get("/api/v1/blobs/" + ids.digest_of(b"not here"))
    assert answer.status_code == 404


async def test_a_result_asked_for_too_early_is_a_conflict(
    api: httpx.AsyncClient, desk: FakeDesk
) -> None:
    module = (await api.post("/api/v1/blobs", content=b"m")).json()["digest"]
    await desk.publish({"name": "echo", "version": "1"}, module=module)
    task_id = (await desk.submit(Submit(agent="echo"), actor="operator")).task_id
    for what in ("result", "receipt"):
        answer = await api.get(f"/api/v1/tasks/{task_id}/{what}")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_finished")


async def test_a_receipt_that_is_none_is_a_bad_request(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/receipts/verify", content=b"nonsense")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_receipt")
    assert (await api.post("/api/v1/receipts/verify")).status_code == 400
    answer = await api.post("/api/v1/receipts/verify", content=b"r" * (64 * 1024 + 1))
    assert answer.status_code == 413


async def test_metrics_are_404_when_off(serving: Serve) -> None:
    async with serving(metrics_enabled=False) as served:
        async with httpx.AsyncClient(base_url=served.url) as client:
            answer = await client.get("/metrics")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert "/metrics" not in (await client.get("/")).text


async def test_metrics_count_templates_and_never_raw_paths(
    served: Served, api: httpx.AsyncClient
) -> None:
    await api.get("/api/v1/tasks/01HF7YAT00B6X42H2022GR73KG")
    await api.get("/api/v1/tasks/01HF7YAT00B6X42H2022GR73KH")
    await api.request("BREW", "/coffee/pot/1")
    text = (await api.get("/metrics")).text
    assert (
        'zerostate_http_requests_total{method="GET",route="/api/v1/tasks/{task_id}",status="404"}'
        " 2.0"
    ) in text
    assert 'method="OTHER",route="unmatched"' in text
    assert "coffee" not in text
    assert "BREW" not in text
    assert 'zerostate_http_request_seconds_bucket{le="0.001",route="/api/v1/tasks/' in text
    assert "zerostate_http_event_streams 0.0" in text
    assert KEY not in text
