"""The claim machine, line by line, as sentences."""

from __future__ import annotations

import pytest
from machines_play import TTL, of, play

from zerostate_node.machines.claim import (
    CREDITS_MAX,
    AckCame,
    CancelCame,
    Closed,
    Draining,
    ForgetReceipt,
    HandBack,
    Owing,
    Queued,
    ReceiptKept,
    RenewedBy,
    RunEnded,
    Running,
    SendDone,
    SendRenew,
    SignReceipt,
    SlotFree,
    StartRun,
    StopRun,
    TimePassed,
    credits_wanted,
    step,
    taken,
)
from zerostate_node.wire.messages import Outcome

OK = RunEnded(Outcome.COMPLETED)
FRESH = taken(TTL, 0)
RUNS = Running(TTL, TTL // 3)


def test_a_lease_is_renewed_first_after_a_third_of_its_term() -> None:
    assert Queued(TTL, TTL // 3) == FRESH
    assert play(step, FRESH, TimePassed(TTL // 3 - 1)) == (FRESH, [])
    end, effects = play(step, FRESH, TimePassed(TTL // 3))
    assert effects == [SendRenew()]
    assert end.renew_ms > TTL // 3


def test_a_run_goes_from_slot_to_acknowledged_receipt() -> None:
    end, effects = play(step, FRESH, SlotFree(1), OK, ReceiptKept(), AckCame("settled"))
    assert end == Closed("settled")
    assert effects == [
        StartRun(),
        SignReceipt(Outcome.COMPLETED, ""),
        SendDone(),
        ForgetReceipt("settled"),
    ]


def test_a_receipt_is_signed_once_however_often_the_run_is_reported() -> None:
    _, effects = play(step, FRESH, SlotFree(1), OK, OK, ReceiptKept(), OK)
    assert len(of(SignReceipt, effects)) == 1


def test_a_lease_that_ran_out_in_the_queue_is_not_started() -> None:
    assert play(step, FRESH, SlotFree(TTL)) == (Closed("lost"), [])
    assert play(step, FRESH, TimePassed(TTL)) == (Closed("lost"), [])
    assert play(step, FRESH, RenewedBy(0, 1)) == (Closed("lost"), [])


def test_a_cancel_in_the_queue_is_answered_with_a_receipt() -> None:
    end, effects = play(step, FRESH, CancelCame("enough"))
    assert (end, effects) == (Owing(), [SignReceipt(Outcome.CANCELLED, "enough")])


def test_draining_hands_back_what_waits_and_lets_run_what_runs() -> None:
    assert play(step, FRESH, Draining()) == (Closed("handed_back"), [HandBack()])
    assert play(step, RUNS, Draining()) == (RUNS, [])


def test_a_cancelled_run_is_stopped_once_and_says_why() -> None:
    end, effects = play(
        step, RUNS, CancelCame("enough"), CancelCame("again"), RunEnded(Outcome.CANCELLED)
    )
    assert end == Owing()
    assert effects == [StopRun("enough"), SignReceipt(Outcome.CANCELLED, "enough")]


def test_a_cancel_without_a_reason_stops_the_run() -> None:
    assert play(step, RUNS, CancelCame(""))[1] == [StopRun("cancelled")]


def test_a_run_that_ends_before_it_is_stopped_says_how_it_ended() -> None:
    _, effects = play(step, RUNS, CancelCame("enough"), OK)
    assert effects[-1] == SignReceipt(Outcome.COMPLETED, "")


def test_a_run_whose_lease_is_anothers_is_stopped_and_signs_nothing() -> None:
    end, effects = play(step, RUNS, RenewedBy(0, 1), CancelCame("late"), OK)
    assert (end, effects) == (Closed("lost"), [StopRun("lease lost")])


def test_a_run_outlives_its_term_when_the_owner_does_not_answer() -> None:
    end, effects = play(step, RUNS, TimePassed(10 * TTL), OK)
    assert end == Owing()
    assert effects == [SendRenew(), SignReceipt(Outcome.COMPLETED, "")]


@pytest.mark.parametrize("state", [FRESH, RUNS])
def test_a_renewal_moves_the_term(state: Queued | Running) -> None:
    end, effects = play(step, state, RenewedBy(TTL, 1_000))
    assert (end.until_ms, end.renew_ms, effects) == (1_000 + TTL, 1_000 + TTL // 3, [])


def test_renewals_that_get_no_answer_are_asked_for_again_but_not_in_a_hurry() -> None:
    asked = 0
    state = RUNS
    for now_ms in range(0, TTL, 100):
        state, effects = play(step, state, TimePassed(now_ms))
        asked += len(effects)
    assert 2 <= asked <= 20


@pytest.mark.parametrize("verdict", ["settled", "stale", "rejected"])
def test_whatever_the_owner_answers_the_receipt_is_done_with(verdict: str) -> None:
    assert play(step, Owing(), AckCame(verdict)) == (Closed(verdict), [ForgetReceipt(verdict)])


def test_an_answer_to_a_receipt_that_was_not_sent_changes_nothing() -> None:
    for state in (FRESH, RUNS):
        assert play(step, state, AckCame("settled"), ReceiptKept()) == (state, [])


def test_short_runs_are_prefetched_and_long_ones_are_not() -> None:
    long = credits_wanted(slots=4, held=0, run_ms_mean=1_000, draining=False)
    short = credits_wanted(slots=4, held=0, run_ms_mean=1, draining=False)
    assert (long, short) == (4, 4 + 240)
    assert credits_wanted(slots=4, held=0, run_ms_mean=0.0, draining=False) == CREDITS_MAX


def test_a_worker_that_is_full_or_leaves_or_has_no_slots_asks_for_nothing() -> None:
    assert credits_wanted(slots=4, held=9, run_ms_mean=1_000, draining=False) == 0
    assert credits_wanted(slots=4, held=0, run_ms_mean=1, draining=True) == 0
    assert credits_wanted(slots=0, held=0, run_ms_mean=1, draining=False) == 0
