"""GET /api/v1/events: bounded in number, resumable, closed properly at the end."""

from __future__ import annotations

from zerostate_node.errors import NotFound
from zerostate_node.gateway import shapes
from zerostate_node.gateway.problems import bad_request, busy
from zerostate_node.gateway.route import Answer, Call, Handler
from zerostate_node.gateway.streams import EventChunks, Streams
from zerostate_node.wire import ids

EVENT_STREAM = "text/event-stream"


def events_handler(streams: Streams) -> Handler:
    """The handler, for the streams of one gateway."""

    async def events(call: Call) -> Answer:
        query: shapes.EventsQuery = call.query
        after = _last_event_id(call.exchange.heads.one("last-event-id"), query.after)
        if query.task_id:
            if not ids.is_task_id(query.task_id):
                raise NotFound(f"no task {query.task_id!r}")
            await call.desk.task(query.task_id, actor=call.actor)  # 404 while it can be said
        if streams.stopping.is_set():
            raise busy("the gateway is stopping", code="stopping")
        if streams.open >= call.settings.streams_max:
            raise busy(
                "too many event streams at one time", code="too_many_streams", retry_after_s=5
            )
        call.exchange.begin_stream()
        body = EventChunks(
            call.desk.watch(actor=call.actor, task_id=query.task_id, after=after),
            streams=streams,
            ping_interval_s=call.settings.ping_interval_s,
        )
        return Answer(body, content_type=EVENT_STREAM, headers={"x-accel-buffering": "no"})

    return events


def _last_event_id(given: str, after: int) -> int:
    if not given:
        return after
    if not (given.isascii() and given.isdigit() and len(given) <= 16):
        raise bad_request("Last-Event-ID is the number of the last event seen")
    return int(given)
