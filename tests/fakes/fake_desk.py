"""
A desk in memory: small, but it keeps the port's promises and raises its errors.

Tasks stay open until a test settles them with `finish`. Nothing is run and nothing is signed: a
receipt is the word `receipt` and the task's id.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from zerostate_node.errors import NotFound, Refused, Unavailable, WireError
from zerostate_node.ports.desk import (
    AgentView,
    Check,
    Download,
    Event,
    PeerView,
    Submit,
    Submitted,
    TaskPage,
    TaskView,
)
from zerostate_node.wire import ids
from zerostate_node.wire.messages import Limits, Price

PEER = ids.peer_id_of(bytes(range(32)))
DID = ids.did_of(PEER)
INPUT_BYTES_MAX = 512 * 1024


class FakeDesk:
    """Implements `ports.desk.Desk`."""

    def __init__(
        self, folder: Path, *, now_ms: Callable[[], int] = lambda: 1_700_000_000_000
    ) -> None:
        self.folder = folder
        self.now_ms = now_ms
        self.tasks_by_id: dict[str, TaskView] = {}
        self.agents_by_id: dict[str, AgentView] = {}
        self.outputs: dict[str, bytes] = {}
        self.keys: dict[str, tuple[Submit, bytes | Path | None, Submitted]] = {}
        self.submitted: list[tuple[Submit, dict[str, Any]]] = []
        self.watchers = 0
        self.changed = trio.Event()
        self.events: list[Event] = []
        self.checks = [
            Check(name="ledger", ok=True, detail="open"),
            Check(name="loop", ok=True, detail=""),
        ]
        self.away = False  # the ledger: submit answers Unavailable
        self.hold: trio.Event | None = None  # makes `task` wait: a slow node
        self.slow_blobs: trio.Event | None = None  # makes `put_blob` wait before each piece
        self.broken: BaseException | None = None  # what `task` raises

    # -- tasks -------------------------------------------------------------------------------------
    async def submit(
        self,
        request: Submit,
        *,
        actor: str,
        input: bytes | Path | None = None,
        key: str = "",
        trace: str = "",
    ) -> Submitted:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Unavailable("the ledger is away", retry_after_s=2.5)
        if key in self.keys:
            before, given, answer = self.keys[key]
            if (before, given) != (request, input):
                raise Refused("this key opened another task", code="idempotency_conflict")
            return msgspec.structs.replace(answer, created=False)
        if isinstance(input, bytes) and len(input) > INPUT_BYTES_MAX:
            raise Refused("the input is larger than the agent takes", code="input_too_large")
        if request.input_digest:
            await self.blob(request.input_digest)
        agent = self._agent_for(request)
        task_id = ids.ulid(self.now_ms(), os.urandom(10))
        given_bytes = input if isinstance(input, bytes) else b""
        self.tasks_by_id[task_id] = self._new_task(task_id, request, agent, given_bytes, trace)
        self.submitted.append(
            (request, {"actor": actor, "input": input, "key": key, "trace": trace})
        )
        answer = Submitted(
            task_id=task_id, created=True, agent_id=agent.agent_id, agent_version=agent.version
        )
        if key:
            self.keys[key] = (request, input, answer)
        self.emit("task.open", task_id)
        return answer

    def _agent_for(self, request: Submit) -> AgentView:
        if request.agent:
            return self._find(request.agent)
        for agent in self.agents_by_id.values():
            if request.capability in agent.capabilities:
                return agent
        raise NotFound(f"no agent offers {request.capability!r}")

    def _new_task(
        self, task_id: str, request: Submit, agent: AgentView, given: bytes, trace: str
    ) -> TaskView:
        return TaskView(
            task_id=task_id,
            phase="open",
            outcome=None,
            detail="",
            agent_id=agent.agent_id,
            agent_version=agent.version,
            agent_name=agent.name,
            capability=request.capability,
            owner=PEER,
            worker="",
            attempt=0,
            fence=0,
            module_digest=agent.module_digest,
            input_digest=request.input_digest or ids.digest_of(given),
            input_bytes=len(given),
            output_digest=None,
            output_bytes=None,
            fuel_used=0,
            price_ucr=0,
            budget_ucr=request.budget_ucr or 0,
            created_ms=self.now_ms(),
            updated_ms=self.now_ms(),
            deadline_ms=self.now_ms() + (request.deadline_ms or 600_000),
            progress=-1,
            waiting_for="no worker has claimed it",
            trace=trace,
        )

    def finish(self, task_id: str, output: bytes, outcome: str = "completed") -> None:
        """Settle a task, as a worker's receipt would."""
        self.outputs[task_id] = output
        self.tasks_by_id[task_id] = msgspec.structs.replace(
            self.tasks_by_id[task_id],
            phase="settled",
            outcome=outcome,
            output_digest=ids.digest_of(output),
            output_bytes=len(output),
            waiting_for="",
        )
        self.emit("task.settled", task_id)

    async def task(self, task_id: str, *, actor: str) -> TaskView:
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            await self.hold.wait()
        if self.broken is not None:
            raise self.broken
        try:
            return self.tasks_by_id[task_id]
        except KeyError:
            raise NotFound(f"no task {task_id}") from None

    async def tasks(
        self, *, actor: str, phase: str = "", limit: int = 50, cursor: str = ""
    ) -> TaskPage:
        await trio.lowlevel.checkpoint()
        newest = sorted(self.tasks_by_id.values(), key=lambda task: task.task_id, reverse=True)
        wanted = [
            task
            for task in newest
            if (not phase or task.phase == phase) and (not cursor or task.task_id < cursor)
        ]
        more = len(wanted) > limit
        return TaskPage(
            tasks=tuple(wanted[:limit]), cursor=wanted[limit - 1].task_id if more else ""
        )

    async def result(self, task_id: str, *, actor: str) -> Download:
        task = await self.task(task_id, actor=actor)
        if task.phase != "settled":
            raise Refused("the task is not finished", code="not_finished")
        if task_id not in self.outputs or task.outcome == "lost":
            raise Refused("the task ended without an output", code="no_output")
        output = self.outputs[task_id]
        digest = ids.digest_of(output)
        if len(output) <= ids.INLINE_BYTES_MAX:
            return Download(digest=digest, size_bytes=len(output), inline=output)
        path = self._path(digest)
        await trio.Path(path).write_bytes(output)
        return Download(digest=digest, size_bytes=len(output), path=str(path))

    async def receipt(self, task_id: str, *, actor: str) -> bytes:
        task = await self.task(task_id, actor=actor)
        if task.phase != "settled":
            raise Refused("the task is not finished", code="not_finished")
        return b"receipt " + task_id.encode()

    async def cancel(self, task_id: str, *, actor: str, reason: str) -> TaskView:
        task = await self.task(task_id, actor=actor)
        if task.phase == "settled":
            raise Refused("the task has ended already", code="already_settled")
        self.tasks_by_id[task_id] = msgspec.structs.replace(
            task, phase="settled", outcome="cancelled", detail=reason
        )
        self.emit("task.settled", task_id)
        return self.tasks_by_id[task_id]

    # -- events ------------------------------------------------------------------------------------
    def emit(self, kind: str, task_id: str = "", **body: Any) -> None:
        """Tell watchers."""
        self.events.append(
            Event(seq=len(self.events), at_ms=self.now_ms(), kind=kind, task_id=task_id, body=body)
        )
        self.changed.set()
        self.changed = trio.Event()

    async def watch(
        self, *, actor: str, task_id: str = "", after: int = -1
    ) -> AsyncIterator[Event]:
        self.watchers += 1
        try:
            position = after + 1
            if after < 0:
                position = len(self.events)
                yield Event(
                    seq=position - 1 if position else 0,
                    at_ms=self.now_ms(),
                    kind="snapshot",
                    task_id=task_id,
                    body={"tasks": len(self.tasks_by_id)},
                )
            while True:
                changed = self.changed
                while position < len(self.events):
                    event = self.events[position]
                    position += 1
                    if not task_id or event.task_id == task_id:
                        yield event
                await changed.wait()
        finally:
            self.watchers -= 1

    # -- blobs -------------------------------------------------------------------------------------
    def _path(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        hasher = hashlib.sha256()
        size = 0
        part = self.folder / f"part-{os.urandom(4).hex()}"
        try:
            async with await trio.open_file(part, "wb") as file:
                async for chunk in chunks:
                    if self.slow_blobs is not None:
                        await self.slow_blobs.wait()
                    hasher.update(chunk)
                    size += len(chunk)
                    await file.write(chunk)
            digest = "sha256:" + hasher.hexdigest()
            os.replace(part, self._path(digest))
        finally:
            part.unlink(missing_ok=True)
        return {"digest": digest, "size_bytes": size}

    async def blob(self, digest: str) -> Download:
        path = trio.Path(self._path(digest))
        if not await path.exists():
            raise NotFound(f"no blob {digest}")
        return Download(digest=digest, size_bytes=(await path.stat()).st_size, path=str(path))

    # -- agents ------------------------------------------------------------------------------------
    async def publish(self, draft: dict[str, Any], *, module: str, script: str = "") -> AgentView:
        name, version = draft.get("name", ""), draft.get("version", "")
        if not ids.is_agent_name(name):
            raise Refused("a draft needs a name", code="bad_manifest")
        found = await self.blob(module)
        agent_id = ids.agent_id_of(DID, name)
        known = self.agents_by_id.get(agent_id)
        if known and known.version == version:
            raise Refused(f"{name} {version} is published", code="version_exists")
        self.agents_by_id[agent_id] = AgentView(
            agent_id=agent_id,
            name=name,
            version=version,
            description=draft.get("description", ""),
            publisher=DID,
            status="alive",
            capabilities=tuple(draft.get("capabilities", ())),
            module_digest=module,
            module_bytes=found.size_bytes,
            script_digest=script or None,
            limits=Limits(),
            price=Price(),
            sequence=1,
            expires_ms=self.now_ms() + 86_400_000,
            local=True,
            versions=(version,),
        )
        self.emit("agent.published", agent=agent_id)
        return self.agents_by_id[agent_id]

    async def agents(self, *, query: str = "", capability: str = "") -> list[AgentView]:
        await trio.lowlevel.checkpoint()
        return [
            agent
            for agent in self.agents_by_id.values()
            if query.lower() in f"{agent.name} {agent.description}".lower()
            and (not capability or capability in agent.capabilities)
        ]

    def _find(self, ref: str) -> AgentView:
        bare, _, version = ref.partition("@")
        for agent in self.agents_by_id.values():
            if bare in (agent.agent_id, agent.name) and version in ("", agent.version):
                if agent.status == "revoked":
                    raise Refused(f"{bare} is revoked", code="revoked")
                return agent
        raise NotFound(f"no agent {ref!r}")

    async def agent(self, ref: str) -> tuple[AgentView, bytes]:
        await trio.lowlevel.checkpoint()
        agent = self._find(ref)
        return agent, json.dumps({"name": agent.name, "signatures": []}).encode()

    async def revoke(self, ref: str, *, reason: str) -> AgentView:
        await trio.lowlevel.checkpoint()
        agent = self._find(ref)
        if not agent.local:
            raise Refused("another node published it", code="not_yours")
        revoked = msgspec.structs.replace(agent, status="revoked")
        self.agents_by_id[agent.agent_id] = revoked
        self.emit("agent.revoked", agent=agent.agent_id)
        return revoked

    # -- receipts ----------------------------------------------------------------------------------
    async def verify(self, receipt: bytes) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if not receipt.startswith(b"receipt "):
            raise WireError("these bytes are not a receipt", code="bad_receipt")
        return {"signature": True, "worker": PEER, "receipt": {"task_id": receipt[8:].decode()}}

    async def replay(self, receipt: bytes) -> dict[str, Any]:
        await self.verify(receipt)
        return {
            "signature": True,
            "output_matches": True,
            "fuel_matches": True,
            "outcome_matches": True,
            "expected": {},
            "got": {},
        }

    # -- the node ----------------------------------------------------------------------------------
    def peers(self) -> list[PeerView]:
        peer = ids.peer_id_of(bytes(range(1, 33)))
        return [
            PeerView(
                peer=peer,
                did=ids.did_of(peer),
                connected=True,
                via="direct",
                addrs=("/ip4/127.0.0.1/tcp/4001",),
                roles=("edge",),
                region="fra",
                program="zerostate-node/0.1.0",
                owns=True,
                works=True,
                relays=False,
                slots=2,
                score=0,
                heard_ms=self.now_ms(),
                work_stream="as owner",
                running=1,
            )
        ]

    async def doctor(self) -> list[Check]:
        return [*self.checks, Check(name="relay", ok=False, detail="none", hint="add one")]

    async def ready(self) -> list[Check]:
        return self.checks

    def info(self) -> dict[str, Any]:
        return {
            "peer": PEER,
            "did": DID,
            "network": "dev",
            "roles": ["edge"],
            "region": "",
            "version": "0.1.0",
            "addrs": ["/ip4/127.0.0.1/tcp/4001"],
            "data_dir": "/secret/place/of/data",
            "uptime_ms": 90_000,
        }
