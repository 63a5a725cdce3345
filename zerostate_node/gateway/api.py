"""The handlers of /api/v1 and of readiness: each one is a question to the desk."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import trio

from zerostate_node.errors import NotFound
from zerostate_node.gateway import shapes
from zerostate_node.gateway.problems import bad_request, timed_out
from zerostate_node.gateway.route import (
    BYTES,
    RECEIPT,
    RECEIPT_BYTES_MAX,
    Answer,
    Call,
    json_answer,
)
from zerostate_node.gateway.streams import FileChunks
from zerostate_node.ports.desk import Download
from zerostate_node.wire import ids

_KEY = re.compile(r"[\x21-\x7e]{1,128}\Z")
_ATTACHMENT = {"content-disposition": "attachment"}  # a guest's output is never a page of ours


# -- node ------------------------------------------------------------------------------------------
async def ready(call: Call) -> Answer:
    """GET /ready."""
    checks = tuple(await call.desk.ready())
    good = all(check.ok for check in checks)
    headers = {} if good else {"retry-after": "1"}
    answer = shapes.Ready(ready=good, checks=checks)
    return json_answer(answer, status=200 if good else 503, headers=headers)


async def node(call: Call) -> Answer:
    """GET /api/v1/node."""
    return json_answer(call.desk.info())


async def peers(call: Call) -> Answer:
    """GET /api/v1/peers."""
    return json_answer(shapes.Peers(peers=tuple(call.desk.peers())))


async def doctor(call: Call) -> Answer:
    """GET /api/v1/doctor."""
    return json_answer(shapes.Checks(checks=tuple(await call.desk.doctor())))


# -- blobs -----------------------------------------------------------------------------------------
async def put_blob(call: Call) -> Answer:
    """POST /api/v1/blobs: streamed to the store; bounded while it comes, and after its end."""
    settings = call.settings
    patience_s = settings.body_idle_timeout_s + settings.handler_timeout_s

    with trio.CancelScope() as scope:

        async def chunks() -> Any:
            async for piece in call.exchange.body.chunks(settings.upload_bytes_max):
                scope.deadline = trio.current_time() + patience_s  # the store's time for this piece
                yield piece
            scope.deadline = trio.current_time() + settings.handler_timeout_s

        scope.deadline = trio.current_time() + patience_s
        stored = await call.desk.put_blob(chunks())
        return json_answer(
            stored, status=201, headers={"location": f"/api/v1/blobs/{stored['digest']}"}
        )
    raise timed_out("the store did not take the bytes in time")


async def get_blob(call: Call) -> Answer:
    """GET /api/v1/blobs/{digest}."""
    digest = call.params["digest"]
    if not ids.is_digest(digest):
        raise bad_request("a digest is sha256: and 64 lower-case hex digits", code="bad_digest")
    found = await call.desk.blob(digest)
    headers = {**_ATTACHMENT, "etag": f'"{digest}"', "x-zerostate-digest": digest}
    return await _download(found, headers)


async def _download(found: Download, headers: dict[str, str]) -> Answer:
    if found.inline is not None:
        return Answer(found.inline, content_type=BYTES, headers=headers)
    body = await FileChunks.open(found.path, found.size_bytes)
    headers = {**headers, "content-length": str(found.size_bytes)}
    return Answer(body, content_type=BYTES, headers=headers)


# -- agents ----------------------------------------------------------------------------------------
async def publish(call: Call) -> Answer:
    """POST /api/v1/agents."""
    new = await call.json(shapes.NewAgent)
    view = await call.desk.publish(new.draft, module=new.module, script=new.script)
    return json_answer(view, status=201, headers={"location": f"/api/v1/agents/{view.agent_id}"})


async def agents(call: Call) -> Answer:
    """GET /api/v1/agents."""
    query: shapes.AgentsQuery = call.query
    found = await call.desk.agents(query=query.q, capability=query.capability)
    return json_answer(shapes.Agents(agents=tuple(found)))


async def agent(call: Call) -> Answer:
    """GET /api/v1/agents/{ref}."""
    view, card = await call.desk.agent(_agent_ref(call))
    return json_answer(shapes.AgentAndCard(agent=view, card=msgspec.Raw(card)))


async def revoke(call: Call) -> Answer:
    """DELETE /api/v1/agents/{ref}."""
    given = await call.json(shapes.Reason)
    return json_answer(await call.desk.revoke(_agent_ref(call), reason=given.reason))


def _agent_ref(call: Call) -> str:
    ref = call.params["ref"]
    if len(ref) > 300:
        raise bad_request("an agent's id, name or id@version has at most 300 characters")
    return ref


# -- tasks -----------------------------------------------------------------------------------------
async def submit(call: Call) -> Answer:
    """POST /api/v1/tasks: durable when answered."""
    key = call.exchange.heads.one("idempotency-key")
    if key and not _KEY.match(key):
        raise bad_request("Idempotency-Key has 1 to 128 printable ASCII characters, no spaces")
    new = await call.json(shapes.NewTask)
    given = new.input_bytes()
    submitted = await call.desk.submit(
        new.submit(), actor=call.actor, input=given, key=key, trace=call.exchange.trace
    )
    where = {"location": f"/api/v1/tasks/{submitted.task_id}"}
    return json_answer(submitted, status=202, headers=where)


async def tasks(call: Call) -> Answer:
    """GET /api/v1/tasks."""
    query: shapes.TasksQuery = call.query
    page = await call.desk.tasks(
        actor=call.actor, phase=query.phase, limit=query.limit, cursor=query.cursor
    )
    return json_answer(page)


async def task(call: Call) -> Answer:
    """GET /api/v1/tasks/{task_id}."""
    return json_answer(await call.desk.task(_task_id(call), actor=call.actor))


async def result(call: Call) -> Answer:
    """GET /api/v1/tasks/{task_id}/result."""
    task_id = _task_id(call)
    found = await call.desk.result(task_id, actor=call.actor)
    view = await call.desk.task(task_id, actor=call.actor)
    headers = {
        **_ATTACHMENT,
        "x-zerostate-digest": found.digest,
        "x-zerostate-outcome": view.outcome or "",
    }
    return await _download(found, headers)


async def receipt(call: Call) -> Answer:
    """GET /api/v1/tasks/{task_id}/receipt."""
    task_id = _task_id(call)
    signed = await call.desk.receipt(task_id, actor=call.actor)
    headers = {"content-disposition": f'attachment; filename="{task_id}.receipt"'}
    return Answer(signed, content_type=RECEIPT, headers=headers)


async def cancel(call: Call) -> Answer:
    """POST /api/v1/tasks/{task_id}/cancel."""
    given = await call.json(shapes.Reason)
    view = await call.desk.cancel(_task_id(call), actor=call.actor, reason=given.reason)
    return json_answer(view)


def _task_id(call: Call) -> str:
    """A path that cannot name a task is not found, like one that names none."""
    task_id = call.params["task_id"]
    if not ids.is_task_id(task_id):
        raise NotFound(f"no task {task_id[:40]!r}", hint="a task id is a ULID of 26 characters")
    return task_id


# -- receipts --------------------------------------------------------------------------------------
async def verify(call: Call) -> Answer:
    """POST /api/v1/receipts/verify."""
    query: shapes.VerifyQuery = call.query
    signed = await call.exchange.body.read(RECEIPT_BYTES_MAX)
    if not signed:
        raise bad_request("the body is the receipt, as it was downloaded")
    desk = call.desk
    return json_answer(await (desk.replay(signed) if query.replay == "1" else desk.verify(signed)))
