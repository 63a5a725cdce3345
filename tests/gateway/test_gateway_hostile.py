"""Raw requests that break servers: each one leaves the gateway answering."""

import pytest
import trio
from gateway_http import KEY, Serve, Served

from zerostate_node.gateway import problems

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /api/v1/blobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    + KEY.encode()
    + b"\r\n"
)
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

PROBES = {
    "nothing": b"",
    "one byte": b"\0",
    "garbage": bytes(range(256)) * 8,
    "tls hello": bytes.fromhex("16030100c8010000c403030000") + b"\0" * 200,
    "only line ends": b"\r\n" * 5000,
    "http/0.9": b"GET /health\r\n\r\n",
    "http/3.0": b"GET /health HTTP/3.0\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "target is a url": b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "target is a star": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "line of 1 MB": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "field of 1 MB": GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "20,000 fields": GET + b"X: y\r\n" * 20_000 + b"\r\n",
    "field with nul": GET + b"X: a\0b\r\n\r\n",
    "field without colon": GET + b"no colon here\r\n\r\n",
    "space before colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded field": GET + b"X: a\r\n b\r\n\r\n",
    "bare cr": GET + b"X: a\rY: b\r\n\r\n",
    "percent in path": b"GET /%00%ff%2e%2e/%c0%ae HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length and chunks": POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\nGET /x",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "length with plus": POST + b"Content-Length: +3\r\n\r\nabc",
    "length of 40 digits": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nabc",
    "chunks twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks in disguise": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunk size not hex": POST + CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
    "chunk size negative": POST + CHUNKED + b"\r\n-1\r\nabc\r\n0\r\n\r\n",
    "chunk size huge": POST + CHUNKED + b"\r\nffffffffffffffffffff\r\nabc\r\n",
    "chunk longer than said": POST + CHUNKED + b"\r\n2\r\nabcdef\r\n0\r\n\r\n",
    "chunk extension of 1 MB": POST
    + CHUNKED
    + b"\r\n2;"
    + b"e" * 1_000_000
    + b"\r\nab\r\n0\r\n\r\n",
    "trailer of 1 MB": POST + CHUNKED + b"\r\n0\r\nX: " + b"t" * 1_000_000 + b"\r\n\r\n",
    "body ends early": POST + b"Content-Length: 100\r\n\r\nabc",
    "expect nonsense": POST + b"Expect: 200-maybe\r\nContent-Length: 3\r\n\r\nabc",
    "upgrade and a byte": GET + UPGRADE + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nx",
    "upgrade without key": GET + UPGRADE + b"\r\n",
    "upgrade and frames": GET + UPGRADE + b"\r\n" + b"\x81\x85\0\0\0\0hello" * 50,
    "upgrade with a body": POST + UPGRADE + b"Content-Length: 3\r\n\r\nabc\x81\x80",
    "upgrade to h2c": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" * 20,
    "100 requests at once": (GET + b"\r\n") * 100,
    "requests behind a bad one": GET + b"X y\r\n\r\n" + (GET + b"\r\n") * 20,
    "method of 10 kB": b"A" * 10_000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "head with a body": b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
async def test_a_hostile_request_leaves_the_gateway_well(serving: Serve, probe: bytes) -> None:
    async with serving(keep_alive_timeout_s=0.3, body_idle_timeout_s=0.3) as served:
        neighbour = await served.connect()
        async with neighbour:
            answer = await served.raw(probe)
            if answer:
                assert answer.startswith(b"HTTP/1.1 ")
                assert answer[9:12].isdigit()
                assert answer[9:12] != b"500"
            assert b"Traceback" not in answer
            assert await served.is_well()
        assert served.gateway.restarts == 0


async def test_a_request_behind_a_smuggled_one_is_not_answered(serving: Serve) -> None:
    inner = b"DELETE /api/v1/agents/echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving(keep_alive_timeout_s=0.3, body_idle_timeout_s=0.3) as served:
        for head in (
            POST + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + inner,
            POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner,
            POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd" + inner,
        ):
            answer = await served.raw(head)
            assert answer.count(b"content-length: ") == 1
            assert b"HTTP/1.1 400" in answer


async def test_what_the_parser_refuses_is_a_problem_too(served: Served) -> None:
    answer = await served.raw(b"GET /health HTTP/1.1\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: " + problems.CONTENT_TYPE.encode() in head
    assert b'"code":"bad_http"' in body


async def test_two_hundred_half_open_clients_do_not_keep_others_out(serving: Serve) -> None:
    async with serving(keep_alive_timeout_s=5.0) as served:
        streams = [await served.connect() for _ in range(200)]
        for number, stream in enumerate(streams):
            await stream.send_all((b"GET / HTTP/1.1\r\nHo", POST, b"\0")[number % 3])
        assert await served.is_well()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(trio.aclose_forcefully, stream)
        assert await served.is_well()
