"""The task machine, line by line, as sentences."""

from __future__ import annotations

import pytest
from machines_play import BOB, CAROL, DEADLINE, MALLORY, T0, TTL, of, owning, play

from zerostate_node.machines.task import (
    CANCEL_GRACE_MS,
    GUEST_FAILURES,
    HANDED_BACK_PAUSE_MS_MAX,
    STREAM_LOST_GRACE_MS,
    WORKER_FAILURES,
    CancelAsked,
    Chosen,
    HandedBack,
    Leased,
    Open,
    ReceiptCame,
    RecordCancel,
    RecordLease,
    RecordReopen,
    RecordSettle,
    RenewAsked,
    Resumed,
    SendAck,
    SendCancel,
    SendLease,
    SendRenewed,
    Settled,
    TimePassed,
    WorkerLost,
)
from zerostate_node.wire.messages import Outcome, RetryPolicy

step = owning()
BOB_RUNS = Leased(1, 1, BOB, T0 + TTL)
ONCE = RetryPolicy(attempts_max=1)


def receipt(outcome: Outcome = Outcome.COMPLETED, *, fence: int = 1, by: str = BOB) -> ReceiptCame:
    return ReceiptCame(by, fence, outcome, "", T0 + 100)


# -- leases ----------------------------------------------------------------------------------------


def test_a_chosen_worker_gets_a_lease_with_the_next_fence_after_it_is_recorded() -> None:
    end, effects = play(step, Open(2, 5, 0, (CAROL,)), Chosen(BOB, TTL, T0))
    assert end == Leased(3, 6, BOB, T0 + TTL, (CAROL,))
    assert effects == [RecordLease(3, 6, BOB, T0 + TTL), SendLease(BOB, 3, 6, TTL)]


@pytest.mark.parametrize("now_ms", [DEADLINE, DEADLINE + 1])
def test_no_lease_is_granted_at_or_after_the_deadline(now_ms: int) -> None:
    assert play(step, Open(), Chosen(BOB, TTL, now_ms)) == (Open(), [])


def test_no_lease_is_granted_before_the_pause_is_over() -> None:
    paused = Open(1, 1, T0 + 10)
    assert play(step, paused, Chosen(BOB, TTL, T0 + 9)) == (paused, [])
    assert isinstance(play(step, paused, Chosen(BOB, TTL, T0 + 10))[0], Leased)


def test_a_leased_task_is_not_leased_again() -> None:
    assert play(step, BOB_RUNS, Chosen(CAROL, TTL, T0)) == (BOB_RUNS, [])


# -- renewals --------------------------------------------------------------------------------------


def test_a_renewal_moves_the_end_of_the_lease() -> None:
    end, effects = play(step, BOB_RUNS, RenewAsked(BOB, 1, TTL, T0 + 5_000))
    assert end == Leased(1, 1, BOB, T0 + 5_000 + TTL)
    assert effects == [SendRenewed(BOB, 1, TTL)]


@pytest.mark.parametrize(
    ("state", "worker", "fence"),
    [
        (BOB_RUNS, MALLORY, 1),
        (BOB_RUNS, BOB, 2),
        (Leased(2, 2, BOB, T0 + TTL), BOB, 1),
        (Leased(1, 1, BOB, T0 + TTL, (), "changed my mind"), BOB, 1),
        (Open(1, 1), BOB, 1),
        (Settled(Outcome.COMPLETED, 1, 1, BOB), BOB, 1),
    ],
)
def test_who_does_not_hold_the_lease_is_told_to_stop(
    state: Open | Leased | Settled, worker: str, fence: int
) -> None:
    end, effects = play(step, state, RenewAsked(worker, fence, TTL, T0))
    assert end == state
    assert effects == [SendRenewed(worker, fence, 0)]


# -- receipts --------------------------------------------------------------------------------------


def test_a_completed_receipt_settles_and_is_acknowledged_after_the_record() -> None:
    end, effects = play(step, BOB_RUNS, receipt())
    assert end == Settled(Outcome.COMPLETED, 1, 1, BOB)
    assert effects == [
        RecordSettle(1, BOB, Outcome.COMPLETED, "", by_receipt=True),
        SendAck(BOB, 1, "settled", ""),
    ]


def test_the_same_receipt_again_is_acknowledged_again_and_settles_nothing() -> None:
    _, effects = play(step, BOB_RUNS, receipt(), receipt(), receipt())
    assert len(of(RecordSettle, effects)) == 1
    assert of(SendAck, effects) == [SendAck(BOB, 1, "settled", "")] * 3


@pytest.mark.parametrize(
    ("state", "late"),
    [
        (Leased(2, 2, CAROL, T0 + TTL), receipt(fence=1)),
        (Leased(2, 2, BOB, T0 + TTL), receipt(fence=1)),
        (Leased(2, 2, BOB, T0 + TTL), receipt(fence=3)),
        (BOB_RUNS, receipt(by=MALLORY)),
        (Open(1, 1), receipt()),
        (Settled(Outcome.COMPLETED, 2, 2, CAROL), receipt()),
        (Settled(Outcome.COMPLETED, 1, 1, BOB), receipt(Outcome.TRAPPED)),
        (Settled(Outcome.COMPLETED, 1, 1, BOB), receipt(by=MALLORY)),
        (Settled(Outcome.TIMED_OUT, 1, 1, BOB), receipt(Outcome.CANCELLED)),
    ],
)
def test_a_receipt_that_does_not_fit_the_lease_is_stale_and_changes_nothing(
    state: Open | Leased | Settled, late: ReceiptCame
) -> None:
    end, effects = play(step, state, late)
    assert end == state
    assert [(e.worker, e.fence, e.verdict) for e in effects] == [(late.worker, late.fence, "stale")]


@pytest.mark.parametrize("outcome", sorted(GUEST_FAILURES, key=str))
def test_a_guests_failure_settles_at_once_unless_the_policy_retries_it(outcome: Outcome) -> None:
    end, _ = play(step, BOB_RUNS, receipt(outcome))
    assert end == Settled(outcome, 1, 1, BOB)
    again = owning(RetryPolicy(on_guest_failure=True, backoff_ms=500))
    end, effects = play(again, BOB_RUNS, receipt(outcome))
    assert end == Open(1, 1, T0 + 600, (BOB,))
    assert effects == [
        RecordReopen(1, outcome, "", (BOB,), T0 + 600),
        SendAck(BOB, 1, "settled", ""),
    ]


@pytest.mark.parametrize("outcome", sorted(WORKER_FAILURES, key=str))
def test_a_workers_failure_opens_the_task_for_another_worker(outcome: Outcome) -> None:
    end, effects = play(step, BOB_RUNS, receipt(outcome))
    assert end == Open(1, 1, T0 + 100, (BOB,))
    assert [type(e) for e in effects] == [RecordReopen, SendAck]


@pytest.mark.parametrize("outcome", sorted(WORKER_FAILURES, key=str))
def test_the_last_try_settles_with_how_it_failed(outcome: Outcome) -> None:
    end, effects = play(owning(ONCE), BOB_RUNS, receipt(outcome))
    assert end == Settled(outcome, 1, 1, BOB)
    assert effects[0] == RecordSettle(1, BOB, outcome, "", by_receipt=True)


def test_a_worker_that_gives_up_unasked_counts_as_lost() -> None:
    end, effects = play(step, BOB_RUNS, receipt(Outcome.CANCELLED))
    assert end == Open(1, 1, T0 + 100, (BOB,))
    assert effects[0] == RecordReopen(1, Outcome.LOST, "the worker gave it up", (BOB,), T0 + 100)


def test_the_pause_doubles_with_each_failure() -> None:
    paced = owning(RetryPolicy(attempts_max=9, backoff_ms=100))
    for failures, pause_ms in ((0, 100), (1, 200), (2, 400), (5, 3_200)):
        state = Leased(1, 1, BOB, T0 + TTL, (CAROL,) * failures)
        end, _ = play(paced, state, receipt(Outcome.LOST))
        assert end.not_before_ms == T0 + 100 + pause_ms


def test_a_failure_at_the_deadline_is_the_last_one() -> None:
    end, _ = play(step, BOB_RUNS, ReceiptCame(BOB, 1, Outcome.LOST, "disk", DEADLINE))
    assert end == Settled(Outcome.LOST, 1, 1, BOB, "disk")


# -- hand-backs, silence, broken streams -----------------------------------------------------------


def test_a_lease_handed_back_opens_the_task_without_blame_or_pause() -> None:
    end, effects = play(owning(ONCE), BOB_RUNS, HandedBack(BOB, 1, T0 + 5))
    assert end == Open(1, 1, 0, ())
    assert effects == [RecordReopen(1, Outcome.LOST, "handed back", (), 0)]


def test_a_task_that_is_only_handed_back_is_leased_ever_more_slowly() -> None:
    pauses = []
    for attempt in (3, 4, 5, 500):
        state = Leased(attempt, attempt, MALLORY, T0 + TTL)
        end, _ = play(step, state, HandedBack(MALLORY, attempt, T0))
        pauses.append(end.not_before_ms - T0 if end.not_before_ms else 0)
    assert pauses == [0, 1_000, 2_000, HANDED_BACK_PAUSE_MS_MAX]


@pytest.mark.parametrize(("worker", "fence"), [(MALLORY, 1), (BOB, 2)])
def test_nobody_hands_back_the_lease_of_another(worker: str, fence: int) -> None:
    assert play(step, BOB_RUNS, HandedBack(worker, fence, T0)) == (BOB_RUNS, [])


def test_a_silent_worker_loses_the_lease_when_its_time_is_up_and_not_before() -> None:
    assert play(step, BOB_RUNS, TimePassed(T0 + TTL - 1)) == (BOB_RUNS, [])
    end, effects = play(step, BOB_RUNS, TimePassed(T0 + TTL))
    assert end == Open(1, 1, T0 + TTL, (BOB,))
    assert effects[0].outcome is Outcome.LOST


def test_a_broken_stream_shortens_the_lease_to_the_grace() -> None:
    end, effects = play(step, BOB_RUNS, WorkerLost(BOB, T0))
    assert (end, effects) == (Leased(1, 1, BOB, T0 + STREAM_LOST_GRACE_MS), [])


def test_a_broken_stream_never_lengthens_a_lease() -> None:
    nearly_over = Leased(1, 1, BOB, T0 + 1)
    assert play(step, nearly_over, WorkerLost(BOB, T0))[0] == nearly_over


def test_the_broken_stream_of_another_worker_changes_nothing() -> None:
    assert play(step, BOB_RUNS, WorkerLost(CAROL, T0)) == (BOB_RUNS, [])


def test_a_worker_that_comes_back_within_the_grace_keeps_its_lease() -> None:
    end, effects = play(
        step,
        BOB_RUNS,
        WorkerLost(BOB, T0),
        RenewAsked(BOB, 1, TTL, T0 + STREAM_LOST_GRACE_MS - 1),
        TimePassed(T0 + STREAM_LOST_GRACE_MS + 1),
        receipt(),
    )
    assert end == Settled(Outcome.COMPLETED, 1, 1, BOB)
    assert not of(RecordReopen, effects)


def test_a_restarted_owner_gives_the_worker_a_whole_term_to_come_back() -> None:
    end, _ = play(step, BOB_RUNS, Resumed(TTL, T0 + 20_000), TimePassed(T0 + 20_001))
    assert end == Leased(1, 1, BOB, T0 + 20_000 + TTL)


# -- cancels ---------------------------------------------------------------------------------------


def test_a_cancel_of_an_open_task_ends_it_at_once() -> None:
    end, effects = play(step, Open(1, 1), CancelAsked("enough", T0))
    assert end == Settled(Outcome.CANCELLED, 1, 1, "", "enough")
    assert effects == [RecordSettle(1, "", Outcome.CANCELLED, "enough", by_receipt=False)]


def test_a_cancel_of_a_leased_task_is_recorded_and_then_sent() -> None:
    end, effects = play(step, BOB_RUNS, CancelAsked("enough", T0))
    assert end == Leased(1, 1, BOB, T0 + CANCEL_GRACE_MS, (), "enough")
    assert effects == [RecordCancel("enough"), SendCancel(BOB, 1, "enough")]


def test_a_cancel_without_a_reason_is_still_a_cancel() -> None:
    end, _ = play(step, BOB_RUNS, CancelAsked("", T0), TimePassed(T0 + CANCEL_GRACE_MS))
    assert end.outcome is Outcome.CANCELLED


def test_a_second_cancel_adds_nothing() -> None:
    cancelled, _ = play(step, BOB_RUNS, CancelAsked("enough", T0))
    assert play(step, cancelled, CancelAsked("really", T0 + 1)) == (cancelled, [])


def test_a_run_that_completes_before_the_cancel_reaches_it_is_completed() -> None:
    end, _ = play(step, BOB_RUNS, CancelAsked("enough", T0), receipt())
    assert end.outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    "fact",
    [
        receipt(Outcome.CANCELLED),
        receipt(Outcome.LOST),
        HandedBack(BOB, 1, T0 + 10),
        TimePassed(T0 + CANCEL_GRACE_MS),
    ],
)
def test_a_cancelled_task_is_not_tried_again(fact: ReceiptCame | HandedBack | TimePassed) -> None:
    end, effects = play(step, BOB_RUNS, CancelAsked("enough", T0), fact)
    assert isinstance(end, Settled)
    assert end.outcome is Outcome.CANCELLED
    assert not of(RecordReopen, effects)


# -- the deadline ----------------------------------------------------------------------------------


def test_an_open_task_times_out_at_its_deadline() -> None:
    assert isinstance(play(step, Open(), TimePassed(DEADLINE - 1))[0], Open)
    end, effects = play(step, Open(1, 1), TimePassed(DEADLINE))
    assert end.outcome is Outcome.TIMED_OUT
    assert not effects[0].by_receipt


def test_a_running_task_times_out_at_its_deadline_and_its_worker_is_stopped() -> None:
    running = Leased(1, 1, BOB, DEADLINE + TTL)
    end, effects = play(step, running, TimePassed(DEADLINE))
    assert end.outcome is Outcome.TIMED_OUT
    assert [type(e) for e in effects] == [RecordSettle, SendCancel]


def test_nothing_moves_a_settled_task() -> None:
    end = Settled(Outcome.COMPLETED, 1, 1, BOB)
    for fact in (
        Chosen(CAROL, TTL, T0),
        HandedBack(BOB, 1, T0),
        WorkerLost(BOB, T0),
        CancelAsked("late", T0),
        TimePassed(DEADLINE),
        Resumed(TTL, T0),
    ):
        assert play(step, end, fact) == (end, [])


def test_an_open_task_ignores_what_only_concerns_leases() -> None:
    for fact in (HandedBack(BOB, 1, T0), WorkerLost(BOB, T0), Resumed(TTL, T0), TimePassed(T0)):
        assert play(step, Open(1, 1), fact) == (Open(1, 1), [])
