"""
What becomes of a task: the machine that its owner runs, one per task.

Theory of operation. A task is `Open` (nobody runs it), `Leased` (one worker may run it, until a
time) or `Settled` (for ever). Each lease carries a fence one higher than the last; whatever a
worker says under another fence changes nothing. Time comes in with the facts, in ms of the owner's
clock. Facts may repeat, come late, or never come; a pair of state and fact that is not listed
leaves the state as it is.

Order of effects matters: the `Record…` ones are durable before any `Send…` one is performed.
"""

from __future__ import annotations

import dataclasses

from zerostate_node.machines.step import Step
from zerostate_node.wire.messages import Outcome, RetryPolicy

STREAM_LOST_GRACE_MS = 3_000  # a worker whose stream broke has this long to come back
CANCEL_GRACE_MS = 5_000  # ... and this long to answer a cancel with its receipt
HANDED_BACK_PAUSE_MS = 1_000  # per lease beyond the tries allowed, when leases are only handed back
HANDED_BACK_PAUSE_MS_MAX = 10_000

GUEST_FAILURES = frozenset(
    {
        Outcome.TRAPPED,
        Outcome.OUT_OF_FUEL,
        Outcome.OUT_OF_MEMORY,
        Outcome.TIMED_OUT,
        Outcome.OUTPUT_TOO_LARGE,
    }
)
WORKER_FAILURES = frozenset({Outcome.REFUSED, Outcome.UNFETCHABLE, Outcome.LOST})

# -- states ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Open:
    """Waiting for a worker. `excluded` names one worker per failure so far, in order."""

    attempt: int = 0
    fence: int = 0
    not_before_ms: int = 0
    excluded: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Leased:
    """
    `worker` may run it until `until_ms`; `cancel` is why it should stop, "" if it should not.

    No renewal goes beyond `over_ms`; 0 where there is no such bound.
    """

    attempt: int
    fence: int
    worker: str
    until_ms: int
    excluded: tuple[str, ...] = ()
    cancel: str = ""
    over_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """The end. Nothing changes it."""

    outcome: Outcome
    attempt: int
    fence: int
    worker: str = ""
    detail: str = ""


State = Open | Leased | Settled

# -- facts -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """The dispatcher picked a claiming worker for this task; `most_ms` is for how long in all."""

    worker: str
    ttl_ms: int
    now_ms: int
    most_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class RenewAsked:
    """A worker says that it still runs."""

    worker: str
    fence: int
    ttl_ms: int
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptCame:
    """A receipt whose signature and contents fit the task (checked before it becomes a fact)."""

    worker: str
    fence: int
    outcome: Outcome
    detail: str
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class HandedBack:
    """The worker gives the lease back before it started: no failure."""

    worker: str
    fence: int
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker's stream broke."""

    worker: str
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class CancelAsked:
    """Whoever submitted it wants it to end."""

    reason: str
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class TimePassed:
    """It is `now_ms`."""

    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Resumed:
    """The owner restarted and read the task from its ledger."""

    ttl_ms: int
    now_ms: int
    most_ms: int = 0


Fact = (
    Chosen | RenewAsked | ReceiptCame | HandedBack | WorkerLost | CancelAsked | TimePassed | Resumed
)

# -- effects ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class RecordLease:
    """Write the lease to the ledger."""

    attempt: int
    fence: int
    worker: str
    until_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class RecordReopen:
    """Write that this attempt ended so, and that the task is open again."""

    fence: int
    outcome: Outcome
    detail: str
    excluded: tuple[str, ...]
    not_before_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class RecordSettle:
    """Write the end; `by_receipt` says whether a worker's receipt is what settles it."""

    fence: int
    worker: str
    outcome: Outcome
    detail: str
    by_receipt: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RecordCancel:
    """Write that a cancel was asked for."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class SendLease:
    """Give the worker its lease."""

    worker: str
    attempt: int
    fence: int
    ttl_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class SendRenewed:
    """Tell a worker how much longer it has; 0 = stop."""

    worker: str
    fence: int
    ttl_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class SendAck:
    """Answer a receipt: settled | stale | rejected."""

    worker: str
    fence: int
    verdict: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell the worker to stop."""

    worker: str
    fence: int
    reason: str


Effect = (
    RecordLease
    | RecordReopen
    | RecordSettle
    | RecordCancel
    | SendLease
    | SendRenewed
    | SendAck
    | SendCancel
)
TaskStep = Step[State, Effect]


def step(state: State, fact: Fact, *, retry: RetryPolicy, deadline_ms: int) -> TaskStep:
    """
    The next state of a task and what to do about it.

    Args:
        retry: the spec's policy.
        deadline_ms: when the task ends whatever happens, ms of the owner's clock.
    """
    match state, fact:
        case Open(attempt, fence, not_before_ms, excluded), Chosen(worker, ttl_ms, now_ms, most_ms):
            if now_ms < not_before_ms or now_ms >= deadline_ms:
                return Step(state)
            until_ms = now_ms + ttl_ms
            return Step(
                Leased(
                    attempt + 1,
                    fence + 1,
                    worker,
                    until_ms,
                    excluded,
                    over_ms=now_ms + most_ms if most_ms else 0,
                ),
                (
                    RecordLease(attempt + 1, fence + 1, worker, until_ms),
                    SendLease(worker, attempt + 1, fence + 1, ttl_ms),
                ),
            )

        case Leased(), RenewAsked(worker, fence, ttl_ms, now_ms):
            if (worker, fence) != (state.worker, state.fence) or state.cancel:
                return Step(state, (SendRenewed(worker, fence, 0),))
            # One that renews for ever and never ends would have the task to its deadline.
            until_ms = min(now_ms + ttl_ms, state.over_ms or now_ms + ttl_ms)
            return Step(
                dataclasses.replace(state, until_ms=until_ms),
                (SendRenewed(worker, fence, max(0, until_ms - now_ms)),),
            )
        case _, RenewAsked(worker, fence, _, _):
            return Step(state, (SendRenewed(worker, fence, 0),))

        case Leased(), ReceiptCame(worker, fence, outcome, detail, now_ms) if (
            worker == state.worker and fence == state.fence
        ):
            return _receipt(state, outcome, detail, now_ms, retry, deadline_ms)
        case Settled(outcome=outcome, fence=fence, worker=worker), ReceiptCame() if (
            worker == fact.worker and fence == fact.fence and outcome == fact.outcome
        ):
            # The same receipt again: our acknowledgement was lost.
            return Step(state, (SendAck(fact.worker, fact.fence, "settled", ""),))
        case _, ReceiptCame(worker, fence, _, _, _):
            reason = f"the current fence is {state.fence}, this receipt has {fence}"
            return Step(state, (SendAck(worker, fence, "stale", reason),))

        case Leased(), HandedBack(worker, fence, now_ms) if (
            worker == state.worker and fence == state.fence
        ):
            return _end_attempt(
                state, Outcome.LOST, "handed back", now_ms, retry, deadline_ms, failed=False
            )

        case Leased(), WorkerLost(worker, now_ms) if worker == state.worker:
            until_ms = min(state.until_ms, now_ms + STREAM_LOST_GRACE_MS)
            return Step(dataclasses.replace(state, until_ms=until_ms))

        case Open(attempt, fence, _, _), CancelAsked(reason, _):
            return _settle(attempt, fence, "", Outcome.CANCELLED, reason)
        case Leased(), CancelAsked(reason, now_ms) if not state.cancel:
            until_ms = min(state.until_ms, now_ms + CANCEL_GRACE_MS)
            return Step(
                dataclasses.replace(state, cancel=reason or "cancelled", until_ms=until_ms),
                (RecordCancel(reason), SendCancel(state.worker, state.fence, reason)),
            )

        case Open(attempt, fence, _, _), TimePassed(now_ms) if now_ms >= deadline_ms:
            detail = "the deadline passed before any worker finished it"
            return _settle(attempt, fence, "", Outcome.TIMED_OUT, detail)
        case Leased(), TimePassed(now_ms) if now_ms >= deadline_ms:
            settled = _settle(
                state.attempt,
                state.fence,
                state.worker,
                Outcome.TIMED_OUT,
                "the deadline passed while it ran",
            )
            stop = SendCancel(state.worker, state.fence, "deadline")
            return Step(settled.state, (*settled.effects, stop))
        case Leased(), TimePassed(now_ms) if now_ms >= state.until_ms:
            overran = 0 < state.over_ms <= now_ms
            why = "the worker did not end it in time" if overran else "the worker went silent"
            return _end_attempt(state, Outcome.LOST, why, now_ms, retry, deadline_ms)

        case Leased(), Resumed(ttl_ms, now_ms, most_ms):
            # The worker could not renew while we were away: it gets a whole term to come back.
            over_ms = now_ms + most_ms if most_ms else 0
            return Step(dataclasses.replace(state, until_ms=now_ms + ttl_ms, over_ms=over_ms))

        case _:
            return Step(state)


def _receipt(
    state: Leased,
    outcome: Outcome,
    detail: str,
    now_ms: int,
    retry: RetryPolicy,
    deadline_ms: int,
) -> TaskStep:
    ack = SendAck(state.worker, state.fence, "settled", "")
    again = outcome in WORKER_FAILURES or (outcome in GUEST_FAILURES and retry.on_guest_failure)
    if outcome is Outcome.CANCELLED and not state.cancel:
        again = True  # nobody asked: the worker gave up on its own
        outcome = Outcome.LOST
        detail = detail or "the worker gave it up"
    if again:
        ended = _end_attempt(state, outcome, detail, now_ms, retry, deadline_ms, by_receipt=True)
    else:
        ended = _settle(state.attempt, state.fence, state.worker, outcome, detail, by_receipt=True)
    return Step(ended.state, (*ended.effects, ack))


def _end_attempt(
    state: Leased,
    outcome: Outcome,
    detail: str,
    now_ms: int,
    retry: RetryPolicy,
    deadline_ms: int,
    *,
    failed: bool = True,
    by_receipt: bool = False,
) -> TaskStep:
    """The attempt is over without a result: open again, or settled where tries are used up."""
    if state.cancel:
        return _settle(
            state.attempt,
            state.fence,
            state.worker,
            Outcome.CANCELLED,
            state.cancel,
            by_receipt=by_receipt,
        )
    excluded = (*state.excluded, state.worker) if failed else state.excluded
    if len(excluded) >= retry.attempts_max or now_ms >= deadline_ms:
        return _settle(
            state.attempt, state.fence, state.worker, outcome, detail, by_receipt=by_receipt
        )
    if failed:
        not_before_ms = now_ms + retry.backoff_ms * (1 << max(0, len(excluded) - 1))
    else:
        # Nobody's failure, but a worker that only ever hands back must not keep the ledger busy.
        pause_ms = HANDED_BACK_PAUSE_MS * (state.attempt - retry.attempts_max)
        not_before_ms = now_ms + min(pause_ms, HANDED_BACK_PAUSE_MS_MAX) if pause_ms > 0 else 0
    return Step(
        Open(state.attempt, state.fence, not_before_ms, excluded),
        (RecordReopen(state.fence, outcome, detail, excluded, not_before_ms),),
    )


def _settle(
    attempt: int,
    fence: int,
    worker: str,
    outcome: Outcome,
    detail: str,
    *,
    by_receipt: bool = False,
) -> TaskStep:
    return Step(
        Settled(outcome, attempt, fence, worker, detail),
        (RecordSettle(fence, worker, outcome, detail, by_receipt),),
    )
