"""What any `ports.ledger.Ledger` promises, whatever engine is below."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from ledger_samples import (
    AGENT,
    T0,
    WORKER,
    agent,
    lease,
    opening,
    ref,
    reopening,
    row,
    settling,
    spec,
)

from zerostate_node.errors import Refused
from zerostate_node.ports.ledger import (
    AttemptRow,
    CancelTask,
    Ledger,
    OpenTask,
    PublishAgent,
    TaskRow,
)
from zerostate_node.wire.messages import Limits, Outcome, RetryPolicy


def code(result: object) -> str:
    assert isinstance(result, Refused), result
    return result.code


async def opened(ledger: Ledger, number: int = 0) -> str:
    (task_id,) = await ledger.commit([opening(number)])
    assert isinstance(task_id, str)
    return task_id


# -- opening ---------------------------------------------------------------------------------------


async def test_an_opened_task_reads_back_equal_in_every_field(ledger: Ledger) -> None:
    wanted = TaskRow(
        spec=spec(
            args=("a", "ü", ""),
            script=ref(b"script"),
            limits=Limits(fuel_max=7),
            retry=RetryPolicy(attempts_max=9),
            capability="cap",
            budget_ucr=1 << 53,
            trace="00-trace",
        ),
        actor="user-1",
        phase="open",
        attempt=2,
        fence=5,
        worker=WORKER,
        not_before_ms=4,
        excluded=("a", 'b"c'),
        cancel_reason="why",
        detail="d",
        updated_ms=T0,
    )
    assert await ledger.commit([OpenTask(row=wanted, input_inline=b"\x00in")]) == [
        wanted.spec.task_id
    ]
    assert await ledger.task(wanted.spec.task_id) == wanted
    assert await ledger.input_inline(wanted.spec.task_id) == b"\x00in"
    assert await ledger.output_inline(wanted.spec.task_id) is None
    assert await ledger.receipt(wanted.spec.task_id) is None


async def test_an_unknown_task_is_none_everywhere(ledger: Ledger) -> None:
    task_id = spec().task_id
    assert await ledger.task(task_id) is None
    assert await ledger.attempts(task_id) == []
    assert await ledger.receipt(task_id) is None
    assert await ledger.input_inline(task_id) is None


async def test_the_same_key_and_request_gives_the_same_task(ledger: Ledger) -> None:
    first = OpenTask(row=row(1), key="k", request_digest="r")
    again = OpenTask(row=row(2), key="k", request_digest="r")
    assert await ledger.commit([first, again]) == [first.row.spec.task_id] * 2
    assert await ledger.commit([again]) == [first.row.spec.task_id]
    assert [task.spec.task_id for task in await ledger.live()] == [first.row.spec.task_id]


async def test_the_same_key_with_another_request_is_refused(ledger: Ledger) -> None:
    await ledger.commit([OpenTask(row=row(1), key="k", request_digest="r")])
    (other,) = await ledger.commit([OpenTask(row=row(2), key="k", request_digest="s")])
    assert code(other) == "idempotency_conflict"
    assert await ledger.counts() == {"open": 1}


async def test_a_key_belongs_to_one_actor(ledger: Ledger) -> None:
    mine = OpenTask(row=row(1, actor="a"), key="k", request_digest="r")
    yours = OpenTask(row=row(2, actor="b"), key="k", request_digest="s")
    assert await ledger.commit([mine, yours]) == [mine.row.spec.task_id, yours.row.spec.task_id]


async def test_sixty_four_opens_at_once_with_one_key_make_one_task(ledger: Ledger) -> None:
    answers: set[object] = set()

    async def ask(number: int) -> None:
        request = OpenTask(row=row(number), key="k", request_digest="r")
        answers.update(await ledger.commit([request]))

    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(ask, number)
    assert len(answers) == 1
    assert await ledger.counts() == {"open": 1}


async def test_opening_the_same_task_twice_changes_nothing_and_other_content_is_refused(
    ledger: Ledger,
) -> None:
    request = opening()
    task_id = request.row.spec.task_id
    assert await ledger.commit([request, request]) == [task_id, task_id]
    (other,) = await ledger.commit([opening(task_id=task_id, budget_ucr=9)])
    assert code(other) == "task_exists"
    assert await ledger.counts() == {"open": 1}


# -- fences ----------------------------------------------------------------------------------------


async def test_a_lease_is_recorded_with_its_attempt(ledger: Ledger) -> None:
    task_id = await opened(ledger)
    assert await ledger.commit([lease(task_id, 1)]) == [None]
    task = await ledger.task(task_id)
    assert task is not None
    assert (task.phase, task.fence, task.worker) == ("leased", 1, WORKER)
    assert task.lease_until_ms == T0 + 30_001
    assert await ledger.attempts(task_id) == [
        AttemptRow(task_id=task_id, attempt=1, fence=1, worker=WORKER, leased_ms=T0 + 1)
    ]


@pytest.mark.parametrize("fence", [1, 2])
async def test_a_lease_whose_fence_does_not_grow_is_refused(ledger: Ledger, fence: int) -> None:
    task_id = await opened(ledger)
    await ledger.commit([lease(task_id, 2)])
    (answer,) = await ledger.commit([lease(task_id, fence, worker="another")])
    assert code(answer) == "stale_fence"
    assert len(await ledger.attempts(task_id)) == 1


async def test_a_lease_of_a_task_that_is_not_there_is_refused(ledger: Ledger) -> None:
    (answer,) = await ledger.commit([lease(spec().task_id, 1)])
    assert code(answer) == "stale_fence"
    assert await ledger.counts() == {}


async def test_a_stale_fence_cannot_settle_after_the_lease_passes_on(ledger: Ledger) -> None:
    task_id = await opened(ledger)
    results = await ledger.commit(
        [
            lease(task_id, 1),
            reopening(task_id, 1),
            lease(task_id, 2, worker="second"),
            settling(task_id, 1),
            reopening(task_id, 1, detail="again"),
        ]
    )
    assert [code(result) for result in results[3:]] == ["stale_fence"] * 2
    task = await ledger.task(task_id)
    assert task is not None
    assert (task.phase, task.worker, task.fence) == ("leased", "second", 2)
    assert await ledger.receipt(task_id) is None


async def test_a_task_is_settled_once_with_everything_that_belongs_to_its_end(
    ledger: Ledger,
) -> None:
    task_id = await opened(ledger)
    await ledger.commit([lease(task_id, 1), settling(task_id, 1)])
    (second,) = await ledger.commit([settling(task_id, 1, outcome=Outcome.TRAPPED)])
    assert code(second) == "stale_fence"
    task = await ledger.task(task_id)
    assert task is not None
    assert (task.phase, task.outcome, task.fuel_used, task.price_ucr, task.output) == (
        "settled",
        Outcome.COMPLETED,
        1234,
        56,
        ref(b"output"),
    )
    assert await ledger.receipt(task_id) == b"signed by the worker"
    assert await ledger.output_inline(task_id) == b"output"
    (attempt,) = await ledger.attempts(task_id)
    assert (attempt.outcome, attempt.ended_ms) == (Outcome.COMPLETED, T0 + 201)
    assert await ledger.live() == []


async def test_nothing_happens_to_a_settled_task(ledger: Ledger) -> None:
    task_id = await opened(ledger)
    await ledger.commit([lease(task_id, 1), settling(task_id, 1)])
    before = await ledger.task(task_id)
    results = await ledger.commit(
        [
            lease(task_id, 9),
            reopening(task_id, 1),
            CancelTask(task_id=task_id, reason="late", now_ms=T0),
        ]
    )
    assert [code(result) for result in results] == ["stale_fence", "stale_fence", "already_settled"]
    assert await ledger.task(task_id) == before


async def test_an_open_task_is_settled_without_a_worker_under_the_fence_it_has(
    ledger: Ledger,
) -> None:
    task_id = await opened(ledger)
    end = settling(
        task_id,
        0,
        worker="",
        outcome=Outcome.CANCELLED,
        receipt=b"",
        output=None,
        output_inline=None,
        fuel_used=0,
        price_ucr=0,
    )
    assert await ledger.commit([end]) == [None]
    task = await ledger.task(task_id)
    assert task is not None
    assert (task.phase, task.outcome) == ("settled", Outcome.CANCELLED)
    assert await ledger.receipt(task_id) is None


async def test_the_receipt_of_a_failed_attempt_is_not_the_one_that_settled(
    ledger: Ledger,
) -> None:
    task_id = await opened(ledger)
    await ledger.commit(
        [
            lease(task_id, 1),
            reopening(task_id, 1, outcome=Outcome.TRAPPED, receipt=b"trapped"),
            settling(task_id, 1, outcome=Outcome.CANCELLED, receipt=b"", output_inline=None),
        ]
    )
    assert await ledger.receipt(task_id) is None
    (attempt,) = await ledger.attempts(task_id)
    assert attempt.outcome is Outcome.TRAPPED  # a cancel later is not how that attempt ended


async def test_a_lost_attempt_that_is_answered_before_the_next_lease_still_settles(
    ledger: Ledger,
) -> None:
    task_id = await opened(ledger)
    await ledger.commit([lease(task_id, 1), reopening(task_id, 1), settling(task_id, 1)])
    assert await ledger.receipt(task_id) == b"signed by the worker"
    (attempt,) = await ledger.attempts(task_id)
    assert attempt.outcome is Outcome.COMPLETED


async def test_a_lease_over_a_running_one_ends_it_as_lost(ledger: Ledger) -> None:
    task_id = await opened(ledger)
    await ledger.commit([lease(task_id, 1), lease(task_id, 2)])
    first, second = await ledger.attempts(task_id)
    assert (first.outcome, first.ended_ms) == (Outcome.LOST, T0 + 2)
    assert second.outcome is None
    assert (await ledger.counts())["leased"] == 1


async def test_each_write_that_is_asked_again_after_doubt_succeeds_without_effect(
    ledger: Ledger,
) -> None:
    task_id = await opened(ledger)
    for write in (lease(task_id, 1), reopening(task_id, 1), lease(task_id, 2)):
        assert await ledger.commit([write, write]) == [None, None]
    settle = settling(task_id, 2)
    assert await ledger.commit([settle]) == [None]
    before = await ledger.task(task_id)
    assert await ledger.commit([settle]) == [None]
    assert await ledger.task(task_id) == before
    assert await ledger.counts() == {"open": 0, "leased": 0, "completed": 1}


async def test_a_cancel_is_remembered_and_names_what_it_cannot_cancel(ledger: Ledger) -> None:
    task_id = await opened(ledger)
    cancel = CancelTask(task_id=task_id, reason="changed my mind", now_ms=T0 + 5)
    nowhere = CancelTask(task_id=spec().task_id, reason="", now_ms=T0)
    results = await ledger.commit([cancel, nowhere])
    assert results[0] is None
    assert code(results[1]) == "no_such_task"
    (task,) = await ledger.live()
    assert task.cancel_reason == "changed my mind"


# -- groups ----------------------------------------------------------------------------------------


async def test_one_refused_write_leaves_the_others_of_its_group(ledger: Ledger) -> None:
    first, second = opening(1), opening(2)
    results = await ledger.commit([first, lease(first.row.spec.task_id, -1), second])
    assert results[0] == first.row.spec.task_id
    assert isinstance(results[1], Refused)
    assert results[2] == second.row.spec.task_id
    assert len(await ledger.live()) == 2


async def test_a_write_that_breaks_half_way_is_undone_alone(ledger: Ledger) -> None:
    good, bad = opening(1), opening(2)
    taken = good.row.spec.task_id
    worse = opening(3)
    results = await ledger.commit(
        [
            good,
            OpenTask(row=bad.row, key="k" * 300, request_digest="r"),  # fails on its last row
            lease(taken, 1),
            settling(taken, 1, price_ucr=1 << 70),  # no integer of any database
            settling(taken, 1, receipt=b"r", fuel_used=-1),
            OpenTask(row=row(4, task_id="\ud800")),  # text that is no UTF-8
            worse,
        ]
    )
    assert [type(result) for result in results] == [
        str,
        Refused,
        type(None),
        Refused,
        Refused,
        Refused,
        str,
    ]
    assert {code(result) for result in results if isinstance(result, Refused)} == {"not_storable"}
    assert await ledger.task(bad.row.spec.task_id) is None
    task = await ledger.task(taken)
    assert task is not None
    assert task.phase == "leased"
    assert await ledger.counts() == {"open": 1, "leased": 1}


async def test_writes_of_a_commit_see_those_before_them(ledger: Ledger) -> None:
    request = opening()
    task_id = request.row.spec.task_id
    results = await ledger.commit([request, lease(task_id, 1), settling(task_id, 1)])
    assert results == [task_id, None, None]


async def test_check_proves_that_commits_work(ledger: Ledger) -> None:
    await ledger.check()
    assert await ledger.commit([]) == []


# -- reading ---------------------------------------------------------------------------------------


async def test_pages_give_every_task_once_newest_first(ledger: Ledger) -> None:
    requests = [opening(number) for number in range(25)]
    await ledger.commit(requests)
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        page = await ledger.tasks(limit=10, cursor=cursor)
        seen.extend(task.spec.task_id for task in page.rows)
        pages += 1
        cursor = page.cursor
        if not cursor:
            break
    assert seen == [request.row.spec.task_id for request in reversed(requests)]
    assert pages == math.ceil(25 / 10)


async def test_a_task_that_is_opened_between_two_pages_moves_nothing(ledger: Ledger) -> None:
    await ledger.commit([opening(number) for number in range(4)])
    page = await ledger.tasks(limit=2)
    await ledger.commit([opening(100)])
    rest = await ledger.tasks(limit=2, cursor=page.cursor)
    assert [task.spec.created_ms - T0 for task in (*page.rows, *rest.rows)] == [3, 2, 1, 0]
    assert rest.cursor == ""


async def test_tasks_are_filtered_by_actor_and_phase(ledger: Ledger) -> None:
    mine, yours, done = opening(1), OpenTask(row=row(2, actor="b")), opening(3)
    running = opening(4)
    await ledger.commit([mine, yours, done, running])
    await ledger.commit(
        [
            lease(done.row.spec.task_id, 1),
            settling(done.row.spec.task_id, 1),
            lease(running.row.spec.task_id, 1),
        ]
    )

    async def found(**filters: Any) -> list[str]:
        return [task.spec.task_id for task in (await ledger.tasks(**filters)).rows]

    assert await found(actor="b") == [yours.row.spec.task_id]
    assert await found(actor="nobody") == []
    assert await found(phase="settled") == [done.row.spec.task_id]
    assert await found(phase="leased") == [running.row.spec.task_id]
    assert await found(phase="open", actor="operator") == [mine.row.spec.task_id]


@pytest.mark.parametrize(
    "cursor",
    ["x", "=", "dDE6", "A" * 10_000, "ü", "dDE6MDFBUlozTkRFS1RTVjRSUkZGUTY5RzVGQVYtLS0", "%00"],
)
async def test_a_cursor_that_no_page_gave_is_refused(ledger: Ledger, cursor: str) -> None:
    with pytest.raises(Refused) as caught:
        await ledger.tasks(cursor=cursor)
    assert caught.value.code == "bad_cursor"


async def test_an_unknown_phase_is_refused_and_silly_limits_are_cut(ledger: Ledger) -> None:
    with pytest.raises(Refused):
        await ledger.tasks(phase="' OR 1")
    await ledger.commit([opening(number) for number in range(3)])
    assert len((await ledger.tasks(limit=-5)).rows) == 1
    assert len((await ledger.tasks(limit=10**9)).rows) == 3


async def test_live_is_every_unsettled_task_oldest_first(ledger: Ledger) -> None:
    requests = [opening(number) for number in (3, 1, 2)]
    await ledger.commit(requests)
    gone = requests[2].row.spec.task_id
    await ledger.commit([lease(gone, 1), settling(gone, 1)])
    assert [task.spec.created_ms - T0 for task in await ledger.live()] == [1, 3]


async def test_counts_are_by_phase_and_outcome(ledger: Ledger) -> None:
    assert await ledger.counts() == {}
    tasks = [await opened(ledger, number) for number in range(4)]
    await ledger.commit([lease(task_id, 1) for task_id in tasks[:3]])
    await ledger.commit([settling(tasks[0], 1), settling(tasks[1], 1, outcome=Outcome.OUT_OF_FUEL)])
    assert await ledger.counts() == {"open": 1, "leased": 1, "completed": 1, "out_of_fuel": 1}


# -- agents ----------------------------------------------------------------------------------------


async def test_a_published_agent_reads_back_and_the_same_bytes_again_are_false(
    ledger: Ledger,
) -> None:
    publish = PublishAgent(row=agent())
    assert await ledger.commit([publish, publish]) == [True, False]
    assert await ledger.agents() == [agent()]
    assert await ledger.agents(publisher=AGENT.partition("/")[0]) == [agent()]
    assert await ledger.agents(publisher="did:key:other") == []


async def test_other_bytes_under_a_published_version_are_refused(ledger: Ledger) -> None:
    await ledger.commit([PublishAgent(row=agent())])
    (answer,) = await ledger.commit([PublishAgent(row=agent(sequence=2))])
    assert code(answer) == "version_exists"


async def test_a_sequence_that_does_not_grow_is_refused(ledger: Ledger) -> None:
    await ledger.commit([PublishAgent(row=agent("1.0.0", 5))])
    (answer,) = await ledger.commit([PublishAgent(row=agent("2.0.0", 5))])
    assert code(answer) == "stale_sequence"
    assert await ledger.commit([PublishAgent(row=agent("2.0.0", 6))]) == [True]
    assert [found.version for found in await ledger.agents()] == ["2.0.0", "1.0.0"]


async def test_a_renewal_replaces_the_card_of_the_same_version(ledger: Ledger) -> None:
    await ledger.commit([PublishAgent(row=agent("1.0.0", 1))])
    (refused,) = await ledger.commit([PublishAgent(row=agent("1.0.0", 2))])
    assert code(refused) == "version_exists"
    assert await ledger.commit([PublishAgent(row=agent("1.0.0", 2), renewal=True)]) == [True]
    assert [found.sequence for found in await ledger.agents()] == [2]


async def test_an_input_in_a_row_is_found_by_its_digest(ledger: Ledger) -> None:
    await ledger.commit([opening(1)])
    assert await ledger.inline_blob(ref(b"input").digest) == b"input"
    assert await ledger.inline_blob(ref(b"something else").digest) is None


async def test_a_revocation_replaces_the_card_and_is_final(ledger: Ledger) -> None:
    await ledger.commit([PublishAgent(row=agent("1.0.0", 1)), PublishAgent(row=agent("2.0.0", 2))])
    revoked = agent("2.0.0", 3, status="revoked")
    assert await ledger.commit([PublishAgent(row=revoked)]) == [True]
    results = await ledger.commit(
        [
            PublishAgent(row=agent("2.0.0", 4)),
            PublishAgent(row=agent("2.0.0", 4, status="deprecated")),
            PublishAgent(row=agent("3.0.0", 4)),
            PublishAgent(row=agent("1.0.0", 4, status="revoked")),
            PublishAgent(row=agent("1.0.0", 5, status="revoked")),
        ]
    )
    assert [code(result) for result in results[:2]] == ["revoked"] * 2
    assert results[2] is True  # a new version is a new promise
    assert code(results[3]) == "stale_sequence"
    assert {found.version: found.status for found in await ledger.agents()} == {
        "1.0.0": "revoked",
        "2.0.0": "revoked",
        "3.0.0": "active",
    }
