"""Rows and writes to put into a ledger."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from zerostate_node.ports.ledger import (
    AgentRow,
    LeaseTask,
    OpenTask,
    ReopenTask,
    SettleTask,
    TaskRow,
)
from zerostate_node.wire import ids
from zerostate_node.wire.messages import BlobRef, Outcome, TaskSpec

T0 = 1_760_000_000_000
WORKER = "12D3KooWWorkerWorkerWorkerWorkerWorkerWorkerWorkerWork"
AGENT = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH/echo"


def ref(data: bytes = b"x") -> BlobRef:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return BlobRef(digest=digest, size_bytes=len(data))


def spec(number: int = 0, **changes: Any) -> TaskSpec:
    fields: dict[str, Any] = {
        "task_id": ids.ulid(T0 + number, os.urandom(10)),
        "agent_id": AGENT,
        "agent_version": "1.0.0",
        "module": ref(b"module"),
        "input": ref(b"input"),
        "created_ms": T0 + number,
        "deadline_ms": T0 + number + 60_000,
    }
    return TaskSpec(**(fields | changes))


def row(number: int = 0, *, actor: str = "operator", **changes: Any) -> TaskRow:
    return TaskRow(spec=spec(number, **changes), actor=actor, phase="open")


def opening(number: int = 0, **changes: Any) -> OpenTask:
    return OpenTask(row=row(number, **changes), input_inline=b"input")


def lease(task_id: str, fence: int, **changes: Any) -> LeaseTask:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "attempt": fence,
        "fence": fence,
        "worker": WORKER,
        "until_ms": T0 + 30_000 + fence,
        "now_ms": T0 + fence,
    }
    return LeaseTask(**(fields | changes))


def reopening(task_id: str, fence: int, **changes: Any) -> ReopenTask:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "fence": fence,
        "outcome": Outcome.LOST,
        "detail": "silent",
        "excluded": (WORKER,),
        "not_before_ms": T0 + 500,
        "now_ms": T0 + 100 + fence,
    }
    return ReopenTask(**(fields | changes))


def settling(task_id: str, fence: int, **changes: Any) -> SettleTask:
    fields: dict[str, Any] = {
        "task_id": task_id,
        "fence": fence,
        "worker": WORKER,
        "outcome": Outcome.COMPLETED,
        "detail": "",
        "now_ms": T0 + 200 + fence,
        "receipt": b"signed by the worker",
        "output": ref(b"output"),
        "output_inline": b"output",
        "fuel_used": 1234,
        "price_ucr": 56,
    }
    return SettleTask(**(fields | changes))


def agent(version: str = "1.0.0", sequence: int = 1, **changes: Any) -> AgentRow:
    fields: dict[str, Any] = {
        "agent_id": AGENT,
        "version": version,
        "sequence": sequence,
        "name": "echo",
        "publisher": AGENT.partition("/")[0],
        "status": "active",
        "card": f"{{card {version} {sequence}}}".encode(),
        "published_ms": T0,
    }
    return AgentRow(**(fields | changes))
