"""
What becomes of a lease: the machine that a worker runs, one per lease that it holds.

Theory of operation. A lease is `Queued` until a slot is free, `Running` until the guest ends,
`Owing` from the signed receipt until the owner answers it, then `Closed`. A broken stream stops
nothing: the run goes on and the receipt waits, since an owner that restarts still knows the fence.
Only the owner's word (a renewal of 0, a cancel) or the node's own drain stops a run.
"""

from __future__ import annotations

import dataclasses

from zerostate_node.machines.step import Step
from zerostate_node.wire.messages import Outcome

RENEWALS_PER_TERM = 3  # two may be lost before a lease lapses

# -- states ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Queued:
    """Waiting for a slot. Times are ms of the worker's monotonic clock."""

    until_ms: int
    renew_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """The guest runs; `stopping` is why it was told to stop, "" if it was not."""

    until_ms: int
    renew_ms: int
    stopping: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Owing:
    """The receipt is signed and journaled; the owner has not answered yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """Nothing is left to do. `why`: settled | stale | rejected | handed_back | lost."""

    why: str


State = Queued | Running | Owing | Closed

# -- facts -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class SlotFree:
    """A slot of the sandbox is free for this lease."""

    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class RunEnded:
    """The guest is done, one way or another."""

    outcome: Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class TimePassed:
    """It is `now_ms`."""

    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class RenewedBy:
    """The owner gave `ttl_ms` more; 0 = the lease is not ours any more."""

    ttl_ms: int
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class CancelCame:
    """The owner wants the run to end."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Draining:
    """This node is shutting down: what has not started goes back."""


@dataclasses.dataclass(frozen=True, slots=True)
class AckCame:
    """The owner answered the receipt."""

    verdict: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptKept:
    """The receipt is in the journal."""


Fact = SlotFree | RunEnded | TimePassed | RenewedBy | CancelCame | Draining | AckCame | ReceiptKept

# -- effects ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class StartRun:
    """Run the guest in the slot."""


@dataclasses.dataclass(frozen=True, slots=True)
class StopRun:
    """Kill the guest."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class SignReceipt:
    """Sign and journal a receipt with this outcome."""

    outcome: Outcome
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class SendDone:
    """Send the journaled receipt."""


@dataclasses.dataclass(frozen=True, slots=True)
class SendRenew:
    """Ask for more time."""


@dataclasses.dataclass(frozen=True, slots=True)
class HandBack:
    """Tell the owner that this lease did not start."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForgetReceipt:
    """The journal may forget it."""

    verdict: str


Effect = StartRun | StopRun | SignReceipt | SendDone | SendRenew | HandBack | ForgetReceipt
ClaimStep = Step[State, Effect]


def taken(ttl_ms: int, now_ms: int) -> Queued:
    """The first state of a lease that was just received."""
    return Queued(now_ms + ttl_ms, now_ms + ttl_ms // RENEWALS_PER_TERM)


def step(state: State, fact: Fact) -> ClaimStep:
    """The next state of a lease held here, and what to do about it."""
    match state, fact:
        case Queued(until_ms, renew_ms), SlotFree(now_ms):
            if now_ms >= until_ms:
                return Step(Closed("lost"))
            return Step(Running(until_ms, renew_ms), (StartRun(),))
        case Queued(), CancelCame(reason):
            return Step(Owing(), (SignReceipt(Outcome.CANCELLED, reason),))
        case Queued(), Draining():
            return Step(Closed("handed_back"), (HandBack(),))
        case Queued(until_ms, _), TimePassed(now_ms) if now_ms >= until_ms:
            return Step(Closed("lost"))
        case Queued(), RenewedBy(0, _):
            return Step(Closed("lost"))

        case Running(stopping=""), CancelCame(reason):
            return Step(
                dataclasses.replace(state, stopping=reason or "cancelled"),
                (StopRun(reason or "cancelled"),),
            )
        case Running(stopping=""), RenewedBy(0, _):
            return Step(dataclasses.replace(state, stopping="lease lost"), (StopRun("lease lost"),))
        case Running(stopping="lease lost"), RunEnded():
            return Step(Closed("lost"))
        case Running(stopping=stopping), RunEnded(outcome):
            detail = stopping if outcome is Outcome.CANCELLED else ""
            return Step(Owing(), (SignReceipt(outcome, detail),))

        case Queued() | Running(), TimePassed(now_ms) if now_ms >= state.renew_ms:
            # Ask again soon: this one may be lost with its stream.
            pause_ms = max(500, (state.until_ms - state.renew_ms) // RENEWALS_PER_TERM)
            return Step(dataclasses.replace(state, renew_ms=now_ms + pause_ms), (SendRenew(),))
        case Queued() | Running(), RenewedBy(ttl_ms, now_ms) if ttl_ms > 0:
            return Step(
                dataclasses.replace(
                    state,
                    until_ms=now_ms + ttl_ms,
                    renew_ms=now_ms + ttl_ms // RENEWALS_PER_TERM,
                )
            )

        case Owing(), ReceiptKept():
            return Step(state, (SendDone(),))
        case Owing(), AckCame(verdict):
            return Step(Closed(verdict), (ForgetReceipt(verdict),))

        case _:
            return Step(state)


PREFETCH_TARGET_MS = 60  # work that waits at the worker so that a slot never waits for the network
CREDITS_MAX = 512


def credits_wanted(*, slots: int, held: int, run_ms_mean: float, draining: bool) -> int:
    """
    How many more leases to ask for.

    Short runs are prefetched, so that slots stay busy over a round trip; long ones hardly are, so
    that a task never queues behind another while a neighbour is idle.

    Args:
        slots: runs at once, count.
        held: leases queued or running now, count.
        run_ms_mean: how long a run takes here, recently, ms.
        draining: the node is shutting down.
    """
    if draining or slots <= 0:
        return 0
    deep = int(slots * PREFETCH_TARGET_MS / max(run_ms_mean, 0.25))
    target = slots + min(max(deep, 0), CREDITS_MAX - slots)
    return max(0, target - held)
