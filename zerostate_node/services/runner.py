"""
One run from lease to signed receipt: admission, module and input by digest, sandbox, signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zerostate_node.errors import ConductError, NotFound, Refused, Unavailable, WireError
from zerostate_node.machines.admission import Policy, judge, price_of
from zerostate_node.ports.blobs import Blobs
from zerostate_node.ports.sandbox import Rejection, Run, RunResult, Sandbox
from zerostate_node.services.courier import Courier
from zerostate_node.units import DAY_MS, Digest, PeerId
from zerostate_node.wire import envelope, ids
from zerostate_node.wire.messages import BlobRef, Lease, Outcome, Receipt, TaskSpec

log = structlog.get_logger()

RECEIPT_TTL_MS = 3650 * DAY_MS  # a receipt stays true; this bounds what an envelope may claim
FETCH_S_MAX = 120.0
AT_HAND_MAX = 4_096  # digests remembered to be in the blob store; one that was evicted is fetched
READ_BYTES = 256 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that is over: its outcome and the signed receipt."""

    outcome: Outcome
    envelope: bytes
    output_inline: bytes | None
    finished_ms: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who signs receipts here."""

    peer: PeerId
    key: Ed25519PrivateKey
    network: str
    new_id: Callable[[], str]
    now_ms: Callable[[], int]


class Runner:
    """Makes runs of leases."""

    def __init__(self, *, signer: Signer, sandbox: Sandbox, blobs: Blobs, courier: Courier) -> None:
        self._signer = signer
        self._sandbox = sandbox
        self._blobs = blobs
        self._courier = courier
        self._at_hand: dict[str, None] = {}

    def at_hand(self, lease: Lease) -> bool:
        """Whether all that this lease's run needs is believed to be here already."""
        return all(ref.digest in self._at_hand for ref in _needs(lease))

    async def fetch(self, lease: Lease, owner: PeerId, policy: Policy) -> Finished | None:
        """Bring what a run needs; the receipt of a run that cannot be, None when it can."""
        refusal = judge(lease, policy)
        if refusal is not None:
            log.info("lease refused", task=lease.spec.task_id, code=refusal.code)
            return self.without_run(
                lease, Outcome.REFUSED, f"{refusal.code}: {refusal.reason}", owner=owner
            )
        gathered = await self._try_gather(lease, owner)
        return None if isinstance(gathered, Run) else gathered

    async def _try_gather(self, lease: Lease, owner: PeerId) -> Run | Finished:
        try:
            with trio.fail_after(FETCH_S_MAX):
                return await self._gather(lease, owner)
        except (NotFound, Unavailable, ConductError, WireError, Refused) as error:
            return self.without_run(lease, Outcome.UNFETCHABLE, str(error), owner=owner)
        except trio.TooSlowError:
            detail = f"module or input not here after {FETCH_S_MAX:.0f} s"
            return self.without_run(lease, Outcome.UNFETCHABLE, detail, owner=owner)

    async def run(
        self,
        lease: Lease,
        owner: PeerId,
        policy: Policy,
        on_log: Callable[[str], None],
    ) -> Finished:
        """Run a lease to its receipt. Cancelling kills the guest and gives nothing back."""
        refusal = judge(lease, policy)
        if refusal is not None:
            log.info("lease refused", task=lease.spec.task_id, code=refusal.code)
            return self.without_run(
                lease, Outcome.REFUSED, f"{refusal.code}: {refusal.reason}", owner=owner
            )
        started_ms = self._signer.now_ms()
        request = await self._try_gather(lease, owner)
        if isinstance(request, Finished):
            return request
        try:
            result = await self._sandbox.run(request, on_log)
        except Rejection as rejection:
            detail = f"{rejection.code}: {rejection.message}"
            return self.without_run(lease, Outcome.REFUSED, detail, owner=owner)
        except Unavailable as error:
            return self.without_run(lease, Outcome.REFUSED, str(error), owner=owner)
        output, inline = await self._keep_output(result)
        finished = self._sign(lease, owner, result, output, inline, started_ms)
        log.info(
            "run finished",
            task=lease.spec.task_id,
            fence=lease.fence,
            outcome=result.outcome.value,
            fuel=result.fuel_used,
            wall_us=result.wall_us,
            trace=lease.spec.trace,
        )
        return finished

    async def replay(self, spec: TaskSpec, hints: tuple[PeerId, ...]) -> tuple[RunResult, str]:
        """Run a spec again outside any lease; the result and its output digest."""
        lease = Lease(attempt=0, fence=1, ttl_ms=1_000, spec=spec)
        request = await self._gather(lease, *hints)
        result = await self._sandbox.run(request, None)
        output, _ = await self._keep_output(result)
        return result, output.digest

    def without_run(
        self, lease: Lease, outcome: Outcome, detail: str, *, owner: PeerId
    ) -> Finished:
        """The receipt of a lease that never ran, or was stopped: no output, no fuel."""
        nothing = RunResult(
            outcome=outcome,
            exit_code=0,
            stdout=b"",
            stdout_bytes=0,
            fuel_used=0,
            memory_peak_bytes=0,
            wall_us=0,
            detail=detail,
        )
        empty = BlobRef(digest=ids.digest_of(b""), size_bytes=0)
        return self._sign(lease, owner, nothing, empty, b"", self._signer.now_ms())

    async def _gather(self, lease: Lease, *hints: PeerId) -> Run:
        spec = lease.spec
        module = await self._bytes(spec.module, hints)
        script = await self._bytes(spec.script, hints) if spec.script else None
        stdin: bytes | Path
        if lease.input is not None or spec.input.size_bytes == 0:
            # A receipt says which input it is for: never sign for one that was not given.
            stdin = lease.input or b""
            if ids.digest_of(stdin) != spec.input.digest or len(stdin) != spec.input.size_bytes:
                raise ConductError("the lease's input does not have the digest it names")
        else:
            stdin = await self._bytes(spec.input, hints)
        return Run(
            module=Digest(spec.module.digest),
            module_path=module,
            stdin=stdin,
            args=spec.args,
            limits=spec.limits,
            seed=ids.run_seed(
                spec.module.digest,
                spec.script.digest if spec.script else "",
                spec.args,
                spec.input.digest,
            ),
            script_path=script,
            trace=spec.trace,
        )

    async def _bytes(self, ref: BlobRef, hints: tuple[PeerId, ...]) -> Path:
        """A local file with these bytes; of the size that limits were judged by."""
        path = await self._courier.path(ref, hints)
        size_bytes = path.stat().st_size
        if size_bytes != ref.size_bytes:
            raise ConductError(
                f"{ref.digest} has {size_bytes} bytes, the lease says {ref.size_bytes}",
                code="wrong_size",
            )
        if len(self._at_hand) >= AT_HAND_MAX:
            del self._at_hand[next(iter(self._at_hand))]
        self._at_hand[ref.digest] = None
        return path

    async def _keep_output(self, result: RunResult) -> tuple[BlobRef, bytes | None]:
        """A small output travels in the message; a large one becomes a blob here."""
        if isinstance(result.stdout, bytes):
            ref = BlobRef(digest=ids.digest_of(result.stdout), size_bytes=len(result.stdout))
            if len(result.stdout) <= ids.INLINE_BYTES_MAX:
                return ref, result.stdout
            return await self._blobs.put(result.stdout), None
        path = result.stdout
        try:
            ref = await self._blobs.put_stream(_chunks(path), bytes_max=result.stdout_bytes)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
        return ref, None

    def _sign(
        self,
        lease: Lease,
        owner: PeerId,
        result: RunResult,
        output: BlobRef,
        inline: bytes | None,
        started_ms: int,
    ) -> Finished:
        spec, me = lease.spec, self._signer
        finished_ms = me.now_ms()
        completed = result.outcome is Outcome.COMPLETED
        receipt = Receipt(
            task_id=spec.task_id,
            attempt=lease.attempt,
            fence=lease.fence,
            owner=owner,
            agent_id=spec.agent_id,
            agent_version=spec.agent_version,
            module=spec.module,
            script=spec.script,
            args=spec.args,
            input=spec.input,
            limits=spec.limits,
            outcome=result.outcome,
            exit_code=result.exit_code,
            output=output,
            fuel_used=result.fuel_used,
            memory_peak_bytes=result.memory_peak_bytes,
            wall_us=result.wall_us,
            started_ms=started_ms,
            finished_ms=finished_ms,
            price_ucr=price_of(
                per_call_ucr=spec.price.per_call_ucr,
                per_mfuel_ucr=spec.price.per_mfuel_ucr,
                fuel_used=result.fuel_used,
                budget_ucr=spec.budget_ucr,
                completed=completed,
            ),
            detail=result.detail[:512],
            engine=self._sandbox.engine,
        )
        data = envelope.seal(
            receipt,
            type="receipt/1",
            network=me.network,
            key=me.key,
            sender=me.peer,
            id=me.new_id(),
            now_ms=finished_ms,
            ttl_ms=RECEIPT_TTL_MS,
        )
        return Finished(
            outcome=result.outcome, envelope=data, output_inline=inline, finished_ms=finished_ms
        )


def _needs(lease: Lease) -> list[BlobRef]:
    """The blobs that a lease's run reads."""
    spec = lease.spec
    given = lease.input is not None or spec.input.size_bytes == 0
    refs = (spec.module, spec.script, None if given else spec.input)
    return [ref for ref in refs if ref is not None]


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while chunk := await file.read(READ_BYTES):
            yield chunk
