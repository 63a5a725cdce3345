"""Each route answers what the contract says."""

import hashlib

import httpx
import pytest
from fake_desk import DID, PEER, FakeDesk
from gateway_http import Served

from zerostate_node.ports.desk import Check, Submit
from zerostate_node.wire import ids
from zerostate_node.wire.messages import RetryPolicy

MODULE = b"\0asm module"


async def publish(api: httpx.AsyncClient, name: str = "echo", **draft: object) -> dict:
    stored = (await api.post("/api/v1/blobs", content=MODULE)).json()
    body = {"draft": {"name": name, "version": "1", **draft}, "module": stored["digest"]}
    answer = await api.post("/api/v1/agents", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def submit(api: httpx.AsyncClient, **fields: object) -> str:
    answer = await api.post("/api/v1/tasks", json={"agent": "echo", **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()["task_id"]


async def test_health_names_the_node_without_a_key(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.get("/health")
    assert answer.json() == {"status": "ok", "peer": PEER, "version": "0.1.0"}
    assert answer.status_code == 200


async def test_head_of_health_has_no_body_and_keeps_the_connection(api: httpx.AsyncClient) -> None:
    answer = await api.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await api.get("/health")).status_code == 200


async def test_ready_is_503_as_soon_as_one_check_fails(
    api: httpx.AsyncClient, desk: FakeDesk
) -> None:
    assert (await api.get("/ready")).json()["ready"] is True
    desk.checks.append(Check(name="relay", ok=False, detail="none", hint="add one"))
    answer = await api.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["checks"][-1] == {
        "name": "relay",
        "ok": False,
        "detail": "none",
        "hint": "add one",
    }


async def test_node_peers_and_doctor_are_the_desks_words(
    api: httpx.AsyncClient, desk: FakeDesk
) -> None:
    assert (await api.get("/api/v1/node")).json() == desk.info()
    peers = (await api.get("/api/v1/peers")).json()["peers"]
    assert peers[0]["connected"] is True
    checks = (await api.get("/api/v1/doctor")).json()["checks"]
    assert [check["name"] for check in checks] == ["ledger", "loop", "relay"]


async def test_a_blob_comes_back_byte_for_byte(api: httpx.AsyncClient) -> None:
    data = bytes(range(256)) * 4096

    async def pieces():  # noqa: ANN202
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    answer = await api.post("/api/v1/blobs", content=pieces())
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert answer.status_code == 201
    assert answer.json() == {"digest": digest, "size_bytes": len(data)}
    back = await api.get(answer.headers["location"])
    assert back.content == data
    assert back.headers["content-length"] == str(len(data))
    assert back.headers["content-type"] == "application/octet-stream"
    assert back.headers["content-disposition"] == "attachment"


async def test_an_agent_is_published_found_and_revoked(api: httpx.AsyncClient) -> None:
    agent = await publish(api, "echo", description="says it again", capabilities=["text/echo"])
    assert agent["agent_id"] == f"{DID}/echo"
    for query, found in ((("q", "AGAIN"), 1), (("q", "nope"), 0), (("capability", "text/echo"), 1)):
        answer = await api.get("/api/v1/agents", params=dict([query]))
        assert len(answer.json()["agents"]) == found, query
    for ref in ("echo", "echo@1", agent["agent_id"], f"{agent['agent_id']}@1"):
        answer = await api.get(f"/api/v1/agents/{ref}")
        assert answer.json()["agent"]["agent_id"] == agent["agent_id"]
        assert answer.json()["card"] == {"name": "echo", "signatures": []}
    gone = await api.delete(f"/api/v1/agents/{agent['agent_id']}")
    assert gone.json()["status"] == "revoked"


async def test_a_revocation_may_carry_its_reason(api: httpx.AsyncClient) -> None:
    await publish(api)
    gone = await api.request("DELETE", "/api/v1/agents/echo", json={"reason": "a defect"})
    assert gone.json()["status"] == "revoked"


async def test_every_field_of_a_task_reaches_the_desk(
    api: httpx.AsyncClient, desk: FakeDesk
) -> None:
    await publish(api)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await api.post(
        "/api/v1/tasks",
        json={
            "agent": "echo",
            "version": "1",
            "input": {"base64": "AAEC/w=="},
            "args": ["-x", "ü"],
            "limits": {"fuel_max": 7, "wall_ms_max": 9},
            "budget_ucr": 5,
            "timeout_ms": 100,
            "deadline_ms": 2000,
            "retry": {"attempts_max": 2, "on_guest_failure": True},
        },
        headers={"idempotency-key": "order-17", "traceparent": trace},
    )
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/tasks/{answer.json()['task_id']}"
    request, beside = desk.submitted[0]
    assert request == Submit(
        agent="echo",
        version="1",
        args=("-x", "ü"),
        limits={"fuel_max": 7, "wall_ms_max": 9},
        budget_ucr=5,
        timeout_ms=100,
        deadline_ms=2000,
        retry=RetryPolicy(attempts_max=2, on_guest_failure=True),
    )
    assert beside == {
        "actor": "operator",
        "input": b"\x00\x01\x02\xff",
        "key": "order-17",
        "trace": trace,
    }


async def test_a_task_without_a_trace_gets_one(api: httpx.AsyncClient, desk: FakeDesk) -> None:
    await publish(api)
    for bad in ("", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"):
        await api.post("/api/v1/tasks", json={"agent": "echo"}, headers={"traceparent": bad})
        trace = desk.submitted[-1][1]["trace"]
        assert len(trace) == 55
        assert trace != bad


async def test_the_same_key_opens_one_task(api: httpx.AsyncClient) -> None:
    await publish(api)
    bodies = []
    for _ in range(2):
        answer = await api.post(
            "/api/v1/tasks", json={"agent": "echo"}, headers={"idempotency-key": "k"}
        )
        bodies.append(answer.json())
    assert bodies[0]["task_id"] == bodies[1]["task_id"]
    assert [body["created"] for body in bodies] == [True, False]


async def test_input_may_be_text_or_a_stored_blob(api: httpx.AsyncClient, desk: FakeDesk) -> None:
    await publish(api)
    await submit(api, input={"text": "grüß"})
    assert desk.submitted[-1][1]["input"] == "grüß".encode()
    await submit(api, input={"digest": ids.digest_of(MODULE)})
    assert desk.submitted[-1][0].input_digest == ids.digest_of(MODULE)
    assert desk.submitted[-1][1]["input"] is None


async def test_tasks_come_in_pages(api: httpx.AsyncClient, desk: FakeDesk) -> None:
    await publish(api)
    made = sorted([await submit(api) for _ in range(5)], reverse=True)
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await api.get("/api/v1/tasks", params={"limit": 2, "cursor": cursor})).json()
        seen += [task["task_id"] for task in page["tasks"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert seen == made
    desk.finish(made[0], b"")
    settled = (await api.get("/api/v1/tasks", params={"phase": "settled"})).json()
    assert [task["task_id"] for task in settled["tasks"]] == made[:1]


@pytest.mark.parametrize("size", [0, 11, ids.INLINE_BYTES_MAX + 1])
async def test_a_result_is_the_guests_bytes(
    api: httpx.AsyncClient, desk: FakeDesk, size: int
) -> None:
    await publish(api)
    task_id = await submit(api)
    output = b"<" * size
    desk.finish(task_id, output)
    answer = await api.get(f"/api/v1/tasks/{task_id}/result")
    assert answer.status_code == 200
    assert answer.content == output
    assert answer.headers["x-zerostate-digest"] == ids.digest_of(output)
    assert answer.headers["x-zerostate-outcome"] == "completed"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_receipt_comes_as_it_travels_and_can_be_checked(
    api: httpx.AsyncClient, desk: FakeDesk
) -> None:
    await publish(api)
    task_id = await submit(api)
    desk.finish(task_id, b"out")
    answer = await api.get(f"/api/v1/tasks/{task_id}/receipt")
    assert answer.headers["content-type"] == "application/vnd.zerostate.receipt"
    checked = await api.post("/api/v1/receipts/verify", content=answer.content)
    assert checked.json()["receipt"] == {"task_id": task_id}
    replayed = await api.post("/api/v1/receipts/verify?replay=1", content=answer.content)
    assert replayed.json()["output_matches"] is True


async def test_a_cancelled_task_says_why(api: httpx.AsyncClient) -> None:
    await publish(api)
    task_id = await submit(api)
    answer = await api.post(f"/api/v1/tasks/{task_id}/cancel", json={"reason": "wrong file"})
    assert answer.json()["outcome"] == "cancelled"
    assert answer.json()["detail"] == "wrong file"
    assert (await api.get(f"/api/v1/tasks/{task_id}")).json()["phase"] == "settled"


async def test_every_answer_carries_the_security_headers_and_its_request_id(
    api: httpx.AsyncClient,
) -> None:
    for path in ("/", "/health", "/ready", "/metrics", "/openapi.json", "/api/v1/node", "/nope"):
        answer = await api.get(path, headers={"x-request-id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1", path
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["referrer-policy"] == "no-referrer", path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "frame-ancestors 'none'" in policy, path
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


async def test_a_request_id_that_could_forge_a_log_line_is_replaced(api: httpx.AsyncClient) -> None:
    for bad in ("x" * 65, "a b", "a\tb", '"'):
        answer = await api.get("/health", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] != bad
        assert answer.headers["x-request-id"].isalnum()
