"""Who gets which task: sentences, and the dispatcher against a model too simple to be wrong."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zerostate_node.machines.dispatch import (
    EXCLUDED_BUSY_MS,
    EXCLUDED_MS,
    Claimer,
    Dispatcher,
    Wanted,
)

ECHO, GREP = "did:key:z6Mk/echo", "did:key:z6Mk/grep"


def wanted(task_id: str, agent: str = ECHO, **changes: object) -> Wanted:
    fields: dict[str, object] = {
        "capability": "",
        "excluded": (),
        "not_before_ms": 0,
        "since_ms": 0,
    }
    return Wanted(task_id=task_id, agent_id=agent, **(fields | changes))  # type: ignore[arg-type]


def claimer(worker: str, credits: int = 1, **changes: object) -> Claimer:
    fields: dict[str, object] = {"slots": 2, "serves": frozenset({"*"}), "credits": credits}
    return Claimer(worker=worker, **(fields | changes))  # type: ignore[arg-type]


def desk(*claimers: Claimer) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.claimers = {c.worker: c for c in claimers}
    return dispatcher


def pairs(dispatcher: Dispatcher, now_ms: int = 0, most: int = 512) -> list[tuple[str, str]]:
    return list(dispatcher.pairs(now_ms, most=most))


def test_tasks_are_given_in_order_of_arrival_whatever_their_kind() -> None:
    dispatcher = desk(claimer("bob", 10))
    for number, agent in enumerate([ECHO, GREP, GREP, ECHO, GREP]):
        dispatcher.add(wanted(f"t{number}", agent))
    assert [task for task, _ in pairs(dispatcher)] == ["t0", "t1", "t2", "t3", "t4"]
    assert len(dispatcher) == 0


def test_each_pair_costs_one_credit_and_none_are_made_without() -> None:
    bob = claimer("bob", 2)
    dispatcher = desk(bob)
    for number in range(3):
        dispatcher.add(wanted(f"t{number}"))
    assert len(pairs(dispatcher)) == 2
    assert (bob.credits, bob.in_flight, bob.unsent) == (0, 2, 2)
    assert len(dispatcher) == 1


def test_no_more_pairs_are_made_than_asked_for() -> None:
    dispatcher = desk(claimer("bob", 10))
    for number in range(5):
        dispatcher.add(wanted(f"t{number}"))
    assert len(pairs(dispatcher, most=2)) == 2
    assert len(pairs(dispatcher)) == 3


def test_a_worker_gets_only_what_it_serves() -> None:
    dispatcher = desk(
        claimer("bob", 9, serves=frozenset({GREP})),
        claimer("carol", 9, serves=frozenset({"cap:words"})),
        claimer("dave", 9, serves=frozenset()),
    )
    dispatcher.add(wanted("echo"))
    dispatcher.add(wanted("grep", GREP))
    dispatcher.add(wanted("words", capability="words"))
    assert pairs(dispatcher) == [("grep", "bob"), ("words", "carol")]
    assert dispatcher.kinds() == {ECHO: 1}


def test_work_that_nobody_serves_does_not_hold_up_the_rest() -> None:
    dispatcher = desk(claimer("bob", 1, serves=frozenset({GREP})))
    for number in range(100_000):
        dispatcher.add(wanted(f"t{number}"))
    dispatcher.add(wanted("grep", GREP))
    assert pairs(dispatcher) == [("grep", "bob")]
    assert len(dispatcher) == 100_000


def test_a_worker_that_failed_the_task_is_passed_over_while_another_may_come() -> None:
    dispatcher = desk(claimer("bob", 5))
    dispatcher.add(wanted("t", excluded=("bob",), since_ms=1_000))
    assert pairs(dispatcher, 1_000 + EXCLUDED_MS - 1) == []
    dispatcher.claimers["carol"] = claimer("carol")
    dispatcher.unpark()
    assert pairs(dispatcher, 1_001) == [("t", "carol")]


def test_a_worker_that_failed_the_task_is_better_than_nobody_in_the_end() -> None:
    dispatcher = desk(claimer("bob", 5))
    dispatcher.add(wanted("t", excluded=("bob",), since_ms=1_000))
    assert pairs(dispatcher, 1_000) == []
    dispatcher.unpark()
    assert pairs(dispatcher, 1_000 + EXCLUDED_MS) == [("t", "bob")]


def test_a_task_waits_for_its_pause_and_is_looked_at_again() -> None:
    dispatcher = desk(claimer("bob", 5))
    dispatcher.add(wanted("t", not_before_ms=500))
    assert pairs(dispatcher, 499) == []
    assert dispatcher.kinds() == {ECHO: 1}
    dispatcher.unpark()
    assert pairs(dispatcher, 500) == [("t", "bob")]


def test_a_parked_task_keeps_its_place_in_the_queue() -> None:
    dispatcher = desk(claimer("bob", 1))
    dispatcher.add(wanted("first", not_before_ms=500))
    dispatcher.add(wanted("second"))
    dispatcher.add(wanted("third"))
    assert pairs(dispatcher, 0) == [("second", "bob")]
    dispatcher.unpark()
    dispatcher.claimers["bob"].credits = 1
    assert pairs(dispatcher, 500) == [("first", "bob")]


def test_a_task_withdrawn_and_added_again_is_given_once() -> None:
    dispatcher = desk(claimer("bob", 9))
    dispatcher.add(wanted("t"))
    dispatcher.withdraw("t")
    dispatcher.add(wanted("t"))
    assert pairs(dispatcher) == [("t", "bob")]
    assert len(dispatcher) == 0


def test_a_task_added_again_is_given_as_it_is_now() -> None:
    dispatcher = desk(claimer("bob", 9), claimer("carol", 9, in_flight=4))
    dispatcher.add(wanted("t"))
    dispatcher.withdraw("t")
    dispatcher.add(wanted("t", excluded=("bob",)))
    assert pairs(dispatcher) == [("t", "carol")]


def test_a_task_added_twice_is_given_once() -> None:
    dispatcher = desk(claimer("bob", 9))
    dispatcher.add(wanted("t"))
    dispatcher.add(wanted("t"))
    assert pairs(dispatcher) == [("t", "bob")]
    assert dispatcher.kinds() == {}


def test_the_badly_behaved_come_last_however_idle() -> None:
    dispatcher = desk(claimer("mallory", 9, score=-1), claimer("bob", 9, in_flight=2))
    dispatcher.add(wanted("t"))
    assert pairs(dispatcher) == [("t", "bob")]


def test_the_same_region_comes_before_the_less_busy() -> None:
    dispatcher = desk(claimer("far", 9, region="us"), claimer("near", 9, region="eu", in_flight=1))
    dispatcher.add(wanted("t", region="eu"))
    assert pairs(dispatcher) == [("t", "near")]


def test_the_less_busy_for_its_size_comes_first() -> None:
    dispatcher = desk(claimer("small", 9, slots=1, in_flight=1), claimer("big", 9, slots=8))
    dispatcher.claimers["big"].in_flight = 4
    dispatcher.add(wanted("t"))
    assert pairs(dispatcher) == [("t", "big")]


def share(given: Counter[str]) -> float:
    return min(given["bob"], given["carol"]) / given.total()


def test_two_equal_workers_share_two_hundred_tasks_that_come_one_at_a_time() -> None:
    bob, carol = claimer("bob", 0), claimer("carol", 0)
    dispatcher = desk(bob, carol)
    given: Counter[str] = Counter()
    for number in range(200):
        bob.credits = carol.credits = 4
        dispatcher.add(wanted(f"t{number}"))
        ((_, worker),) = pairs(dispatcher)
        given[worker] += 1
        dispatcher.claimers[worker].in_flight -= 1
    assert share(given) >= 0.4


def test_two_equal_workers_share_two_hundred_tasks_that_come_in_bursts() -> None:
    bob, carol = claimer("bob", 0), claimer("carol", 0)
    dispatcher = desk(bob, carol)
    given: Counter[str] = Counter()
    for burst in (1, 3, 7, 40, 5, 64, 9, 71):
        bob.credits = carol.credits = 64
        for number in range(burst):
            dispatcher.add(wanted(f"{burst}-{number}"))
        for _, worker in pairs(dispatcher):
            given[worker] += 1
        bob.in_flight = carol.in_flight = 0
    assert given.total() == 200
    assert share(given) >= 0.4


def test_withdrawn_tasks_are_not_kept_when_nobody_ever_comes_for_them() -> None:
    dispatcher = desk()
    for number in range(20_000):
        dispatcher.add(wanted(f"t{number}"))
        dispatcher.withdraw(f"t{number}")
    assert sum(len(places) for places in dispatcher._ready.values()) < 2_000


WORKERS = ("bob", "carol", "dave")
TASKS = tuple(f"t{n}" for n in range(8))
AGENTS = (ECHO, GREP)


class DispatcherHistories(RuleBasedStateMachine):
    """Against a dict of what waits: nothing is lost, given twice, or given to the wrong worker."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher()
        self.waiting: dict[str, Wanted] = {}
        self.now_ms = 0

    @rule(
        task=st.sampled_from(TASKS),
        agent=st.sampled_from(AGENTS),
        capability=st.sampled_from(("", "words")),
        excluded=st.sets(st.sampled_from(WORKERS)),
        pause_ms=st.sampled_from((0, 0, 700)),
    )
    def add(
        self, task: str, agent: str, capability: str, excluded: set[str], pause_ms: int
    ) -> None:
        self.waiting[task] = wanted(
            task,
            agent,
            capability=capability,
            excluded=tuple(sorted(excluded)),
            not_before_ms=self.now_ms + pause_ms,
            since_ms=self.now_ms,
        )
        self.dispatcher.add(self.waiting[task])

    @rule(task=st.sampled_from(TASKS))
    def withdraw(self, task: str) -> None:
        self.waiting.pop(task, None)
        self.dispatcher.withdraw(task)

    @rule(
        worker=st.sampled_from(WORKERS),
        credits=st.integers(0, 4),
        serves=st.sets(st.sampled_from(("*", ECHO, GREP, "cap:words"))),
        score=st.integers(-5, 5),
    )
    def claim(self, worker: str, credits: int, serves: set[str], score: int) -> None:
        self.dispatcher.claimers[worker] = claimer(
            worker, credits, serves=frozenset(serves), score=score
        )

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        self.dispatcher.claimers.pop(worker, None)

    @rule(passed_ms=st.sampled_from((1, 400, EXCLUDED_MS, EXCLUDED_BUSY_MS)))
    def time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms

    @rule(most=st.integers(1, 6))
    def pair(self, most: int) -> None:
        self.dispatcher.unpark()
        before = {name: c.credits for name, c in self.dispatcher.claimers.items()}
        given = pairs(self.dispatcher, self.now_ms, most)
        assert len(given) <= most
        assert len({task for task, _ in given}) == len(given)
        spent = Counter(worker for _, worker in given)
        for worker, count in spent.items():
            assert self.dispatcher.claimers[worker].credits == before[worker] - count
        for task, worker in given:
            assert self._may(self.waiting.pop(task), self.dispatcher.claimers[worker])
        if len(given) < most:
            self._nobody_could_take_more()

    def _may(self, task: Wanted, worker: Claimer) -> bool:
        if not worker.serves_kind(task.agent_id, task.capability):
            return False
        if task.not_before_ms > self.now_ms:
            return False
        if worker.worker not in task.excluded:
            return True
        others = any(
            c.worker not in task.excluded and c.serves_kind(task.agent_id, task.capability)
            for c in self.dispatcher.claimers.values()
        )
        return self.now_ms - task.since_ms >= (EXCLUDED_BUSY_MS if others else EXCLUDED_MS)

    def _nobody_could_take_more(self) -> None:
        free = [c for c in self.dispatcher.claimers.values() if c.credits > 0]
        assert not any(self._may(task, c) for task in self.waiting.values() for c in free)

    @invariant()
    def what_waits_is_known(self) -> None:
        assert len(self.dispatcher) == len(self.waiting)
        assert self.dispatcher.kinds() == Counter(t.agent_id for t in self.waiting.values())

    @invariant()
    def credits_are_never_negative(self) -> None:
        assert all(c.credits >= 0 for c in self.dispatcher.claimers.values())


TestDispatcherHistories = DispatcherHistories.TestCase
TestDispatcherHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
