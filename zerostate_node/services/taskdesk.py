"""
Tasks as clients see them: submit, look, watch, cancel, fetch the result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import trio

from zerostate_node.errors import NotFound, Refused
from zerostate_node.machines.admission import cut
from zerostate_node.machines.task import CancelAsked
from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.desk import (
    AttemptView,
    Download,
    Event,
    Submit,
    Submitted,
    TaskPage,
    TaskView,
)
from zerostate_node.ports.ledger import Ledger, OpenTask, TaskRow
from zerostate_node.services.driver import Driver
from zerostate_node.services.hub import Hub, Lagged
from zerostate_node.services.owned import row_of
from zerostate_node.services.roster import Roster
from zerostate_node.units import DAY_MS, KIB, PeerId
from zerostate_node.wire import ids
from zerostate_node.wire.cards import Manifest
from zerostate_node.wire.messages import BlobRef, Limits, RetryPolicy, TaskSpec

ARGS_BYTES_MAX = 4 * KIB  # they travel in the receipt, which has 16 KiB
SNAPSHOT_TASKS = 50
DEADLINE_MS_MAX = 30 * DAY_MS


class TaskDesk:
    """What a client may do with tasks at this node."""

    def __init__(
        self,
        *,
        peer: PeerId,
        driver: Driver | None,
        ledger: Ledger,
        blobs: Blobs,
        roster: Roster,
        hub: Hub,
        limits_max: Limits,
        deadline_default_ms: int,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._peer = peer
        self._driver = driver
        self._ledger = ledger
        self._blobs = blobs
        self._roster = roster
        self._hub = hub
        self._limits_max = limits_max
        self._deadline_default_ms = deadline_default_ms
        self._new_id = new_id
        self._now_ms = now_ms

    async def submit(
        self,
        request: Submit,
        *,
        actor: str,
        input: bytes | Path | None = None,
        key: str = "",
        trace: str = "",
    ) -> Submitted:
        """Open a task; durable when it returns. See the port for what it raises."""
        if self._driver is None:
            raise Refused(
                "this node does not own tasks",
                code="not_an_owner",
                hint="submit at a gateway or edge node, or set owner.enabled",
            )
        manifest = self._choose(request)
        ref, inline = await self._input(request, input)
        now_ms = self._now_ms()
        spec = self._spec(request, manifest, ref, now_ms, trace)
        if ref.size_bytes > spec.limits.stdin_bytes_max:
            raise Refused(
                f"the input has {ref.size_bytes} bytes, "
                f"this agent takes {spec.limits.stdin_bytes_max}",
                code="input_too_large",
                hint="send a smaller input, or raise limits.stdin_bytes_max up to the agent's",
            )
        task_id = await self._driver.submit(
            OpenTask(
                row=row_of(spec, actor, now_ms),
                input_inline=inline,
                key=key,
                request_digest=_request_digest(request, ref, manifest) if key else "",
            )
        )
        return Submitted(
            task_id=task_id,
            created=task_id == spec.task_id,
            agent_id=manifest.agent_id,
            agent_version=manifest.version,
        )

    def _choose(self, request: Submit) -> Manifest:
        if bool(request.agent) == bool(request.capability):
            raise Refused("name either an agent or a capability", code="bad_request")
        if request.capability:
            return self._roster.with_capability(request.capability)
        ref = f"{request.agent}@{request.version}" if request.version else request.agent
        manifest = self._roster.find(ref)
        if manifest.status == "revoked":
            raise Refused(
                f"{manifest.name} {manifest.version} was revoked by its publisher"
                + (f": {manifest.reason}" if manifest.reason else ""),
                code="revoked",
                hint="see `zerostate-node agent show` for its other versions",
            )
        return manifest

    async def _input(
        self, request: Submit, given: bytes | Path | None
    ) -> tuple[BlobRef, bytes | None]:
        if request.input_digest:
            if given is not None:
                raise Refused("the input is given twice", code="bad_request")
            size = await self._blobs.size(request.input_digest)
            if size is None:
                raise NotFound(
                    f"no blob {request.input_digest} is here",
                    code="no_such_blob",
                    hint="upload it first: POST /api/v1/blobs",
                )
            return BlobRef(digest=request.input_digest, size_bytes=size), None
        if isinstance(given, Path):
            given = await trio.Path(given).read_bytes()
        data = given or b""
        ref = BlobRef(digest=ids.digest_of(data), size_bytes=len(data))
        if len(data) <= ids.INLINE_BYTES_MAX:
            return ref, data
        return await self._blobs.put(data), None

    def _spec(
        self, request: Submit, manifest: Manifest, ref: BlobRef, now_ms: int, trace: str
    ) -> TaskSpec:
        limits = cut(manifest.limits, self._limits_max)
        asked = dict(request.limits)
        if request.timeout_ms is not None:
            asked["wall_ms_max"] = request.timeout_ms
        unknown = set(asked) - set(Limits.__struct_fields__)
        if unknown:
            raise Refused(
                f"unknown limit {sorted(unknown)[0]!r}",
                code="bad_request",
                hint="known: " + ", ".join(Limits.__struct_fields__),
            )
        args = (*manifest.args, *request.args)
        if sum(len(arg.encode()) for arg in args) > ARGS_BYTES_MAX:
            raise Refused(f"args: at most {ARGS_BYTES_MAX} bytes together", code="bad_request")
        deadline_ms = request.deadline_ms or self._deadline_default_ms
        if not 0 < deadline_ms <= DEADLINE_MS_MAX:
            raise Refused("deadline_ms must be 1 to 30 days", code="bad_request")
        budget_ucr = request.budget_ucr
        if budget_ucr is None:
            fuel_ucr = manifest.price.per_mfuel_ucr * limits.fuel_max // 1_000_000
            budget_ucr = manifest.price.per_call_ucr + fuel_ucr
        if budget_ucr < manifest.price.per_call_ucr:
            raise Refused(
                f"a call costs {manifest.price.per_call_ucr} micro-credits, "
                f"the budget is {budget_ucr}",
                code="budget_too_small",
            )
        try:
            wanted = msgspec.convert({**msgspec.structs.asdict(limits), **asked}, Limits)
            return msgspec.convert(
                TaskSpec(
                    task_id=self._new_id(),
                    agent_id=manifest.agent_id,
                    agent_version=manifest.version,
                    module=manifest.module,
                    script=manifest.script,
                    args=args,
                    input=ref,
                    limits=cut(wanted, limits),
                    price=manifest.price,
                    budget_ucr=budget_ucr,
                    capability=request.capability,
                    created_ms=now_ms,
                    deadline_ms=now_ms + deadline_ms,
                    retry=request.retry or RetryPolicy(),
                    trace=trace,
                ),
                TaskSpec,
                from_attributes=True,
            )
        except msgspec.ValidationError as error:
            raise Refused(f"the task does not fit: {error}", code="bad_request") from error

    async def task(self, task_id: str, *, actor: str) -> TaskView:
        """One task with its attempts."""
        row = await self._row(task_id)
        attempts = await self._ledger.attempts(task_id)
        return self._view(
            row,
            tuple(
                AttemptView(
                    attempt=a.attempt,
                    fence=a.fence,
                    worker=a.worker,
                    leased_ms=a.leased_ms,
                    ended_ms=a.ended_ms or None,
                    outcome=a.outcome.value if a.outcome else None,
                    detail=a.detail,
                )
                for a in attempts
            ),
        )

    async def tasks(
        self, *, actor: str, phase: str = "", limit: int = 50, cursor: str = ""
    ) -> TaskPage:
        """Tasks, newest first."""
        page = await self._ledger.tasks(phase=phase, limit=limit, cursor=cursor)
        return TaskPage(tasks=tuple(self._view(row) for row in page.rows), cursor=page.cursor)

    async def result(self, task_id: str, *, actor: str) -> Download:
        """The output."""
        row = await self._row(task_id)
        if row.phase != "settled":
            raise Refused(
                f"task {task_id} is {row.phase}",
                code="not_finished",
                hint=f"wait for it: zerostate-node task watch {task_id}",
            )
        if row.output is None:
            outcome = row.outcome.value if row.outcome else ""
            raise Refused(f"task {task_id} ended {outcome}: no output", code="no_output")
        inline = await self._ledger.output_inline(task_id)
        if inline is not None:
            return Download(
                digest=row.output.digest, size_bytes=row.output.size_bytes, inline=inline
            )
        path = await self._blobs.path(row.output.digest)
        return Download(digest=row.output.digest, size_bytes=row.output.size_bytes, path=str(path))

    async def receipt(self, task_id: str, *, actor: str) -> bytes:
        """The signed receipt, as it travels."""
        row = await self._row(task_id)
        if row.phase != "settled":
            raise Refused(f"task {task_id} is {row.phase}", code="not_finished")
        receipt = await self._ledger.receipt(task_id)
        if not receipt:
            raise Refused(
                f"task {task_id} was settled without a worker's receipt: {row.detail}",
                code="no_receipt",
            )
        return receipt

    async def cancel(self, task_id: str, *, actor: str, reason: str) -> TaskView:
        """Ask for the end of a task; returns once it is settled, or the worker was told."""
        row = await self._row(task_id)
        if row.phase == "settled" or self._driver is None:
            raise Refused(f"task {task_id} is settled already", code="already_settled")
        after = self._hub.seq
        self._driver.post(task_id, CancelAsked(reason[:512], self._now_ms()))
        with trio.move_on_after(8):
            async for batch in self._hub.follow(after):
                if any(e.kind == "task.settled" and e.task_id == task_id for e in batch):
                    break
        return await self.task(task_id, actor=actor)

    async def watch(
        self, *, actor: str, task_id: str = "", after: int = -1
    ) -> AsyncIterator[Event]:
        """A snapshot, then deltas."""
        if task_id:
            await self._row(task_id)
        while True:
            if after < 0 or not self._kept(after):
                after = self._hub.seq
                yield await self._snapshot(task_id, actor, after)
            try:
                async for batch in self._hub.follow(after):
                    for event in batch:
                        after = event.seq
                        if not task_id or event.task_id == task_id:
                            yield event
            except Lagged:
                after = -1

    def _kept(self, after: int) -> bool:
        try:
            self._hub.since(after)
        except Lagged:
            return False
        return True

    async def _snapshot(self, task_id: str, actor: str, seq: int) -> Event:
        if task_id:
            tasks: tuple[TaskView, ...] = (await self.task(task_id, actor=actor),)
        else:
            tasks = (await self.tasks(actor=actor, limit=SNAPSHOT_TASKS)).tasks
        return Event(
            seq=seq,
            at_ms=self._now_ms(),
            kind="snapshot",
            task_id=task_id,
            body={"tasks": [msgspec.to_builtins(t) for t in tasks]},
        )

    async def _row(self, task_id: str) -> TaskRow:
        row = await self._ledger.task(task_id) if ids.is_task_id(task_id) else None
        if row is None:
            raise NotFound(
                f"no task {task_id[:64]!r} at this node",
                code="no_such_task",
                hint="tasks are known to the node that accepted them: zerostate-node task list",
            )
        return row

    def _view(self, row: TaskRow, attempts: tuple[AttemptView, ...] = ()) -> TaskView:
        spec = row.spec
        entry = self._driver.tasks.get(spec.task_id) if self._driver else None
        return TaskView(
            task_id=spec.task_id,
            phase=row.phase,
            outcome=row.outcome.value if row.outcome else None,
            detail=row.detail,
            agent_id=spec.agent_id,
            agent_version=spec.agent_version,
            agent_name=ids.split_agent_id(spec.agent_id)[1],
            capability=spec.capability,
            owner=self._peer,
            worker=row.worker if row.phase != "open" else "",
            attempt=row.attempt,
            fence=row.fence,
            module_digest=spec.module.digest,
            input_digest=spec.input.digest,
            input_bytes=spec.input.size_bytes,
            output_digest=row.output.digest if row.output else None,
            output_bytes=row.output.size_bytes if row.output else None,
            fuel_used=row.fuel_used,
            price_ucr=row.price_ucr,
            budget_ucr=spec.budget_ucr,
            created_ms=spec.created_ms,
            updated_ms=row.updated_ms,
            deadline_ms=spec.deadline_ms,
            progress=entry.progress if entry else -1,
            waiting_for=self._driver.waiting_for(spec.task_id) if self._driver else "",
            trace=spec.trace,
            attempts=attempts,
        )


def _request_digest(request: Submit, ref: BlobRef, manifest: Manifest) -> str:
    """What makes two requests under one idempotency key the same request."""
    return ids.digest_of(msgspec.json.encode((request, ref, manifest.agent_id)))
