"""All routes of the gateway, in one table."""

from __future__ import annotations

from typing import Any

from zerostate_node.gateway import api, shapes
from zerostate_node.gateway.events import EVENT_STREAM, events_handler
from zerostate_node.gateway.metrics import CONTENT_TYPE as METRICS_TEXT
from zerostate_node.gateway.openapi import document_handler
from zerostate_node.gateway.page import page_handler
from zerostate_node.gateway.route import BYTES, RECEIPT, Route
from zerostate_node.gateway.streams import Streams
from zerostate_node.ports.desk import AgentView, Submitted, TaskPage, TaskView

_DIGEST_OUT = ("X-Zerostate-Digest", "sha256 of the body")


def build_routes(streams: Streams, version: str) -> tuple[Route, ...]:
    """The table; the document describes exactly what is in it."""
    routes: list[Route] = []
    routes += [
        Route(
            method="GET",
            path="/",
            summary="A page for people: who this node is and what to try next",
            handle=page_handler(version),
            private=False,
            gives="text/html",
        ),
        Route(
            method="GET",
            path="/health",
            summary="Whether the node's loop turns",
            handle=None,
            private=False,
            gives=shapes.Health,
        ),
        Route(
            method="GET",
            path="/ready",
            summary="Whether the node can take work, and why not",
            handle=api.ready,
            private=False,
            gives=shapes.Ready,
            also={503: shapes.Ready},
        ),
        Route(
            method="GET",
            path="/metrics",
            summary="Prometheus metrics; 404 when they are off",
            handle=None,
            private=False,
            gives=METRICS_TEXT.partition(";")[0],
            problems=(404,),
        ),
        Route(
            method="GET",
            path="/openapi.json",
            summary="This document",
            handle=document_handler(routes, version),
            private=False,
            gives=dict[str, Any],
        ),
        Route(
            method="GET",
            path="/api/v1/node",
            summary="Who this node is",
            handle=api.node,
            gives=dict[str, Any],
        ),
        Route(
            method="GET",
            path="/api/v1/peers",
            summary="Peers known, connected first",
            handle=api.peers,
            gives=shapes.Peers,
        ),
        Route(
            method="GET",
            path="/api/v1/doctor",
            summary="What is wrong with this node, if anything, and what to do",
            handle=api.doctor,
            gives=shapes.Checks,
        ),
        Route(
            method="POST",
            path="/api/v1/blobs",
            summary="Store bytes: an input, a module or a script",
            handle=api.put_blob,
            takes=BYTES,
            status=201,
            gives=shapes.Stored,
            problems=(408, 413, 422),
            headers_out=(("Location", "where the blob is"),),
            timed=False,
        ),
        Route(
            method="GET",
            path="/api/v1/blobs/{digest}",
            summary="The bytes of a blob",
            handle=api.get_blob,
            gives=BYTES,
            problems=(404,),
            headers_out=(_DIGEST_OUT,),
        ),
        Route(
            method="POST",
            path="/api/v1/agents",
            summary="Publish an agent: sign it as this node, keep it, tell the network",
            handle=api.publish,
            takes=shapes.NewAgent,
            status=201,
            gives=AgentView,
            problems=(404, 408, 409, 413, 415, 422),
            headers_out=(("Location", "where the agent is"),),
        ),
        Route(
            method="GET",
            path="/api/v1/agents",
            summary="Agents known, alive ones first",
            handle=api.agents,
            query=shapes.AgentsQuery,
            gives=shapes.Agents,
        ),
        Route(
            method="GET",
            path="/api/v1/agents/{ref+}",
            summary="An agent by id, unique name, or either@version, with its signed card",
            handle=api.agent,
            gives=shapes.AgentAndCard,
            problems=(404, 422),
        ),
        Route(
            method="DELETE",
            path="/api/v1/agents/{ref+}",
            summary="Revoke an agent of yours; final",
            handle=api.revoke,
            takes=shapes.Reason,
            takes_optional=True,
            gives=AgentView,
            problems=(404, 408, 413, 415, 422),
        ),
        Route(
            method="POST",
            path="/api/v1/tasks",
            summary="Submit a task; durable when answered",
            handle=api.submit,
            direct=True,
            takes=shapes.NewTask,
            status=202,
            gives=Submitted,
            problems=(404, 408, 409, 413, 415, 422),
            headers_in=(
                ("Idempotency-Key", "1 to 128 characters; the same key opens one task"),
                ("traceparent", "W3C trace context, carried with the task"),
            ),
            headers_out=(("Location", "where the task is"),),
        ),
        Route(
            method="GET",
            path="/api/v1/tasks",
            summary="Tasks, newest first",
            handle=api.tasks,
            query=shapes.TasksQuery,
            gives=TaskPage,
        ),
        Route(
            method="GET",
            path="/api/v1/tasks/{task_id}",
            summary="One task with its attempts",
            handle=api.task,
            direct=True,
            gives=TaskView,
            problems=(404,),
        ),
        Route(
            method="GET",
            path="/api/v1/tasks/{task_id}/result",
            summary="The output of a finished task",
            handle=api.result,
            gives=BYTES,
            problems=(404, 409),
            headers_out=(_DIGEST_OUT, ("X-Zerostate-Outcome", "how the task ended")),
        ),
        Route(
            method="GET",
            path="/api/v1/tasks/{task_id}/receipt",
            summary="The worker's signed receipt, as it travels",
            handle=api.receipt,
            gives=RECEIPT,
            problems=(404, 409),
        ),
        Route(
            method="POST",
            path="/api/v1/tasks/{task_id}/cancel",
            summary="Ask for the end of a task",
            handle=api.cancel,
            takes=shapes.Reason,
            takes_optional=True,
            gives=TaskView,
            problems=(404, 408, 409, 413, 415),
        ),
        Route(
            method="POST",
            path="/api/v1/receipts/verify",
            summary="Check a receipt's signature; with replay=1 also run the work and compare",
            handle=api.verify,
            query=shapes.VerifyQuery,
            takes=RECEIPT,
            gives=dict[str, Any],
            problems=(404, 408, 413, 422),
            timeout_s=300.0,  # a replay is a run
        ),
        Route(
            method="GET",
            path="/api/v1/events",
            summary="Server-Sent Events: a snapshot, then numbered changes",
            handle=events_handler(streams),
            query=shapes.EventsQuery,
            gives=EVENT_STREAM,
            problems=(404,),
            headers_in=(("Last-Event-ID", "continue after this event; wins over `after`"),),
        ),
    ]
    return tuple(routes)
