"""
What hypercorn 0.18.0 and quart-trio 0.12 get wrong, one test for each remedy.

The letters are those of docs and notes: A crash, B idle sockets, C unbounded chunked bodies, D slow
bodies, E slow handlers, F no limit, G streams at stop, H two lengths.
"""

import importlib.metadata
import time
from functools import partial

import httpx
import pytest
import trio
from fake_desk import FakeDesk
from gateway_http import KEY, PATIENCE_S, Serve, Served, eventually, read
from hypercorn.config import Config
from hypercorn.trio import serve as stock_serve

from zerostate_node.gateway import connection
from zerostate_node.gateway.connection import GuardedConnection, PlainHttp, check_hypercorn
from zerostate_node.units import MIB

AUTH = b"Authorization: Bearer %s\r\n" % KEY.encode()
UPGRADE_AND_A_BYTE = (
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nx"
)
TASK = "01HF7YAT00B6X42H2022GR73KG"


def request(line: bytes, *heads: bytes, body: bytes = b"") -> bytes:
    fields = b"".join(head + b"\r\n" for head in heads)
    return line + b" HTTP/1.1\r\nHost: localhost\r\n" + AUTH + fields + b"\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


async def stock_app(scope, receive, send):  # noqa: ANN001, ANN201
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan")
    await send({"type": "websocket.close"})


# -- A: one request ends the server --------------------------------------------------------------
async def test_stock_hypercorn_still_ends_at_an_upgrade_and_a_byte() -> None:
    """Passes while the guard is needed: when it fails, look whether the guard may go."""
    config = Config()
    config.bind, config.errorlog = ["127.0.0.1:0"], None

    async def until_it_ends() -> None:
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(partial(stock_serve, stock_app, config, mode="asgi"))
            async with await trio.open_tcp_stream(*_host_port(urls[0])) as stream:
                await stream.send_all(UPGRADE_AND_A_BYTE)
                await read(stream)
            await trio.sleep(PATIENCE_S)
            nursery.cancel_scope.cancel()

    with pytest.raises(BaseExceptionGroup):
        await until_it_ends()


def _host_port(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def test_an_upgrade_and_a_byte_end_only_their_own_connection(serving: Serve) -> None:
    async with serving(keep_alive_timeout_s=0.5) as served:
        answer = await served.raw(UPGRADE_AND_A_BYTE)
        assert status_of(answer) == 200  # the offer to switch is ignored
        assert await served.is_well()
        assert served.gateway.restarts == 0


async def test_a_connection_that_fails_inside_the_parser_ends_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PlainHttp._create_stream

    async def failing(self: PlainHttp, head: object) -> None:
        if b"/boom" in head.target:  # type: ignore[attr-defined]
            raise RuntimeError("a defect in the server library")
        await real(self, head)

    monkeypatch.setattr(PlainHttp, "_create_stream", failing)
    stream = await served.connect()
    async with stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(await read(stream, until_close=False)) == 200
        assert await served.raw(request(b"GET /boom")) == b""
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(await read(stream, until_close=False)) == 200  # its neighbour lives
    assert served.gateway.restarts == 0


def test_another_hypercorn_is_refused_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    check_hypercorn()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.0")
    with pytest.raises(RuntimeError, match=r"0\.18\.0, not 0\.19\.0"):
        check_hypercorn()


def test_a_hypercorn_without_a_name_we_lean_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    leaned_on = {GuardedConnection.__mro__[1]: ("protocol_send", "no_such_name")}
    monkeypatch.setattr(connection, "_LEANED_ON", leaned_on)
    with pytest.raises(RuntimeError, match="no_such_name"):
        check_hypercorn()


@pytest.mark.parametrize(
    "probe",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    ],
    ids=["prior-knowledge", "upgrade"],
)
async def test_nobody_switches_the_connection_to_http_2(serving: Serve, probe: bytes) -> None:
    async with serving(keep_alive_timeout_s=0.3) as served:
        answer = await served.raw(probe)
        assert answer.startswith(b"HTTP/1.1 ")
        assert b" 101 " not in answer[:20]
        assert await served.is_well()


# -- B: idle sockets stay open for ever ------------------------------------------------------------
@pytest.mark.parametrize("path", [b"/health", b"/ready", b"/api/v1/node"])
async def test_an_idle_socket_is_closed_after_its_answer(serving: Serve, path: bytes) -> None:
    async with serving(keep_alive_timeout_s=0.3) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(request(b"GET " + path))
            assert status_of(await read(stream)) == 200  # reads to the close by the server
        await eventually(lambda: not served.gateway._connections)


async def test_many_idle_sockets_are_all_closed(serving: Serve) -> None:
    async with serving(keep_alive_timeout_s=0.5) as served:
        streams = [await served.connect() for _ in range(60)]
        for stream in streams:
            await stream.send_all(request(b"GET /ready"))
        for stream in streams:
            await read(stream)
        await eventually(lambda: not served.gateway._connections)
        for stream in streams:
            await stream.aclose()


async def test_a_kept_connection_serves_again_before_it_is_idle_too_long(served: Served) -> None:
    stream = await served.connect()
    async with stream:
        for _ in range(5):
            await stream.send_all(request(b"GET /ready"))
            assert status_of(await read(stream, until_close=False)) == 200


@pytest.mark.parametrize("begun", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: lo"])
async def test_a_head_that_never_ends_is_not_waited_for(serving: Serve, begun: bytes) -> None:
    async with serving(keep_alive_timeout_s=0.3) as served:
        await served.raw(begun)
        assert await served.is_well()


async def test_a_client_that_hangs_up_leaves_nothing_behind(serving: Serve) -> None:
    async with serving(keep_alive_timeout_s=60.0) as served:
        async with await served.connect() as stream:
            await stream.send_all(request(b"GET /ready"))
            await read(stream, until_close=False)
        await eventually(lambda: not served.gateway._connections)


# -- C: chunked bodies are not bounded -------------------------------------------------------------
def chunked(pieces: int, size: int) -> bytes:
    return (b"%x\r\n" % size + b"x" * size + b"\r\n") * pieces + b"0\r\n\r\n"


@pytest.mark.parametrize("path", [b"/api/v1/blobs", b"/api/v1/tasks"])
async def test_a_chunked_body_over_the_limit_is_413(
    serving: Serve, desk: FakeDesk, path: bytes
) -> None:
    async with serving(upload_bytes_max=MIB, body_bytes_max=MIB) as served:
        head = request(b"POST " + path, b"Transfer-Encoding: chunked")
        answer = await served.raw(head + chunked(40, 65536))
        assert status_of(answer) == 413
        assert b'"code":"too_large"' in answer
        assert list(desk.folder.iterdir()) == []  # nothing half stored
        assert await served.is_well()


async def test_a_chunked_body_at_the_limit_is_taken(serving: Serve) -> None:
    async with serving(upload_bytes_max=MIB) as served:
        head = request(b"POST /api/v1/blobs", b"Transfer-Encoding: chunked", b"Connection: close")
        assert status_of(await served.raw(head + chunked(16, 65536))) == 201


async def test_a_declared_length_over_the_limit_is_413_before_it_is_sent(serving: Serve) -> None:
    async with serving(upload_bytes_max=MIB) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(request(b"POST /api/v1/blobs", b"Content-Length: 99999999999"))
            assert status_of(await read(stream, until_close=False)) == 413


async def test_an_early_answer_does_not_wait_for_a_body_that_nobody_reads(serving: Serve) -> None:
    """More pieces than hypercorn queues: the answer, and the close, must not wait for room."""
    async with serving(upload_bytes_max=1000) as served:
        body = b"x" * (8 * MIB)
        head = b"Content-Length: %d" % len(body)
        for line in (b"POST /api/v1/blobs", b"POST /nope", b"GET /api/v1/node"):
            began = trio.current_time()
            assert status_of(await served.raw(request(line, head, body=body))) in (200, 404, 413)
            assert trio.current_time() - began < PATIENCE_S / 2
        await eventually(lambda: not served.gateway._connections)


async def test_json_bodies_share_one_budget(serving: Serve) -> None:
    async with serving(bodies_bytes_max=1000, body_bytes_max=MIB) as served:
        body = b'{"agent":"%s"}' % (b"a" * 2000)
        head = (b"Content-Length: %d" % len(body), b"Connection: close")
        answer = await served.raw(request(b"POST /api/v1/tasks", *head, body=body))
        assert status_of(answer) == 503
        body = b'{"agnet":"%s"}' % (b"a" * 600)
        head = (b"Content-Length: %d" % len(body), b"Connection: close")
        small = request(b"POST /api/v1/tasks", *head, body=body)
        for _ in range(3):
            assert status_of(await served.raw(small)) == 400  # what was taken was given back


async def test_uploads_are_pushed_back_on_instead_of_being_buffered(
    served: Served, desk: FakeDesk
) -> None:
    desk.slow_blobs = trio.Event()
    size = 40 * MIB
    sent = 0
    stream = await served.connect()
    async with stream:
        await stream.send_all(request(b"POST /api/v1/blobs", b"Content-Length: %d" % size))
        with trio.move_on_after(1.0):
            while sent < size:
                await stream.send_all(b"x" * 65536)
                sent += 65536
        assert sent < size  # the sender stands still: sockets and a short queue are full


# -- D: slow bodies are waited for -----------------------------------------------------------------
async def test_a_body_that_stops_is_408(serving: Serve) -> None:
    async with serving(body_idle_timeout_s=0.3) as served:
        for path in (b"/api/v1/blobs", b"/api/v1/tasks"):
            head = request(b"POST " + path, b"Content-Length: 10")
            answer = await served.raw(head + b"abc")
            assert status_of(answer) == 408
            assert b'"code":"body_too_slow"' in answer


async def test_a_body_that_drips_is_408_although_it_never_stops(serving: Serve) -> None:
    async with serving(body_idle_timeout_s=5.0, body_grace_s=0.5) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(request(b"POST /api/v1/blobs", b"Content-Length: 100000"))
            answer = b""
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:

                    async def drip() -> None:
                        while True:
                            await stream.send_all(b"x")
                            await trio.sleep(0.05)

                    nursery.start_soon(drip)
                    answer = await read(stream, until_close=False)
                    nursery.cancel_scope.cancel()
            assert status_of(answer) == 408


async def test_a_client_that_leaves_in_mid_upload_leaves_no_file(
    served: Served, desk: FakeDesk
) -> None:
    async with await served.connect() as stream:
        await stream.send_all(request(b"POST /api/v1/blobs", b"Content-Length: 1000", body=b"abc"))
        await eventually(lambda: any(desk.folder.iterdir()))
    await eventually(lambda: not any(desk.folder.iterdir()))
    assert await served.is_well()


# -- E: handlers are not timed ---------------------------------------------------------------------
async def test_a_handler_past_its_deadline_is_503(serving: Serve, desk: FakeDesk) -> None:
    desk.hold = trio.Event()
    async with serving(handler_timeout_s=0.3) as served:
        answer = await served.raw(
            request(b"GET /api/v1/tasks/" + TASK.encode(), b"Connection: close")
        )
        assert status_of(answer) == 503
        assert b'"code":"timeout"' in answer
        assert b"retry-after: 1" in answer


async def test_a_store_that_hangs_is_503(serving: Serve, desk: FakeDesk) -> None:
    desk.slow_blobs = trio.Event()
    async with serving(handler_timeout_s=0.2, body_idle_timeout_s=0.2) as served:
        head = (b"Content-Length: 3", b"Connection: close")
        answer = await served.raw(request(b"POST /api/v1/blobs", *head, body=b"abc"))
        assert status_of(answer) == 503


async def test_a_client_that_takes_nothing_is_cut_off(serving: Serve, desk: FakeDesk) -> None:
    """Hypercorn shields its sends without a deadline; this one would stay for ever."""
    async with serving(send_timeout_s=0.5, upload_bytes_max=64 * MIB) as served:
        async with httpx.AsyncClient(
            base_url=served.url, headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S
        ) as client:
            stored = await client.post("/api/v1/blobs", content=b"x" * (32 * MIB))
        async with await served.connect() as stream:
            await stream.send_all(request(b"GET /api/v1/blobs/" + stored.json()["digest"].encode()))
            await eventually(lambda: not served.gateway._connections)


# -- F: nothing is limited -------------------------------------------------------------------------
async def test_a_request_too_many_is_503_and_probes_still_answer(
    serving: Serve, desk: FakeDesk
) -> None:
    desk.hold = trio.Event()
    async with serving(requests_max=3) as served:
        streams = [await served.connect() for _ in range(3)]
        for stream in streams:
            await stream.send_all(request(b"GET /api/v1/tasks/" + TASK.encode()))
        await eventually(lambda: served.sample("zerostate_http_requests_at_work") == 3)
        answer = await served.raw(request(b"GET /api/v1/node", b"Connection: close"))
        assert status_of(answer) == 503
        assert b"retry-after: 1" in answer
        assert await served.is_well()
        desk.hold.set()
        for stream in streams:
            assert status_of(await read(stream, until_close=False)) == 404
            await stream.aclose()
        answer = await served.raw(request(b"GET /api/v1/node", b"Connection: close"))
        assert status_of(answer) == 200


async def test_a_client_that_left_frees_its_place(serving: Serve, desk: FakeDesk) -> None:
    desk.hold = trio.Event()
    async with serving(requests_max=1) as served:
        async with await served.connect() as stream:
            await stream.send_all(request(b"GET /api/v1/tasks/" + TASK.encode()))
            await eventually(lambda: served.sample("zerostate_http_requests_at_work") == 1)
        await eventually(lambda: served.sample("zerostate_http_requests_at_work") == 0)
        answer = await served.raw(request(b"GET /api/v1/node", b"Connection: close"))
        assert status_of(answer) == 200


async def test_a_connection_too_many_is_closed_at_once(serving: Serve) -> None:
    async with serving(connections_max=2) as served:
        async with await served.connect() as one, await served.connect() as two:
            await eventually(lambda: len(served.gateway._connections) == 2)
            assert await served.raw(request(b"GET /api/v1/node")) == b""
            for stream in (one, two):
                await stream.send_all(request(b"GET /api/v1/node"))
                assert status_of(await read(stream, until_close=False)) == 200


# -- H: two lengths --------------------------------------------------------------------------------
async def test_content_length_with_transfer_encoding_is_400_and_the_end(
    served: Served, desk: FakeDesk
) -> None:
    smuggled = request(b"POST /api/v1/tasks", b"Content-Length: 2", body=b"{}")
    for heads in (
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    ):
        began = time.monotonic()
        answer = await served.raw(
            request(b"POST /api/v1/blobs", *heads, body=b"0\r\n\r\n" + smuggled)
        )
        assert status_of(answer) == 400
        assert answer.count(b"content-length: ") == 1  # what follows is not read as a request
        assert b"connection: close" in answer
        assert time.monotonic() - began < PATIENCE_S / 2
