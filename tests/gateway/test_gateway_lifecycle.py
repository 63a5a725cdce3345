"""Start, taken ports, failure and restart, stop."""

import socket

import httpx
import pytest
import trio
from fake_desk import FakeDesk
from gateway_http import KEY, PATIENCE_S, Serve, Served, eventually, read
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from zerostate_node.errors import Busy, ConfigError
from zerostate_node.gateway import Gateway, GatewaySettings

TASK = b"/api/v1/tasks/01HF7YAT00B6X42H2022GR73KG"
SLOW = b"GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % (
    TASK,
    KEY.encode(),
)


async def _accepts(served: Served) -> bool:
    try:
        (await served.connect()).socket.close()
    except OSError:
        return False
    return True


async def test_port_0_tells_the_real_port(served: Served) -> None:
    assert served.url == f"http://127.0.0.1:{served.port}"
    assert served.port > 0
    assert await served.is_well()


async def test_ipv6_loopback_is_served(serving: Serve) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async with serving(host="::1") as served:
        assert served.url == f"http://[::1]:{served.port}"
        async with httpx.AsyncClient(base_url=served.url) as client:
            assert (await client.get("/health")).status_code == 200


async def test_a_taken_port_is_busy_and_says_what_to_do(served: Served, desk: FakeDesk) -> None:
    second = Gateway(desk, GatewaySettings(port=served.port), operator_key=KEY, version="0")
    with pytest.raises(Busy) as caught:
        await second.run()
    assert str(served.port) in caught.value.message
    assert "http.port" in caught.value.hint
    assert await served.is_well()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
async def test_an_address_of_another_machine_is_a_config_error(desk: FakeDesk, host: str) -> None:
    gateway = Gateway(desk, GatewaySettings(host=host, port=0), operator_key=KEY, version="0")
    with pytest.raises(ConfigError, match=host.replace(".", r"\.")):
        await gateway.run()


async def test_a_server_that_fails_comes_back_on_the_same_port(served: Served) -> None:
    assert await served.is_well()
    for round_number in (1, 2):
        served.gateway._listeners[0].socket.close()  # what a defect below us would look like
        await eventually(lambda: served.gateway.restarts == round_number)  # noqa: B023
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    assert await served.is_well()
                    break
                except httpx.ConnectError:
                    await trio.sleep(0.05)
    assert not served.ended.is_set()


async def test_a_restart_that_finds_its_port_taken_keeps_trying(serving: Serve) -> None:
    async with serving(restart_backoff_s=0.05, restart_backoff_max_s=0.1) as served:
        served.gateway._listeners[0].socket.close()
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("127.0.0.1", served.port))
            thief.listen()
            await eventually(lambda: served.gateway.restarts >= 3)
        await eventually(lambda: bool(served.gateway._listeners))
        assert await served.is_well()


async def test_a_stop_lets_a_request_at_work_finish(serving: Serve, desk: FakeDesk) -> None:
    desk.hold = trio.Event()
    async with serving(stop_grace_s=10.0) as served:
        async with await served.connect() as stream:
            await stream.send_all(SLOW)
            await eventually(lambda: served.sample("zerostate_http_requests_at_work") == 1)
            served.stop()
            with trio.fail_after(PATIENCE_S):
                while await _accepts(served):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert not served.ended.is_set()
            desk.hold.set()
            assert b" 404 " in (await read(stream))[:20]
            with trio.fail_after(PATIENCE_S):
                await served.ended.wait()


async def test_a_stop_does_not_wait_for_ever(serving: Serve, desk: FakeDesk) -> None:
    desk.hold = trio.Event()
    async with serving(stop_grace_s=0.3) as served:
        async with await served.connect() as stream:
            await stream.send_all(SLOW)
            await eventually(lambda: served.sample("zerostate_http_requests_at_work") == 1)
            served.stop()
            with trio.fail_after(PATIENCE_S):
                await served.ended.wait()
            assert await read(stream) == b""


async def test_a_client_that_takes_nothing_does_not_hold_up_a_stop(
    serving: Serve, desk: FakeDesk
) -> None:
    async with serving(stop_grace_s=0.3, send_timeout_s=3600.0) as served:
        async with httpx.AsyncClient(
            base_url=served.url, headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S
        ) as client:
            stored = await client.post("/api/v1/blobs", content=b"x" * 32 * 1024 * 1024)
        path = b"/api/v1/blobs/" + stored.json()["digest"].encode()
        async with await served.connect() as stream:
            await stream.send_all(SLOW.replace(TASK, path))
            await read(stream, until_close=False)
            began = trio.current_time()
            served.stop()
            with trio.fail_after(PATIENCE_S):
                await served.ended.wait()
            assert trio.current_time() - began < PATIENCE_S / 2


async def test_idle_connections_close_at_once_when_the_gateway_stops(serving: Serve) -> None:
    async with serving(stop_grace_s=30.0, keep_alive_timeout_s=60.0) as served:
        async with await served.connect() as used, await served.connect() as unused:
            await used.send_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await read(used, until_close=False)
            served.stop()
            assert await read(used) == b""
            assert await read(unused) == b""
            with trio.fail_after(PATIENCE_S):
                await served.ended.wait()


async def test_the_log_has_one_line_a_request_and_no_key(
    serving: Serve,
) -> None:
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "find-me"}
    with capture_logs(processors=[merge_contextvars]) as lines:
        async with serving() as served:
            async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
                await client.get("/api/v1/node")
                await client.get("/health")
    (line,) = [line for line in lines if line["log_level"] == "info" and "request_id" in line]
    assert line["request_id"] == "find-me"
    assert len(line["trace_id"]) == 32
    told = {name: line[name] for name in ("event", "method", "route", "status")}
    assert told == {
        "event": "request answered",
        "method": "GET",
        "route": "/api/v1/node",
        "status": 200,
    }
    assert line["ms"] >= 0
    assert KEY not in str(lines)
