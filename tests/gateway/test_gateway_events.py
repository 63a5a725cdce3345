"""The event stream: snapshot, changes, resuming, pings, bounds, and its ends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fake_desk import FakeDesk
from gateway_http import KEY, PATIENCE_S, Serve, Served, eventually, read

from zerostate_node.errors import Unavailable
from zerostate_node.ports.desk import Event, Submit

STREAM = (
    b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n"
    % KEY.encode()
)


class Reader:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def block(self) -> list[str]:
        """The lines up to the next empty one."""
        lines: list[str] = []
        with trio.fail_after(PATIENCE_S):
            async for line in self._lines:
                if not line:
                    return lines
                lines.append(line)
        raise EOFError

    async def event(self) -> dict:
        while True:
            fields = dict(line.split(": ", 1) for line in await self.block() if line[0] != ":")
            if "data" in fields:
                return {
                    "id": int(fields["id"]) if "id" in fields else None,
                    "event": fields["event"],
                    "data": json.loads(fields["data"]),
                }


@asynccontextmanager
async def events(served: Served, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    headers = {"authorization": f"Bearer {KEY}", **headers}
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S) as client:
        async with client.stream("GET", f"/api/v1/events{query}", headers=headers) as answer:
            if answer.status_code != 200:
                await answer.aread()
            yield Reader(answer)


async def open_task(desk: FakeDesk) -> str:
    if not desk.agents_by_id:

        async def module() -> AsyncIterator[bytes]:
            yield b"m"

        stored = await desk.put_blob(module())
        await desk.publish({"name": "echo", "version": "1"}, module=stored["digest"])
    return (await desk.submit(Submit(agent="echo"), actor="operator")).task_id


async def test_a_snapshot_comes_first_then_numbered_changes(served: Served, desk: FakeDesk) -> None:
    async with events(served) as reader:
        assert reader.answer.headers["content-type"] == "text/event-stream"
        first = await reader.event()
        assert first["event"] == "snapshot"
        assert first["data"]["body"] == {"tasks": 0}
        task_id = await open_task(desk)
        published, opened = await reader.event(), await reader.event()
        assert (published["event"], opened["event"]) == ("agent.published", "task.open")
        assert opened["id"] == published["id"] + 1 == opened["data"]["seq"]
        assert opened["data"]["task_id"] == task_id


@pytest.mark.parametrize("how", ["header", "query", "both"])
async def test_a_stream_continues_after_the_last_event_seen(
    served: Served, desk: FakeDesk, how: str
) -> None:
    for _ in range(4):
        await open_task(desk)
    query = {"header": "", "query": "?after=2", "both": "?after=0"}[how]
    headers = {} if how == "query" else {"last-event-id": "2"}
    async with events(served, query, **headers) as reader:
        assert [(await reader.event())["id"] for _ in range(2)] == [3, 4]


async def test_a_stream_of_one_task_tells_of_no_other(served: Served, desk: FakeDesk) -> None:
    mine, other = await open_task(desk), await open_task(desk)
    async with events(served, f"?task_id={mine}") as reader:
        await reader.event()
        desk.finish(other, b"")
        desk.finish(mine, b"")
        heard = await reader.event()
        assert (heard["event"], heard["data"]["task_id"]) == ("task.settled", mine)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?task_id=01HF7YAT00B6X42H2022GR73KG", {}, 404),
        ("?task_id=nonsense", {}, 404),
        ("?after=x", {}, 400),
        ("", {"last-event-id": "-1"}, 400),
        ("", {"last-event-id": "9" * 17}, 400),
    ],
)
async def test_a_stream_that_cannot_be_is_a_problem_not_a_stream(
    served: Served, desk: FakeDesk, query: str, headers: dict[str, str], status: int
) -> None:
    async with events(served, query, **headers) as reader:
        assert reader.answer.status_code == status
        assert reader.answer.headers["content-type"] == "application/problem+json"
    assert desk.watchers == 0


async def test_silence_is_filled_with_pings(serving: Serve) -> None:
    async with serving(ping_interval_s=0.1) as served:
        async with events(served) as reader:
            await reader.event()
            assert [await reader.block() for _ in range(3)] == [[": ping"]] * 3


async def test_a_stream_outlives_the_handlers_deadline(serving: Serve, desk: FakeDesk) -> None:
    async with serving(handler_timeout_s=0.2, ping_interval_s=0.1) as served:
        async with events(served) as reader:
            await reader.event()
            for _ in range(5):
                await reader.block()
            desk.emit("peer.gone")
            assert (await reader.event())["event"] == "peer.gone"


async def test_a_client_that_leaves_frees_the_watcher_and_its_socket(
    served: Served, desk: FakeDesk
) -> None:
    async with events(served) as reader:
        await reader.event()
        assert desk.watchers == 1
        assert served.sample("zerostate_http_event_streams") == 1
    await eventually(lambda: desk.watchers == 0)
    await eventually(lambda: served.sample("zerostate_http_event_streams") == 0)
    await eventually(lambda: not served.gateway._connections)


async def test_streams_are_bounded_and_take_no_room_from_requests(
    serving: Serve, desk: FakeDesk
) -> None:
    async with serving(streams_max=2, requests_max=1) as served:
        async with events(served) as one, events(served) as two:
            await one.event()
            await two.event()
            async with events(served) as three:
                assert three.answer.status_code == 503
                assert three.answer.json()["code"] == "too_many_streams"
                assert three.answer.headers["retry-after"] == "5"
            async with httpx.AsyncClient(
                base_url=served.url, headers={"authorization": f"Bearer {KEY}"}
            ) as client:
                assert (await client.get("/api/v1/node")).status_code == 200
        await eventually(lambda: desk.watchers == 0)
        async with events(served) as again:
            assert (await again.event())["event"] == "snapshot"


async def test_a_client_that_does_not_read_is_cut_off(serving: Serve, desk: FakeDesk) -> None:
    async with serving(send_timeout_s=0.5) as served:
        async with await served.connect() as stream:
            await stream.send_all(STREAM)
            await eventually(lambda: desk.watchers == 1)
            for _ in range(200):
                desk.emit("task.log", text="x" * 100_000)
            await eventually(lambda: desk.watchers == 0)
            await eventually(lambda: not served.gateway._connections)


async def test_a_stop_ends_streams_with_a_last_event_and_a_whole_body(
    serving: Serve, desk: FakeDesk
) -> None:
    async with serving(stop_grace_s=5.0) as served:
        async with await served.connect() as stream:
            await stream.send_all(STREAM)
            await eventually(lambda: desk.watchers == 1)
            whole = await read(stream, until_close=False)
            began = trio.current_time()
            served.stop()
            whole += await read(stream)
            assert b"event: bye\ndata: {}\n\n" in whole
            assert whole.endswith(b"0\r\n\r\n")  # the end of a chunked body, not a cut
            with trio.fail_after(PATIENCE_S):
                await served.ended.wait()
            assert trio.current_time() - began < 4.0
        assert desk.watchers == 0


async def test_a_source_that_fails_ends_its_stream_and_nothing_else(
    served: Served, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(**_: object) -> AsyncIterator[Event]:
        yield Event(seq=0, at_ms=0, kind="snapshot")
        raise errors.pop()

    errors = [Unavailable("the hub is full", code="too_slow"), RuntimeError("secret detail")]
    monkeypatch.setattr(desk, "watch", failing)
    async with events(served) as reader:
        await reader.event()
        with pytest.raises(EOFError):
            await reader.event()  # a defect: the stream just ends
    async with events(served) as reader:
        await reader.event()
        last = await reader.event()
        assert (last["event"], last["data"]["code"]) == ("error", "too_slow")
    assert await served.is_well()


async def test_a_kind_with_a_line_break_cannot_forge_an_event(
    served: Served, desk: FakeDesk
) -> None:
    async with events(served) as reader:
        await reader.event()
        desk.emit("x\nid: 99", text="a\nb\r\n\r\ndata: forged")
        heard = await reader.event()
        assert heard["id"] == 0
        assert heard["data"]["body"]["text"] == "a\nb\r\n\r\ndata: forged"
