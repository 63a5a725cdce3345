"""
The front desk: what clients may ask of this node, answered from the services behind it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import NotFound, Refused, Unavailable, WireError
from zerostate_node.machines.admission import cut
from zerostate_node.machines.task import CancelAsked
from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.desk import (
    AgentView,
    AttemptView,
    Check,
    Download,
    Event,
    PeerView,
    Submit,
    Submitted,
    TaskPage,
    TaskView,
)
from zerostate_node.ports.ledger import AgentRow, Ledger, OpenTask, PublishAgent, TaskRow
from zerostate_node.ports.sandbox import Rejection, Sandbox
from zerostate_node.services.courier import Courier
from zerostate_node.services.driver import Driver, row_of
from zerostate_node.services.herald import Herald
from zerostate_node.services.hub import Hub, Lagged
from zerostate_node.services.roster import Roster
from zerostate_node.services.runner import Runner
from zerostate_node.units import DAY_MS, HOUR_MS, KIB, PeerId
from zerostate_node.wire import envelope, ids
from zerostate_node.wire.cards import Manifest, capability_of, open_card, sign_card
from zerostate_node.wire.drafts import draft_card, reissue_card
from zerostate_node.wire.messages import (
    BlobRef,
    Limits,
    Outcome,
    Receipt,
    RetryPolicy,
    TaskSpec,
)

log = structlog.get_logger()

CARD_TTL_MS = 60 * DAY_MS
CARD_RENEW_MS = CARD_TTL_MS // 2
ARGS_BYTES_MAX = 4 * KIB  # they travel in the receipt, which has 16 KiB
SNAPSHOT_TASKS = 50
DEADLINE_MS_MAX = 30 * DAY_MS
REPLAY_SLOTS = 1  # a replay waits for another, not for tasks


class FrontDesk:
    """Implements the `Desk` port."""

    def __init__(
        self,
        *,
        peer: PeerId,
        key: Ed25519PrivateKey,
        network: str,
        driver: Driver | None,
        ledger: Ledger,
        blobs: Blobs,
        sandbox: Sandbox,
        runner: Runner,
        courier: Courier,
        roster: Roster,
        herald: Herald,
        hub: Hub,
        limits_max: Limits,
        module_bytes_max: int,
        upload_bytes_max: int,
        deadline_default_ms: int,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
        info: Callable[[], dict[str, Any]],
        peers: Callable[[], list[PeerView]],
        ready: Callable[[], Sequence[Check]],
        doctor: Callable[[], Sequence[Check]],
    ) -> None:
        self._peer = peer
        self._did = ids.did_of(peer)
        self._key = key
        self._network = network
        self._driver = driver
        self._ledger = ledger
        self._blobs = blobs
        self._sandbox = sandbox
        self._runner = runner
        self._courier = courier
        self._roster = roster
        self._herald = herald
        self._hub = hub
        self._limits_max = limits_max
        self._module_bytes_max = module_bytes_max
        self._upload_bytes_max = upload_bytes_max
        self._deadline_default_ms = deadline_default_ms
        self._new_id = new_id
        self._now_ms = now_ms
        self._info = info
        self._peers = peers
        self._ready = ready
        self._doctor = doctor
        self._replays = trio.CapacityLimiter(REPLAY_SLOTS)

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

    # -- blobs -------------------------------------------------------------------------------------

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Store input or a module."""
        ref = await self._blobs.put_stream(chunks, bytes_max=self._upload_bytes_max)
        return {"digest": ref.digest, "size_bytes": ref.size_bytes}

    async def blob(self, digest: str) -> Download:
        """The bytes of a blob that is here."""
        size = await self._blobs.size(digest) if ids.is_digest(digest) else None
        if size is None:
            raise NotFound(f"no blob {digest[:80]!r} is here", code="no_such_blob")
        path = await self._blobs.path(digest)
        return Download(digest=digest, size_bytes=size, path=str(path))

    # -- agents ------------------------------------------------------------------------------------

    async def publish(self, draft: dict[str, Any], *, module: str, script: str = "") -> AgentView:
        """Validate, sign as this node, store and gossip an agent."""
        module_ref = await self._ref(module)
        script_ref = await self._ref(script) if script else None
        if module_ref.size_bytes > self._module_bytes_max:
            raise Refused(
                f"the module has {module_ref.size_bytes} bytes, "
                f"at most {self._module_bytes_max} are run here",
                code="module_too_large",
            )
        now_ms = self._now_ms()
        card = draft_card(
            draft,
            module=module_ref,
            script=script_ref,
            publisher=self._did,
            sequence=now_ms,
            now_ms=now_ms,
            ttl_ms=CARD_TTL_MS,
        )
        try:
            await self._sandbox.prepare(module_ref.digest, await self._blobs.path(module))  # type: ignore[arg-type]
        except Rejection as rejection:
            raise Refused(
                f"this module would never run: {rejection.message}",
                code=rejection.code,
                hint="protocols/guest/1 says what a module must look like",
            ) from rejection
        known = self._roster.manifests.get(
            (ids.agent_id_of(self._did, card["name"]), card["version"])
        )
        if known is not None and (known.module, known.script) == (module_ref, script_ref):
            log.info("agent published already", agent=known.agent_id, version=known.version)
            if known.status != "revoked":
                return self._agent_view(known)
        return self._agent_view(await self._issue(card))

    async def _ref(self, digest: str) -> BlobRef:
        size = await self._blobs.size(digest) if ids.is_digest(digest) else None
        if size is None:
            raise NotFound(
                f"no blob {digest[:80]!r} is here",
                code="no_such_blob",
                hint="upload it first: POST /api/v1/blobs",
            )
        return BlobRef(digest=digest, size_bytes=size)

    async def _issue(self, card: dict[str, Any], *, renewal: bool = False) -> Manifest:
        """Sign a card, make it durable, then believe and say it."""
        raw = sign_card(card, self._key)
        manifest = open_card(raw, now_ms=self._now_ms())
        row = AgentRow(
            agent_id=manifest.agent_id,
            version=manifest.version,
            sequence=manifest.sequence,
            name=manifest.name,
            publisher=manifest.publisher,
            status=manifest.status,
            card=manifest.raw,
            published_ms=self._now_ms(),
        )
        (result,) = await self._ledger.commit([PublishAgent(row=row, renewal=renewal)])
        if isinstance(result, Refused):
            raise result
        self._roster.hear_manifest(manifest.raw)
        await self._herald.say_card(manifest.raw, manifest.agent_id)
        return manifest

    async def recall_agents(self) -> None:
        """At start: believe what this node published in earlier lives."""
        for row in await self._ledger.agents(publisher=self._did):
            try:
                self._roster.hear_manifest(row.card)
            except WireError as error:
                if error.code != "expired":
                    log.error("own card unreadable", agent=row.agent_id, why=str(error))

    async def renew_cards(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reissue own cards long before they expire."""
        task_status.started()
        while True:
            now_ms = self._now_ms()
            for manifest in list(self._roster.manifests.values()):
                if (
                    manifest.publisher == self._did
                    and manifest.status != "revoked"
                    and manifest.expires_ms - now_ms < CARD_RENEW_MS
                ):
                    card = reissue_card(
                        manifest.raw,
                        sequence=max(now_ms, manifest.sequence + 1),
                        now_ms=now_ms,
                        ttl_ms=CARD_TTL_MS,
                        status=manifest.status,
                    )
                    try:
                        await self._issue(card, renewal=True)
                    except (Refused, Unavailable) as error:
                        log.warning("card not renewed", agent=manifest.agent_id, why=str(error))
            await trio.sleep(HOUR_MS / 1000)

    async def agents(self, *, query: str = "", capability: str = "") -> list[AgentView]:
        """The newest version of each agent known."""
        wanted = capability_of(capability) if capability else ""
        words = query.lower().split()
        return [
            self._agent_view(m)
            for m in self._roster.newest()
            if (not wanted or wanted in m.capabilities)
            and all(
                w in f"{m.name} {m.description} {m.publisher} {' '.join(m.capabilities)}".lower()
                for w in words
            )
        ]

    async def agent(self, ref: str) -> tuple[AgentView, bytes]:
        """An agent with its signed card."""
        manifest = self._roster.find(ref)
        return self._agent_view(manifest), manifest.raw

    async def revoke(self, ref: str, *, reason: str) -> AgentView:
        """Final: no node runs this version again."""
        manifest = self._roster.find(ref)
        if manifest.publisher != self._did:
            raise Refused(
                f"{manifest.name} belongs to {manifest.publisher}",
                code="not_yours",
                hint="only the node that published an agent can revoke it",
            )
        if manifest.status == "revoked":
            return self._agent_view(manifest)
        now_ms = self._now_ms()
        card = reissue_card(
            manifest.raw,
            sequence=max(now_ms, manifest.sequence + 1),
            now_ms=now_ms,
            ttl_ms=CARD_TTL_MS,
            status="revoked",
            reason=reason,
        )
        return self._agent_view(await self._issue(card))

    def _agent_view(self, manifest: Manifest) -> AgentView:
        return AgentView(
            agent_id=manifest.agent_id,
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            publisher=manifest.publisher,
            status=manifest.status,
            capabilities=manifest.capabilities,
            module_digest=manifest.module.digest,
            module_bytes=manifest.module.size_bytes,
            script_digest=manifest.script.digest if manifest.script else None,
            limits=manifest.limits,
            price=manifest.price,
            sequence=manifest.sequence,
            expires_ms=manifest.expires_ms,
            local=manifest.publisher == self._did,
            versions=tuple(m.version for m in self._roster.versions(manifest.agent_id)),
        )

    # -- receipts ----------------------------------------------------------------------------------

    async def verify(self, receipt: bytes) -> dict[str, Any]:
        """Check a receipt's signature alone."""
        opened = envelope.unseal(receipt, Receipt, type="receipt/1", network=None, now_ms=None)
        return {
            "signature": True,
            "worker": opened.sender,
            "worker_did": ids.did_of(opened.sender),
            "receipt": json.loads(msgspec.json.encode(opened.value)),
        }

    async def replay(self, receipt: bytes) -> dict[str, Any]:
        """Verify a receipt, then run the same work here and compare."""
        verified = await self.verify(receipt)
        opened = envelope.unseal(receipt, Receipt, type="receipt/1", network=None, now_ms=None)
        told: Receipt = opened.value
        if told.outcome not in _REPLAYABLE:
            raise Refused(
                f"a run that ended {told.outcome.value} cannot be replayed: "
                "it did not end by what the guest did",
                code="not_replayable",
            )
        spec = TaskSpec(
            task_id=told.task_id,
            agent_id=told.agent_id,
            agent_version=told.agent_version,
            module=told.module,
            script=told.script,
            args=told.args,
            input=told.input,
            limits=told.limits,
            created_ms=told.started_ms,
            deadline_ms=told.finished_ms,
        )
        publisher, _ = ids.split_agent_id(told.agent_id)
        hints = (PeerId(told.owner), opened.sender, ids.peer_of_did(publisher))
        async with self._replays:
            try:
                got, output_digest = await self._runner.replay(spec, hints)
            except Rejection as rejection:
                raise Refused(rejection.message, code=rejection.code) from rejection
        return {
            **verified,
            "output_matches": output_digest == told.output.digest,
            "fuel_matches": got.fuel_used == told.fuel_used,
            "outcome_matches": got.outcome is told.outcome,
            "expected": {
                "outcome": told.outcome.value,
                "output": told.output.digest,
                "fuel": told.fuel_used,
            },
            "got": {
                "outcome": got.outcome.value,
                "output": output_digest,
                "fuel": got.fuel_used,
            },
        }

    # -- the node ----------------------------------------------------------------------------------

    def peers(self) -> list[PeerView]:
        """Peers known, connected first."""
        return self._peers()

    async def doctor(self) -> list[Check]:
        """What an operator asks first."""
        return [*await self.ready(), *self._doctor()]

    async def ready(self) -> list[Check]:
        """Named causes; all ok means ready."""
        try:
            with trio.fail_after(5):
                await self._ledger.check()
            ledger = Check(name="ledger", ok=True, detail="a commit works")
        except (Unavailable, trio.TooSlowError) as error:
            ledger = Check(
                name="ledger",
                ok=False,
                detail=str(error) or "a commit took more than 5 s",
                hint="is the disk full or slow?",
            )
        return [ledger, *self._ready()]

    def info(self) -> dict[str, Any]:
        """Who this node is."""
        return self._info()


_REPLAYABLE = frozenset(
    {Outcome.COMPLETED, Outcome.TRAPPED, Outcome.OUT_OF_FUEL, Outcome.OUTPUT_TOO_LARGE}
)


def _request_digest(request: Submit, ref: BlobRef, manifest: Manifest) -> str:
    """What makes two requests under one idempotency key the same request."""
    return ids.digest_of(msgspec.json.encode((request, ref, manifest.agent_id)))
