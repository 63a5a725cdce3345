"""
Receipts, checked: the signature alone, or the same work done again and compared.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import trio

from zerostate_node.errors import Refused
from zerostate_node.ports.sandbox import Rejection
from zerostate_node.services.runner import Runner
from zerostate_node.units import PeerId
from zerostate_node.wire import envelope, ids
from zerostate_node.wire.messages import Outcome, Receipt, TaskSpec

REPLAY_SLOTS = 1  # a replay waits for another, not for tasks

# How the guest itself can end a run: clocks and neighbours have no part in these.
_REPLAYABLE = frozenset(
    {Outcome.COMPLETED, Outcome.TRAPPED, Outcome.OUT_OF_FUEL, Outcome.OUTPUT_TOO_LARGE}
)


class Witness:
    """Says whether a receipt is true."""

    def __init__(self, *, runner: Runner) -> None:
        self._runner = runner
        self._replays = trio.CapacityLimiter(REPLAY_SLOTS)

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
