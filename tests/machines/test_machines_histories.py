"""Random histories of each machine, held to what must be true after any of them."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from machines_play import DEADLINE, T0, TTL, of
from wire_strategies import values_of

from zerostate_node.machines import claim, conduct, roster, task
from zerostate_node.machines.admission import Policy, Refusal, cut, judge, price_of
from zerostate_node.wire.messages import Lease, Limits, Outcome, RetryPolicy

WORKERS = ("bob", "carol", "mallory")
FENCES = st.integers(0, 6)
OUTCOMES = st.sampled_from(list(Outcome))
MANY = settings(max_examples=200, stateful_step_count=40, deadline=None)


class TaskHistories(RuleBasedStateMachine):
    """One task under a random policy; the clock never goes back, facts come from anyone."""

    def __init__(self) -> None:
        super().__init__()
        self.state: task.State = task.Open()
        self.now_ms = T0
        self.retry = RetryPolicy(attempts_max=2, on_guest_failure=True, backoff_ms=10)
        self.settles = 0
        self.cancelled_ms: int | None = None

    def fact(self, fact: Any) -> list[Any]:
        before = self.state
        done = task.step(before, fact, retry=self.retry, deadline_ms=DEADLINE)
        self.state = done.state
        effects = list(done.effects)
        records = [type(e).__name__.startswith("Record") for e in effects]
        assert records == sorted(records, reverse=True), "a Send… stands before a Record…"
        assert done.state.fence >= before.fence
        for lease in of(task.RecordLease, effects):
            assert lease.fence == before.fence + 1
        if isinstance(before, task.Settled):
            assert done.state == before
        self.settles += len(of(task.RecordSettle, effects))
        assert (self.settles == 1) == isinstance(self.state, task.Settled)
        written = [e for e in effects if isinstance(e, task.RecordSettle | task.RecordReopen)]
        assert all(e.fence == before.fence for e in written)
        if done.state != before and not isinstance(done.state, task.Leased):
            assert written, "an end that the ledger never hears of"
        return effects

    @rule(worker=st.sampled_from(WORKERS))
    def chosen(self, worker: str) -> None:
        self.fact(task.Chosen(worker, TTL, self.now_ms))

    @rule(worker=st.sampled_from(WORKERS), fence=FENCES)
    def renew(self, worker: str, fence: int) -> None:
        before = self.state
        (sent,) = self.fact(task.RenewAsked(worker, fence, TTL, self.now_ms))
        holds = isinstance(before, task.Leased) and (before.worker, before.fence) == (worker, fence)
        assert holds or sent.ttl_ms == 0

    @rule(worker=st.sampled_from(WORKERS), fence=FENCES, outcome=OUTCOMES)
    def receipt(self, worker: str, fence: int, outcome: Outcome) -> None:
        before = self.state
        effects = self.fact(task.ReceiptCame(worker, fence, outcome, "", self.now_ms))
        assert len(of(task.SendAck, effects)) == 1
        holds = isinstance(before, task.Leased) and (before.worker, before.fence) == (worker, fence)
        if not holds:
            assert self.state == before

    @rule(outcome=OUTCOMES)
    def the_holders_receipt(self, outcome: Outcome) -> None:
        if isinstance(self.state, task.Leased):
            fact = task.ReceiptCame(self.state.worker, self.state.fence, outcome, "", self.now_ms)
            self.fact(fact)
            assert not isinstance(self.state, task.Leased)

    @rule(outcome=OUTCOMES, off=st.sampled_from((-1, 1, 2)))
    def the_holders_receipt_under_another_fence(self, outcome: Outcome, off: int) -> None:
        before = self.state
        if isinstance(before, task.Leased):
            self.fact(task.ReceiptCame(before.worker, before.fence + off, outcome, "", self.now_ms))
            assert self.state == before

    @rule(worker=st.sampled_from(WORKERS), fence=FENCES)
    def handed_back(self, worker: str, fence: int) -> None:
        self.fact(task.HandedBack(worker, fence, self.now_ms))

    @rule(worker=st.sampled_from(WORKERS))
    def lost(self, worker: str) -> None:
        self.fact(task.WorkerLost(worker, self.now_ms))

    @rule(reason=st.sampled_from(("", "enough")))
    def cancel(self, reason: str) -> None:
        self.fact(task.CancelAsked(reason, self.now_ms))
        if self.cancelled_ms is None:
            self.cancelled_ms = self.now_ms

    @rule(passed_ms=st.sampled_from((1, 500, task.STREAM_LOST_GRACE_MS, TTL)))
    def time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.fact(task.TimePassed(self.now_ms))
        if self.now_ms >= DEADLINE:
            assert isinstance(self.state, task.Settled)

    @rule()
    def resumed(self) -> None:
        self.fact(task.Resumed(TTL, self.now_ms))
        if self.cancelled_ms is not None:
            self.cancelled_ms = self.now_ms  # a restart gives the worker a whole term

    @invariant()
    def tries_are_bounded(self) -> None:
        if isinstance(self.state, task.Open | task.Leased):
            assert len(self.state.excluded) < self.retry.attempts_max

    @invariant()
    def a_cancel_ends_in_time_and_is_never_undone(self) -> None:
        if self.cancelled_ms is None:
            return
        assert not isinstance(self.state, task.Open)
        grace_ms = max(task.CANCEL_GRACE_MS, TTL)
        if self.now_ms >= self.cancelled_ms + grace_ms:
            assert isinstance(self.state, task.Settled)


class ClaimHistories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.state: claim.State = claim.taken(TTL, 0)
        self.effects: list[Any] = []

    def fact(self, fact: Any) -> None:
        before = self.state
        done = claim.step(before, fact)
        if isinstance(before, claim.Closed):
            assert (done.state, done.effects) == (before, ())
        order = (claim.Queued, claim.Running, claim.Owing, claim.Closed)
        assert order.index(type(done.state)) >= order.index(type(before))
        self.state = done.state
        self.effects += done.effects

    @rule()
    def slot(self) -> None:
        self.fact(claim.SlotFree(self.now_ms))

    @rule(outcome=OUTCOMES)
    def ended(self, outcome: Outcome) -> None:
        self.fact(claim.RunEnded(outcome))

    @rule(passed_ms=st.sampled_from((1, 600, TTL // 3, TTL)))
    def time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.fact(claim.TimePassed(self.now_ms))

    @rule(ttl_ms=st.sampled_from((0, 1_000, TTL)))
    def renewed(self, ttl_ms: int) -> None:
        self.fact(claim.RenewedBy(ttl_ms, self.now_ms))

    @rule(reason=st.sampled_from(("", "deadline")))
    def cancel(self, reason: str) -> None:
        self.fact(claim.CancelCame(reason))

    @rule()
    def drain(self) -> None:
        self.fact(claim.Draining())

    @rule(verdict=st.sampled_from(("settled", "stale", "rejected")))
    def ack(self, verdict: str) -> None:
        self.fact(claim.AckCame(verdict))

    @rule()
    def kept(self) -> None:
        self.fact(claim.ReceiptKept())

    @invariant()
    def once_is_enough(self) -> None:
        for kind in (claim.StartRun, claim.StopRun, claim.SignReceipt, claim.HandBack):
            assert len(of(kind, self.effects)) <= 1, kind

    @invariant()
    def what_was_handed_back_never_ran(self) -> None:
        if of(claim.HandBack, self.effects):
            assert not of(claim.StartRun, self.effects)
            assert not of(claim.SignReceipt, self.effects)

    @invariant()
    def nothing_is_sent_that_was_not_signed(self) -> None:
        if of(claim.SendDone, self.effects) or isinstance(self.state, claim.Owing):
            assert of(claim.SignReceipt, self.effects)


class RosterHistories(RuleBasedStateMachine):
    """One agent version as heard from many sides, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.entry: roster.Entry = roster.Absent()
        self.revoked = False

    @rule(
        sequence=st.integers(0, 4),
        key=st.sampled_from((b"a", b"b", b"c")),
        expires_ms=st.integers(1, 5),
        revoked=st.booleans(),
    )
    def heard(self, sequence: int, key: bytes, expires_ms: int, revoked: bool) -> None:
        before = self.entry
        fact = roster.CardHeard(sequence, key, expires_ms, revoked)
        done = roster.step(before, fact)
        self.entry = done.state
        self.revoked = self.revoked or revoked
        assert (roster.Keep() in done.effects) == (done.state != before)
        assert (roster.Withdraw() in done.effects) == (
            isinstance(done.state, roster.Revoked) and not isinstance(before, roster.Revoked)
        )
        again = roster.step(done.state, fact)
        assert (again.state, again.effects) == (done.state, ()), "the same card is news twice"
        if isinstance(before, roster.Alive) and isinstance(done.state, roster.Alive):
            assert (done.state.sequence, done.state.key) >= (before.sequence, before.key)

    @rule(now_ms=st.integers(0, 6))
    def time(self, now_ms: int) -> None:
        before = self.entry
        done = roster.step(before, roster.TimePassed(now_ms))
        self.entry = done.state
        over = isinstance(before, roster.Alive) and now_ms >= before.expires_ms
        assert (roster.Drop() in done.effects) == over
        assert isinstance(done.state, roster.Absent) == (over or isinstance(before, roster.Absent))

    @invariant()
    def revocation_is_final(self) -> None:
        assert isinstance(self.entry, roster.Revoked) == self.revoked


class ConductHistories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = conduct.Conduct()
        self.now_ms = 0

    @rule(what=st.sampled_from(sorted(conduct.WEIGHTS)))
    def behaved(self, what: str) -> None:
        before = self.state
        weight = conduct.WEIGHTS[what]
        done = conduct.step(before, conduct.Behaved(weight, self.now_ms))
        self.state = done.state
        assert conduct.SCORE_MIN <= self.state.score <= conduct.SCORE_MAX
        was = conduct.score_at(before, self.now_ms)
        if done.effects:
            assert was + weight <= conduct.BAN_AT + 1
            assert self.now_ms >= before.banned_until_ms
            assert conduct.BAN_MS <= done.effects[0].for_ms <= conduct.BANS_MS_MAX
            assert self.state.bans == before.bans + 1
        elif weight == 0:
            assert conduct.score_at(self.state, self.now_ms) == was
        if weight >= 0:
            assert not done.effects or was <= conduct.BAN_AT

    @rule(passed_ms=st.sampled_from((1, 1_000, conduct.HALF_LIFE_MS, -1_000)))
    def time(self, passed_ms: int) -> None:
        self.now_ms = max(0, self.now_ms + passed_ms)

    @invariant()
    def time_heals(self) -> None:
        assert conduct.score_at(self.state, self.now_ms + 12 * conduct.HALF_LIFE_MS) == 0
        soon = conduct.score_at(self.state, self.now_ms + 1)
        assert abs(soon) <= abs(self.state.score)


TestTaskHistories = TaskHistories.TestCase
TestTaskHistories.settings = MANY
TestClaimHistories = ClaimHistories.TestCase
TestClaimHistories.settings = MANY
TestRosterHistories = RosterHistories.TestCase
TestRosterHistories.settings = MANY
TestConductHistories = ConductHistories.TestCase
TestConductHistories.settings = MANY


# -- admission -------------------------------------------------------------------------------------

LIMITS = values_of(Limits)
POLICIES = st.builds(
    Policy,
    limits_max=LIMITS,
    module_bytes_max=st.integers(0, 1 << 40),
    publishers=st.sampled_from((frozenset({"*"}), frozenset({"did:key:z6Mk"}))),
    price_floor_ucr=st.integers(0, 1 << 53),
)


@given(lease=values_of(Lease), policy=POLICIES)
@settings(max_examples=300, deadline=None)
def test_every_lease_that_can_be_read_is_judged(lease: Lease, policy: Policy) -> None:
    verdict = judge(lease, policy)
    assert verdict is None or isinstance(verdict, Refusal)


@given(limits=LIMITS, by=LIMITS)
def test_cut_limits_never_exceed_either_side(limits: Limits, by: Limits) -> None:
    got = cut(limits, by)
    for name in Limits.__struct_fields__:
        assert getattr(got, name) == min(getattr(limits, name), getattr(by, name))
    assert cut(got, by) == got == cut(by, limits)


@given(
    per_call=st.integers(0, 1 << 53),
    per_mfuel=st.integers(0, 1 << 53),
    fuel=st.integers(0, 1 << 53),
    budget=st.integers(0, 1 << 53),
    completed=st.booleans(),
)
def test_a_price_is_within_the_budget_and_nothing_for_a_failed_run(
    per_call: int, per_mfuel: int, fuel: int, budget: int, completed: bool
) -> None:
    price = price_of(
        per_call_ucr=per_call,
        per_mfuel_ucr=per_mfuel,
        fuel_used=fuel,
        budget_ucr=budget,
        completed=completed,
    )
    assert 0 <= price <= (budget if completed else 0)
