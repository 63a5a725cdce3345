"""How peers stand, what watchers hear, what waits for a link."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from machines_owning import WAIT_S, Clock
from wire_samples import peer_of

from zerostate_node.errors import Unavailable
from zerostate_node.services import hub as hub_module
from zerostate_node.services import outbox as outbox_module
from zerostate_node.services import standing as standing_module
from zerostate_node.services.hub import Hub, Lagged
from zerostate_node.services.loopback import loop
from zerostate_node.services.outbox import Outbox, receive
from zerostate_node.services.standing import Standing
from zerostate_node.wire import ids
from zerostate_node.wire.messages import Bye, Leases, Renewed, WorkMessage

ALICE, MALLORY = peer_of("alice"), peer_of("mallory")
TASK = "01K73ZBZ00ABCDEFGHJKMNPQRS"


async def test_a_liar_is_banned_at_once_and_the_mesh_is_told() -> None:
    standing = Standing(Clock(), me=ALICE)
    dropped: list[tuple[str, float]] = []

    async def drop(peer: str, seconds: float) -> None:
        dropped.append((peer, seconds))

    async with trio.open_nursery() as nursery:
        await nursery.start(standing.run, drop)
        standing.behaved(MALLORY, "lied")
        with trio.fail_after(WAIT_S):
            while not dropped:
                await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert dropped == [(MALLORY, 600.0)]
    assert standing.score(MALLORY) == -50


def test_a_node_never_bans_itself() -> None:
    standing = Standing(Clock(), me=ALICE)
    for _ in range(10):
        standing.behaved(ALICE, "lied")
    assert standing.score(ALICE) == 0
    assert standing.counts == {"lied": 10}


def test_beyond_the_most_peers_those_nearest_to_zero_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standing_module, "PEERS_MAX", 10)
    standing = Standing(Clock(), me=ALICE)
    standing.behaved(MALLORY, "bad_signature")
    for number in range(500):
        standing.behaved(f"peer {number}", "completed")
    assert len(standing._of) == 10
    assert standing.score(MALLORY) == -40


def test_a_newcomer_counts_from_its_first_fault_on_even_when_all_places_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standing_module, "PEERS_MAX", 3)
    standing = Standing(Clock(), me=ALICE)
    for number in range(3):
        for _ in range(5):
            standing.behaved(f"peer {number}", "completed")
    for _ in range(4):
        standing.behaved(MALLORY, "refused")
    assert standing.score(MALLORY) == -4


# -- the hub ---------------------------------------------------------------------------------------


def test_watchers_resume_where_they_were_and_are_told_when_they_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "EVENTS_KEPT", 4)
    hub = Hub(Clock())
    assert hub.since(0) == []
    for number in range(6):
        hub.tell("task.open", task_id=str(number))
    assert [event.seq for event in hub.since(2)] == [3, 4, 5, 6]
    assert [event.seq for event in hub.since(5)] == [6]
    assert hub.since(6) == []
    for after in (0, 1, 7, -1):
        with pytest.raises(Lagged):
            hub.since(after)


async def test_a_watcher_hears_every_event_in_order() -> None:
    hub, heard = Hub(Clock()), list[int]()

    async def watch() -> None:
        async for batch in hub.follow(0):
            heard.extend(event.seq for event in batch)
            if heard[-1] == 50:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for number in range(50):
            hub.tell("task.open", number=number)
            if number % 7 == 0:
                await trio.testing.wait_all_tasks_blocked()
    assert heard == list(range(1, 51))


# -- the outbox ------------------------------------------------------------------------------------


async def test_what_waits_leaves_in_order_many_to_a_frame() -> None:
    outbox, (ours, theirs) = Outbox(), loop(ALICE)
    sent = [Renewed(task_id=TASK, fence=n + 1, ttl_ms=0) for n in range(600)]
    for message in sent:
        outbox.put(message)
    heard: list[WorkMessage] = []
    frames = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.pump, ours)
        while len(heard) < len(sent):
            heard += await receive(theirs)
            frames += 1
        nursery.cancel_scope.cancel()
    assert heard == sent
    assert frames == 3


async def test_no_frame_is_longer_than_a_link_carries() -> None:
    outbox, (ours, theirs) = Outbox(), loop(ALICE)
    for _ in range(20):
        outbox.put(Leases(envelope=bytes(300_000)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.pump, ours)
        count = 0
        while count < 20:
            frame = await theirs.receive()
            assert len(frame) <= ids.WORK_FRAME_BYTES_MAX // 4
            count += frame.count(b"leases")
        nursery.cancel_scope.cancel()


async def test_a_full_outbox_ends_even_while_a_send_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "MESSAGES_MAX", 4)
    monkeypatch.setattr(outbox_module, "FRAME_MESSAGES_MAX", 1)
    outbox, (ours, _theirs) = Outbox(), loop(ALICE)
    codes: list[str] = []

    async def pump() -> None:
        try:
            await outbox.pump(ours)
        except Unavailable as error:
            codes.append(error.code)

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump)
            for _ in range(200):
                outbox.put(Bye(code="idle"))
                await trio.testing.wait_all_tasks_blocked()
    assert codes == ["slow_peer"]


async def test_an_outbox_that_was_ended_before_it_was_pumped_ends_at_once() -> None:
    outbox, (ours, _theirs) = Outbox(), loop(ALICE)
    outbox.end()
    with trio.fail_after(WAIT_S):
        with pytest.raises(Unavailable) as caught:
            await outbox.pump(ours)
    assert caught.value.code == "replaced"
