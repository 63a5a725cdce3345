"""The owner's loop over a real ledger: group commit, what is promised, restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from ledger_samples import lease as lease_write
from machines_owning import T0, TTL, Clock, House, house

from zerostate_node.errors import Refused, Unavailable
from zerostate_node.ledger.sqlite import SqliteLedger
from zerostate_node.machines import task as machine
from zerostate_node.services import driver as driver_module
from zerostate_node.wire.messages import Outcome, RetryPolicy

DEADLINE_MS = 600_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


async def submit_many(here: House, count: int) -> list[str]:
    ids: list[str] = []

    async def one(number: int) -> None:
        ids.append(await here.submit(number, deadline_ms=T0 + DEADLINE_MS))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return ids


# -- submissions -----------------------------------------------------------------------------------


async def test_many_submissions_share_few_commits(path: Path) -> None:
    async with house(path) as here:
        ids = await submit_many(here, 300)
        assert len(set(ids)) == 300
        assert sum(here.ledger.commits) == 300
        assert len(here.ledger.commits) < 20
        assert len(await here.ledger.inner.live()) == 300


async def test_sixty_four_submissions_with_one_key_open_one_task_and_cost_no_credit(
    path: Path,
) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=200)
        ids: list[str] = []

        async def one(number: int) -> None:
            opening = here.opening(number, key="k", digest="d", deadline_ms=T0 + DEADLINE_MS)
            ids.append(await here.driver.submit(opening))

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(one, number)
        await bob.leased()
        assert len(ids) == 64
        assert len(set(ids)) == 1
        assert [lease.spec.task_id for lease in bob.leases] == ids[:1]
        assert len(here.driver.tasks) == 1
        assert (bob.claimer.credits, bob.claimer.in_flight, bob.claimer.unsent) == (199, 1, 0)


async def test_a_key_used_for_another_request_is_refused(path: Path) -> None:
    async with house(path) as here:
        await here.driver.submit(here.opening(1, key="k", digest="one"))
        with pytest.raises(Refused) as caught:
            await here.driver.submit(here.opening(2, key="k", digest="two"))
        assert caught.value.code == "idempotency_conflict"
        assert len(here.driver.tasks) == 1


async def test_beyond_the_most_open_tasks_submissions_are_asked_to_wait(path: Path) -> None:
    async with house(path, tasks_open_max=2) as here:
        await submit_many(here, 2)
        with pytest.raises(Unavailable) as caught:
            await here.submit()
        assert (caught.value.code, caught.value.retry_after_s) == ("too_many_tasks", 5)


async def test_args_that_no_receipt_could_carry_are_refused(path: Path) -> None:
    async with house(path) as here:
        with pytest.raises(Refused) as caught:
            await here.submit(args=("x" * 512,) * 9)
        assert caught.value.code == "bad_request"


# -- leases and receipts ---------------------------------------------------------------------------


async def test_a_task_goes_from_submission_to_settled(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit()
        (lease,) = await bob.leased()
        assert (lease.spec.task_id, lease.attempt, lease.fence) == (task_id, 1, 1)
        assert lease.input_inline == b"input"
        here.receipt(lease, "bob")
        await bob.until(lambda it: bool(it.of("ack")))
        assert bob.of("ack") == [("ack", task_id, 1, "settled")]
        row = await here.ledger.inner.task(task_id)
        assert row is not None
        assert (row.phase, row.outcome, row.worker) == ("settled", Outcome.COMPLETED, "bob")
        assert await here.ledger.inner.receipt(task_id) == b"signed by bob"
        await here.told("task.settled")
        assert here.driver.tasks == {}
        assert here.conduct == [("bob", "completed")]
        assert bob.claimer.in_flight == 0


async def test_a_receipt_that_comes_again_after_the_end_is_acknowledged_again(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit()
        (lease,) = await bob.leased()
        here.receipt(lease, "bob")
        await here.told("task.settled")
        here.receipt(lease, "bob")
        await bob.until(lambda it: len(it.of("ack")) == 2)
        assert bob.of("ack")[1] == ("ack", task_id, 1, "settled")
        assert here.driver.chronicle.settled == {"completed": 1}


async def test_a_stale_fence_is_refused_after_the_lease_passes_on(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit(deadline_ms=T0 + DEADLINE_MS)
        (old,) = await bob.leased()
        carol = here.worker("carol", credits=1)
        here.clock.now_ms += TTL
        (new,) = await carol.leased()
        assert (new.fence, new.attempt) == (2, 2)
        here.receipt(old, "bob")
        await bob.until(lambda it: bool(it.of("ack")))
        assert bob.of("ack") == [("ack", task_id, 1, "stale")]
        here.receipt(new, "carol")
        await here.told("task.settled", worker="carol")
        assert here.conduct == [("bob", "lost"), ("carol", "completed")]
        assert len(await here.told("task.retry", worker="bob")) == 1


async def test_a_lease_handed_back_blames_nobody(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit()
        (lease,) = await bob.leased()
        here.receipt(lease, "bob", Outcome.REFUSED)
        carol = here.worker("carol", credits=1)
        (second,) = await carol.leased()
        here.driver.post(task_id, machine.HandedBack("carol", second.fence, here.clock()))
        dave = here.worker("dave", credits=1)
        await dave.leased()
        assert here.conduct == [("bob", "refused")]


async def test_a_claim_that_crosses_a_grant_does_not_count_it_twice(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=3)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(here.submit, number)
            await trio.testing.wait_all_tasks_blocked()
        await bob.leased(3)
        assert (bob.claimer.credits, bob.claimer.unsent) == (0, 0)


async def test_facts_about_tasks_that_never_were_change_nothing(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob")
        nobody = "01K73ZBZ00ABCDEFGHJKMNPQRS"
        for fact in (
            machine.RenewAsked("bob", 1, TTL, T0),
            machine.ReceiptCame("bob", 1, Outcome.COMPLETED, "", T0),
            machine.HandedBack("bob", 1, T0),
            machine.CancelAsked("x", T0),
        ):
            here.driver.post(nobody, fact)
        await bob.until(lambda it: len(it.sent) == 2)
        assert sorted(bob.sent) == [("ack", nobody, 1, "rejected"), ("renewed", nobody, 1, 0)]


async def test_late_receipts_by_the_hundred_are_all_answered(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob")
        ids = [f"01K73ZBZ00ABCDEFGHJKMNP{n:03d}" for n in range(3 * driver_module.LOOKUPS_MAX)]
        for task_id in ids:
            fact = machine.ReceiptCame("bob", 1, Outcome.COMPLETED, "", T0)
            here.driver.post(task_id, fact)
        await bob.until(lambda it: len(it.of("ack")) == len(ids))
        assert {ack[1] for ack in bob.of("ack")} == set(ids)


async def test_a_driver_with_work_that_nobody_serves_rests(path: Path) -> None:
    """The loop must not spin because a task waits and a worker that cannot take it is free."""
    async with house(path) as here:
        here.worker("bob", credits=4, serves=frozenset({"another agent"}))
        await submit_many(here, 3)
        await here.told("task.open", 3)
        before = here.driver.turns
        await trio.testing.wait_all_tasks_blocked(0.1)  # for ever, if it spins: fail_after below
        assert here.driver.turns - before <= 2


async def test_the_clock_forgets_the_deadlines_of_tasks_that_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "DUE_MIN", 64)
    async with house(path) as here:
        here.driver._due_most = 64
        bob = here.worker("bob", credits=1_000)
        for round_ in range(1, 9):
            await submit_many(here, 50)
            leases = await bob.leased(50 * round_)
            for lease in leases[-50:]:
                here.receipt(lease, "bob")
            await bob.until(lambda it, due=50 * round_: len(it.of("ack")) == due)  # type: ignore[misc]
        assert len(here.driver._due) <= 200


# -- the clock and cancels -------------------------------------------------------------------------


async def test_a_task_that_nobody_takes_times_out_at_its_deadline(path: Path) -> None:
    async with house(path) as here:
        task_id = await here.submit(deadline_ms=T0 + 1_000)
        assert here.driver.waiting_for(task_id) == "no worker is connected to this node"
        here.clock.now_ms += 1_000
        (event,) = await here.told("task.settled")
        assert event.body["outcome"] == "timed_out"


async def test_a_cancel_reaches_the_worker_and_ends_within_its_grace(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit()
        await bob.leased()
        here.driver.post(task_id, machine.CancelAsked("enough", here.clock()))
        await bob.until(lambda it: bool(it.of("cancel")))
        row = await here.ledger.inner.task(task_id)
        assert row is not None
        assert row.cancel_reason == "enough"
        here.clock.now_ms += machine.CANCEL_GRACE_MS
        (event,) = await here.told("task.settled")
        assert event.body["outcome"] == "cancelled"


async def test_a_worker_that_is_gone_keeps_its_lease_for_the_grace_only(path: Path) -> None:
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        await here.submit(deadline_ms=T0 + DEADLINE_MS)
        await bob.leased()
        carol = here.worker("carol", credits=1)
        here.driver.worker_lost("bob", bob)
        await here.turned()
        await here.turned()
        assert carol.leases == [] or carol.leases[0].fence == 1
        here.clock.now_ms += machine.STREAM_LOST_GRACE_MS
        here.claim(carol, 9)
        await carol.until(lambda it: any(lease.fence == 2 for lease in it.leases))


async def test_the_end_of_an_old_stream_does_not_end_the_new_one(path: Path) -> None:
    async with house(path) as here:
        old = here.worker("bob", credits=1)
        await here.submit()
        await old.leased()
        new = here.worker("bob", credits=1)
        assert new.claimer.in_flight == 1
        here.driver.worker_lost("bob", old)
        await here.submit(1)
        await new.leased()


# -- the ledger is away ----------------------------------------------------------------------------


async def test_while_the_ledger_is_away_submissions_are_refused_as_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        for failure in range(5):
            here.ledger.commits_failing = 1
            with pytest.raises(Unavailable):
                await here.submit(failure)
            assert here.driver.tasks == {}
        task_id = await here.submit(9)
        (lease,) = await bob.leased()
        assert lease.spec.task_id == task_id
        assert (bob.claimer.credits, bob.claimer.in_flight, bob.claimer.unsent) == (0, 1, 0)


async def test_a_receipt_outlives_a_ledger_that_is_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit()
        (lease,) = await bob.leased()
        here.ledger.commits_failing = 5
        here.receipt(lease, "bob")
        await bob.until(lambda it: bool(it.of("ack")))
        assert here.ledger.refused == 5
        assert bob.of("ack") == [("ack", task_id, 1, "settled")]
        await here.told("task.settled")
        assert here.driver.chronicle.settled == {"completed": 1}


async def test_a_task_reopened_while_the_ledger_is_away_is_given_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        carol = here.worker("carol", credits=0)
        await here.submit(deadline_ms=T0 + DEADLINE_MS)
        (lease,) = await bob.leased()
        here.claim(carol, 5)
        here.ledger.commits_failing = 4
        here.receipt(lease, "bob", Outcome.REFUSED)
        (again,) = await carol.leased()
        here.receipt(again, "carol")
        await here.told("task.settled")
        await here.submit(1)
        await carol.leased(2)
        assert [(x.attempt, x.fence) for x in carol.leases] == [(2, 2), (1, 1)]
        assert (carol.claimer.credits, carol.claimer.in_flight) == (3, 1)
        assert (bob.claimer.in_flight, bob.claimer.unsent, carol.claimer.unsent) == (0, 0, 0)


async def test_a_cancel_outlives_a_ledger_that_is_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        task_id = await here.submit()
        here.ledger.commits_failing = 3
        here.driver.post(task_id, machine.CancelAsked("enough", here.clock()))
        (event,) = await here.told("task.settled")
        assert (event.task_id, event.body["outcome"]) == (task_id, "cancelled")
        bob = here.worker("bob", credits=5)
        other = await here.submit(1)
        await bob.leased()
        assert [lease.spec.task_id for lease in bob.leases] == [other]


async def test_nothing_that_waits_is_lost_when_the_ledger_cannot_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late receipt needs a read; what waits beside it must not vanish when that read fails."""
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        bob = here.worker("bob", credits=2)
        first = await here.submit()
        (lease,) = await bob.leased()
        here.receipt(lease, "bob")
        await here.told("task.settled")
        second = await here.submit(1, deadline_ms=T0 + DEADLINE_MS)
        await bob.leased(2)
        here.ledger.reads_failing = 3
        here.receipt(lease, "bob")
        here.receipt(bob.leases[1], "bob")
        with pytest.raises(Unavailable):
            await here.submit(2)
        await bob.until(lambda it: len(it.of("ack")) == 3)
        assert set(bob.of("ack")) == {
            ("ack", first, 1, "settled"),
            ("ack", second, 1, "settled"),
        }


async def test_an_input_that_cannot_be_read_costs_a_lease_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "INLINE_KEPT_BYTES_MAX", 0)
    async with house(path) as here:
        bob = here.worker("bob")
        task_id = await here.submit()
        here.ledger.reads_failing = 1
        here.claim(bob, 1)
        (lease,) = await bob.leased()
        assert (lease.spec.task_id, lease.fence, lease.input_inline) == (task_id, 2, b"input")
        assert here.conduct == []
        assert (bob.claimer.credits, bob.claimer.in_flight) == (0, 1)


async def test_a_commit_that_only_seemed_to_fail_is_found_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the ledger is lost, its work is not: watchers and the worker hear the end."""
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit()
        (lease,) = await bob.leased()
        here.ledger.lies_failing = 1
        receipt_ms = here.clock.now_ms
        here.receipt(lease, "bob")
        with trio.fail_after(20):
            while here.ledger.lies_failing:
                await trio.testing.wait_all_tasks_blocked()
        here.clock.now_ms = receipt_ms + 7
        await bob.until(lambda it: bool(it.of("ack")))
        assert bob.of("ack") == [("ack", task_id, 1, "settled")]
        (event,) = await here.told("task.settled")
        assert event.body["outcome"] == "completed"
        assert here.driver.tasks == {}


async def test_a_lease_that_only_seemed_to_fail_is_granted_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LEDGER_RETRY_S", 0.01)
    async with house(path) as here:
        task_id = await here.submit()
        here.ledger.lies_failing = 1
        bob = here.worker("bob", credits=1)
        with trio.fail_after(20):
            while here.ledger.lies_failing:
                await trio.testing.wait_all_tasks_blocked()
        here.clock.now_ms += 7
        (lease,) = await bob.leased()
        assert (lease.spec.task_id, lease.fence) == (task_id, 2)
        here.receipt(lease, "bob")
        await here.told("task.settled")
        assert here.conduct == [("bob", "completed")]


async def test_where_the_ledger_knows_better_its_word_stands(path: Path) -> None:
    """Another process leased the task meanwhile: our fence is stale, theirs is what we hold now."""
    async with house(path) as here:
        task_id = await here.submit(deadline_ms=T0 + DEADLINE_MS)
        async with SqliteLedger(path, now_ms=here.clock) as other:
            await other.commit([lease_write(task_id, 7, worker="carol", until_ms=T0 + TTL)])
        bob = here.worker("bob", credits=1)
        await here.turned()
        await bob.until(lambda it: bool(it.leases))
        assert [x.spec.task_id for x in bob.leases] != [task_id]
        state = here.driver.tasks[task_id].state
        assert isinstance(state, machine.Leased)
        assert (state.worker, state.fence) == ("carol", 7)


# -- restarts --------------------------------------------------------------------------------------


async def test_a_restarted_owner_goes_on_with_open_and_leased_tasks(path: Path) -> None:
    clock = Clock()
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        leased = await here.submit(0, deadline_ms=T0 + DEADLINE_MS)
        (lease,) = await bob.leased()
        open_ = await here.submit(1, deadline_ms=T0 + DEADLINE_MS)
    clock.now_ms += 2 * TTL  # longer away than the lease lasted
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        (other,) = await bob.leased()
        assert other.spec.task_id == open_
        state = here.driver.tasks[leased].state
        assert isinstance(state, machine.Leased)
        assert state.until_ms == clock.now_ms + TTL
        here.receipt(lease, "bob")
        await bob.until(lambda it: bool(it.of("ack")))
        assert bob.of("ack") == [("ack", leased, 1, "settled")]


async def test_a_restarted_owner_gives_up_a_worker_that_does_not_come_back(path: Path) -> None:
    clock = Clock()
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        await here.submit(deadline_ms=T0 + DEADLINE_MS)
        await bob.leased()
    async with house(path, clock) as here:
        carol = here.worker("carol", credits=1)
        await here.turned()
        clock.now_ms += TTL
        here.claim(carol, 9)
        await carol.until(lambda it: any(x.fence == 2 for x in it.leases))


async def test_a_restarted_owner_still_honours_a_cancel(path: Path) -> None:
    clock = Clock()
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit(deadline_ms=T0 + DEADLINE_MS)
        await bob.leased()
        here.driver.post(task_id, machine.CancelAsked("enough", clock()))
        await bob.until(lambda it: bool(it.of("cancel")))
    async with house(path, clock) as here:
        bob = here.worker("bob")
        here.driver.post(task_id, machine.RenewAsked("bob", 1, TTL, clock()))
        await bob.until(lambda it: bool(it.sent))
        assert bob.sent == [("renewed", task_id, 1, 0)]
        clock.now_ms += TTL
        (event,) = await here.told("task.settled")
        assert event.body["outcome"] == "cancelled"


async def test_excluded_workers_and_tries_survive_a_restart(path: Path) -> None:
    clock = Clock()
    once_more = RetryPolicy(attempts_max=2)
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        await here.submit(deadline_ms=T0 + DEADLINE_MS, retry=once_more)
        (lease,) = await bob.leased()
        here.receipt(lease, "bob", Outcome.REFUSED)
        await here.told("task.retry")
    async with house(path, clock) as here:
        bob, carol = here.worker("bob", credits=5), here.worker("carol", credits=5)
        (lease,) = await carol.leased()
        assert bob.leases == []
        here.receipt(lease, "carol", Outcome.REFUSED)
        (event,) = await here.told("task.settled")
        assert event.body["outcome"] == "refused"
