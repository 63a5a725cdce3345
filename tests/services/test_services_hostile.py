"""What strangers may try, and what it may cost: hoarders, liars, floods, clocks that jump."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fake_mesh import Air, FakeMesh
from ledger_samples import ref
from machines_owning import T0, TTL, WAIT_S, Clock, house
from machines_until import until
from machines_workshop import (
    MODULE,
    NETWORK,
    OWNER,
    Stranger,
    link_of,
    owning,
    stranger,
    working,
)
from wire_samples import card_of, key_of, peer_of, seal

from zerostate_node.blobs.folder import FolderBlobs
from zerostate_node.errors import ConductError, NotFound, Unavailable
from zerostate_node.ledger.journal import SqliteJournal
from zerostate_node.machines import task as machine
from zerostate_node.ports.mesh import Heard
from zerostate_node.services import roster as roster_module
from zerostate_node.services import worker as worker_module
from zerostate_node.services.courier import Courier
from zerostate_node.services.herald import Herald
from zerostate_node.services.hub import Hub
from zerostate_node.services.roster import Roster
from zerostate_node.services.scout import IDLE_S, Scout
from zerostate_node.services.steady import steady_clock
from zerostate_node.units import MIB, PeerId
from zerostate_node.wire import envelope, ids
from zerostate_node.wire.cards import sign_card
from zerostate_node.wire.messages import (
    Ack,
    Announcement,
    BlobRef,
    Claim,
    Hello,
    Lease,
    LeaseBatch,
    Leases,
    NodeAdvert,
    OpenWork,
    Outcome,
    Renew,
    Renewed,
    TaskSpec,
)

MALLORY = peer_of("mallory")


# -- against an owner ------------------------------------------------------------------------------


async def test_a_lease_that_is_renewed_for_ever_ends_long_before_the_deadline(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with house(tmp_path / "ledger.sqlite", clock, unstarted_ms_max=60_000) as here:
        mallory = here.worker("mallory", credits=1)
        day_ms = 86_400_000
        task_id = await here.submit(deadline_ms=T0 + day_ms)
        (lease,) = await mallory.leased()
        most_ms = 60_000 + lease.spec.limits.wall_ms_max
        while clock.now_ms < T0 + most_ms + TTL:
            here.driver.post(task_id, machine.RenewAsked("mallory", 1, TTL, clock()))
            clock.now_ms += 5_000
            await here.turned()
        (event,) = await here.told("task.retry")
        assert event.task_id == task_id
        assert here.conduct == [("mallory", "lost")]
        assert all(0 <= what[3] <= TTL for what in mallory.of("renewed"))


async def test_a_worker_that_dies_with_many_leases_is_blamed_once(tmp_path: Path) -> None:
    clock = Clock()
    async with house(tmp_path / "ledger.sqlite", clock) as here:
        bob = here.worker("bob", credits=100)
        for number in range(40):
            await here.submit(number, deadline_ms=T0 + 600_000)
        await bob.leased(40)
        here.driver.worker_lost("bob", bob)
        await here.turned()
        clock.now_ms += machine.STREAM_LOST_GRACE_MS
        await here.told("task.retry", 40)
        assert here.conduct == [("bob", "lost")]


async def test_a_stranger_holds_few_leases_whatever_it_claims(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.say(Hello(network=NETWORK, program="evil/0", slots=1 << 31))
        await mallory.say(Claim(credits=4096))
        for _ in range(100):
            await office.submit()
        for _ in range(3):
            await office.here.turned()
        held = sum(isinstance(e.state, machine.Leased) for e in office.here.driver.tasks.values())
        assert 32 <= held <= 64
        async with working(tmp_path) as bob:
            ours, theirs = link_of(bob.peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(office.owner.serve, theirs)
                nursery.start_soon(bob.worker.serve_owner, ours)
                settled = await office.here.told("task.settled", 30)
                nursery.cancel_scope.cancel()
        assert {event.body["worker"] for event in settled} == {bob.peer}


async def test_a_worker_that_chatters_is_read_slowly_and_others_are_not(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet(credits=0)
        nonsense = Renew(task_id="01K73ZBZ00ABCDEFGHJKMNPQRS", fence=1)
        heard = 0

        async def count() -> None:
            nonlocal heard
            while True:
                heard += sum(isinstance(m, Renewed) for m in await mallory.hear())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            with trio.move_on_after(10):
                while True:
                    await mallory.say(*[nonsense] * 256)
            nursery.cancel_scope.cancel()
        assert 1_000 < heard < 11_000


async def test_a_cancel_that_was_asked_for_holds_over_a_restart(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "ledger.sqlite"
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        task_id = await here.submit(deadline_ms=T0 + 600_000)
        await bob.leased()
        here.driver.post(task_id, machine.CancelAsked("enough", clock()))
        await bob.until(lambda it: bool(it.of("cancel")))
    async with house(path, clock) as here:
        bob = here.worker("bob", credits=1)
        here.driver.post(task_id, machine.RenewAsked("bob", 1, TTL, clock()))
        await bob.until(lambda it: it.of("renewed") == [("renewed", task_id, 1, 0)])
        clock.now_ms += TTL
        (event,) = await here.told("task.settled")
        assert (event.task_id, event.body["outcome"]) == (task_id, Outcome.CANCELLED.value)


def test_a_wall_clock_that_jumps_moves_no_lease() -> None:
    wall_ns, since_ns = [1_760_000_000_000_000_000], [5_000_000_000]
    now_ms = steady_clock(lambda: wall_ns[0], lambda: since_ns[0])
    assert now_ms() == 1_760_000_000_000
    wall_ns[0] -= 3_600_000_000_000
    since_ns[0] += 250_000_000
    assert now_ms() == 1_760_000_000_250


# -- against a worker ------------------------------------------------------------------------------


def spec(number: int, **changes: Any) -> TaskSpec:
    fields: dict[str, Any] = {
        "task_id": ids.ulid(T0 + number, b"0123456789"),
        "agent_id": f"{ids.did_of(peer_of('author'))}/shout",
        "agent_version": "1.0.0",
        "module": ref(MODULE),
        "input": ref(b"hello"),
        "created_ms": T0,
        "deadline_ms": T0 + 600_000,
    }
    return TaskSpec(**(fields | changes))


def leases(*specs: TaskSpec, by: str = "owner", input: bytes | None = b"hello") -> Leases:
    batch = tuple(Lease(attempt=1, fence=1, ttl_ms=60_000, spec=s, input=input) for s in specs)
    return Leases(
        envelope=envelope.seal(
            LeaseBatch(leases=batch),
            type="lease/1",
            network=NETWORK,
            key=key_of(by),
            sender=peer_of(by),
            id="01K73ZBZ00ABCDEFGHJKMNPQRS",
            now_ms=T0,
            ttl_ms=1_000,
        )
    )


async def greeted(link: Any) -> Stranger:
    """An owner written by hand, after hello."""
    owner = Stranger(link, "owner")
    await owner.hear_one(Hello)
    await owner.say(Hello(network=NETWORK, program="evil/0"))
    return owner


async def test_an_owner_that_gives_far_more_than_was_claimed_is_cut_off(tmp_path: Path) -> None:
    async with working(tmp_path, slots=1) as bob, trio.open_nursery() as nursery:

        async def never(stdin: bytes, on_log: Any) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        bob.sandbox.guests[ref(MODULE).digest] = never
        ours, theirs = link_of(bob.peer)
        nursery.start_soon(bob.worker.serve_owner, ours)
        owner = await greeted(theirs)
        code = ""
        async with trio.open_nursery() as inner:

            async def flood() -> None:
                for start in range(0, 10_000, 64):
                    await owner.say(leases(*[spec(n) for n in range(start, start + 64)]))

            inner.start_soon(flood)
            code = await owner.ended()
            inner.cancel_scope.cancel()
        assert code == "not_allowed"
        assert len(bob.worker.held) <= worker_module.LEASES_PER_OWNER_MAX
        assert bob.conduct == [(OWNER, "malformed")]
        nursery.cancel_scope.cancel()


async def test_an_owner_that_answers_no_receipt_gets_no_more_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "UNANSWERED_MAX", 8)
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:
        ours, theirs = link_of(bob.peer)
        nursery.start_soon(bob.worker.serve_owner, ours)
        owner = await greeted(theirs)
        await owner.say(leases(*[spec(n) for n in range(10)]))
        stream = bob.worker.streams[OWNER]
        with trio.fail_after(WAIT_S):
            while len(stream.delivered) < 10 or stream.claimed:
                await trio.testing.wait_all_tasks_blocked()
        owed = await bob.journal.owed()
        assert len(owed) == 10
        await owner.say(*[Ack(task_id=o.task_id, fence=1, verdict="settled") for o in owed])
        with trio.fail_after(WAIT_S):
            while not stream.claimed:
                await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_receipts_of_an_owner_that_is_gone_wait_on_disk_and_not_in_memory(
    tmp_path: Path,
) -> None:
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:
        ours, theirs = link_of(bob.peer)
        nursery.start_soon(bob.worker.serve_owner, ours)
        owner = await greeted(theirs)
        await owner.say(leases(*[spec(n) for n in range(10)]))
        with trio.fail_after(WAIT_S):
            while len(await bob.journal.owed()) < 10:
                await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
        with trio.fail_after(WAIT_S):
            while bob.worker.held:
                await trio.testing.wait_all_tasks_blocked()
        assert len(await bob.journal.owed()) == 10
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("input", "changes"),
    [
        (None, {"input": BlobRef(digest=ids.digest_of(b"not empty"), size_bytes=0)}),
        (b"hello", {"input": BlobRef(digest=ids.digest_of(b"hello"), size_bytes=6)}),
        (b"hello", {"input": BlobRef(digest=ids.digest_of(b"jello"), size_bytes=5)}),
        (b"hello", {"module": BlobRef(digest=ref(MODULE).digest, size_bytes=1)}),
    ],
)
async def test_a_worker_signs_nothing_for_bytes_that_are_not_what_the_lease_names(
    tmp_path: Path, input: bytes | None, changes: dict[str, Any]
) -> None:
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:
        ours, theirs = link_of(bob.peer)
        nursery.start_soon(bob.worker.serve_owner, ours)
        owner = await greeted(theirs)
        await owner.say(leases(spec(0, **changes), input=input))
        with trio.fail_after(WAIT_S):
            while not await bob.journal.owed():
                await trio.testing.wait_all_tasks_blocked()
        (owed,) = await bob.journal.owed()
        assert b"unfetchable" in owed.envelope
        assert bob.worker.runs == 0
        nursery.cancel_scope.cancel()


async def test_a_module_that_never_comes_holds_up_no_other_run(tmp_path: Path) -> None:
    async with working(tmp_path, slots=1) as bob, trio.open_nursery() as nursery:
        asked = trio.Event()

        async def stall(peer: PeerId, ref: BlobRef) -> None:
            asked.set()
            await trio.sleep_forever()

        bob.worker._runner._courier._fetch = stall
        ours, theirs = link_of(bob.peer, MALLORY)
        nursery.start_soon(bob.worker.serve_owner, ours)
        mallory = await greeted(theirs)
        nowhere = BlobRef(digest=ids.digest_of(b"nowhere"), size_bytes=7)
        await mallory.say(leases(*[spec(n, module=nowhere) for n in range(32)], by="mallory"))
        with trio.fail_after(WAIT_S):
            await asked.wait()
        ours, theirs = link_of(bob.peer)
        nursery.start_soon(bob.worker.serve_owner, ours)
        owner = await greeted(theirs)
        await owner.say(leases(spec(100)))
        with trio.fail_after(WAIT_S):
            while not await bob.journal.owed():
                await trio.testing.wait_all_tasks_blocked()
        (owed,) = await bob.journal.owed()
        assert owed.task_id == spec(100).task_id
        nursery.cancel_scope.cancel()


async def test_a_peer_is_not_blamed_for_a_size_that_another_made_up(tmp_path: Path) -> None:
    conduct: list[tuple[str, str]] = []
    error = ConductError("the peer says 9", code="wrong_size")

    async def fetch(peer: PeerId, ref: BlobRef) -> None:
        raise error

    async with FolderBlobs(tmp_path / "blobs", bytes_max=MIB) as blobs:
        courier = Courier(
            me=peer_of("bob"),
            blobs=blobs,
            fetch=fetch,
            more_peers=lambda: [peer_of("alice")],
            behaved=lambda p, what: conduct.append((p, what)),
        )
        with pytest.raises(NotFound):
            await courier.bring(BlobRef(digest=ids.digest_of(b"x"), size_bytes=8))
        assert conduct == []
        error = ConductError("other bytes", code="wrong_digest")
        with pytest.raises(NotFound):
            await courier.bring(BlobRef(digest=ids.digest_of(b"x"), size_bytes=8))
        assert conduct == [(peer_of("alice"), "lied")]


async def test_owners_that_only_hold_the_line_make_room_for_one_with_work(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:
        air = Air(nursery)
        mesh = FakeMesh(air, bob.peer)

        async def hold(link: Any) -> None:
            await greeted(link)
            with contextlib.suppress(Unavailable):
                while True:
                    await link.receive()

        owners = [peer_of(name) for name in ("m1", "m2", "m3", "honest")]
        for peer in owners:
            FakeMesh(air, peer).handle(ids.WORK, hold, frame_bytes_max=MIB)
        scout = Scout(
            me=bob.peer,
            mesh=mesh,
            worker=bob.worker,
            owner=None,
            owners_max=2,
            score_of=lambda p: 0,
        )
        await nursery.start(scout.run)
        work = Announcement(kinds=(OpenWork(agent_id="did:key:zabc/x", count=1),))
        for peer in owners[:3]:  # more than there are places, before any has been dialled
            scout.heard_work(peer, work)
        await trio.sleep(1)
        await until(lambda: len(bob.worker.streams) == 2)
        scout.heard_work(owners[3], work)
        await trio.sleep(1)
        assert owners[3] not in bob.worker.streams
        await trio.sleep(IDLE_S)
        scout.heard_work(owners[3], work)
        await trio.sleep(1)
        await until(lambda: owners[3] in bob.worker.streams)
        await until(lambda: len(bob.worker.streams) == 2)
        nursery.cancel_scope.cancel()


# -- against what a node knows ---------------------------------------------------------------------


def card(author: str, version: str = "1.0.0", **more: Any) -> bytes:
    drafted = card_of(
        draft={
            "name": "word-count",
            "version": version,
            "description": "Counts words.",
            "skills": [],
        },
        publisher=ids.did_of(peer_of(author)),
        sequence=1,
        ttl_ms=86_400_000,
        module=BlobRef(digest=ids.digest_of(b"m"), size_bytes=1),
        **more,
    )
    return sign_card(drafted, key_of(author))


async def test_a_directory_full_of_strangers_still_takes_newcomers_and_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "MANIFESTS_MAX", 40)
    monkeypatch.setattr(roster_module, "NODES_MAX", 20)
    clock = Clock()
    async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        roster = Roster(
            network=NETWORK,
            journal=journal,
            hub=Hub(clock),
            now_ms=clock,
            me=ids.did_of(peer_of("alice")),
        )
        assert roster.hear_manifest(card("alice"))
        for number in range(200):
            assert roster.hear_manifest(card(f"sybil{number}"))
            roster.hear_advert(
                seal(NodeAdvert(slots=1), ids.NODE, f"sybil{number}", now_ms=clock.now_ms)
            )
        assert roster.hear_manifest(card("honest"))
        assert roster.find(f"{ids.did_of(peer_of('honest'))}/word-count")
        assert roster.find(f"{ids.did_of(peer_of('alice'))}/word-count")
        assert len(roster.manifests) <= 40
        assert len(roster.adverts) <= 20
        assert sum(roster._by_publisher.values()) == len(roster.manifests)
        assert roster._bytes == sum(len(m.raw) for m in roster.manifests.values())
        await roster.flush()
        kept = {key for key, _, _ in await journal.recall("manifests", clock.now_ms)}
        assert kept == {"@".join(key) for key in roster.manifests}


async def test_one_publisher_with_many_cards_makes_room_before_others_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(roster_module, "MANIFESTS_MAX", 60)
    clock = Clock()
    async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        roster = Roster(network=NETWORK, journal=journal, hub=Hub(clock), now_ms=clock)
        for number in range(10):
            roster.hear_manifest(card(f"honest{number}"))
        for number in range(300):
            roster.hear_manifest(card("flooder", f"1.0.{number}"))
        others = {m.publisher for m in roster.manifests.values()}
        assert len(roster.manifests) <= 60
        assert len(others) >= 9  # the sample may miss once in a great while


async def test_gossip_that_is_nonsense_is_its_authors_fault_and_not_its_bearers(
    tmp_path: Path,
) -> None:
    conduct: list[tuple[str, str]] = []
    clock = Clock()
    async with trio.open_nursery() as nursery:
        mesh = FakeMesh(Air(nursery), peer_of("bob"))
        async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            herald = Herald(
                mesh=mesh,
                roster=Roster(network=NETWORK, journal=journal, hub=Hub(clock), now_ms=clock),
                key=key_of("bob"),
                network=NETWORK,
                shards=1,
                advert=NodeAdvert,
                open_kinds=dict,
                on_work=lambda peer, work: None,
                behaved=lambda peer, what: conduct.append((peer, what)),
                new_id=lambda: "01K73ZBZ00ABCDEFGHJKMNPQRS",
                now_ms=clock,
            )
            await nursery.start(herald.run)
            topic = ids.topic(NETWORK, "work")
            with trio.fail_after(WAIT_S):
                while topic not in mesh._topics:
                    await trio.testing.wait_all_tasks_blocked()
            heard = Heard(topic, peer_of("relay"), b"nonsense", MALLORY)
            for channel in mesh._topics[topic]:
                await channel.send(heard)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert conduct == [(MALLORY, "malformed")]
