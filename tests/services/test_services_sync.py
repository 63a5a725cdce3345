"""What a node believes of others, and how two that met come to know the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from fake_mesh import Air, FakeMesh
from hypothesis import given, settings
from machines_owning import WAIT_S
from wire_samples import NETWORK, NOW_MS, card_of, key_of, peer_of, seal

from zerostate_node.errors import NotFound, Refused, WireError
from zerostate_node.ledger.journal import SqliteJournal
from zerostate_node.machines import roster as machine
from zerostate_node.services import roster as roster_module
from zerostate_node.services.hub import Hub
from zerostate_node.services.roster import Roster
from zerostate_node.services.sync import Sync
from zerostate_node.wire import codec, ids
from zerostate_node.wire.cards import open_card, reissue_card, sign_card, supersedes
from zerostate_node.wire.messages import (
    BlobRef,
    Bye,
    NodeAdvert,
    SyncHello,
    SyncItems,
    SyncMessage,
    SyncWant,
)


class NoJournal:
    """Forgets everything: for tests that are not about the disk."""

    async def owe(self, receipts: Any) -> None: ...

    async def paid(self, acks: Any) -> None: ...

    async def owed(self, owner: str = "") -> list[Any]:
        return []

    async def remember(self, kind: str, items: Any) -> None: ...

    async def forget(self, kind: str, keys: Any) -> None: ...

    async def recall(self, kind: str, now_ms: int) -> list[Any]:
        return []


class Clock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


class Neighbour:
    """A node that only knows and syncs."""

    def __init__(self, air: Air, name: str, *, network: str = NETWORK, journal: Any = None) -> None:
        self.clock = Clock()
        self.peer = peer_of(name)
        self.mesh = FakeMesh(air, self.peer)
        self.conduct: list[tuple[str, str]] = []
        self.roster = Roster(
            network=network,
            journal=journal or NoJournal(),
            hub=Hub(self.clock),
            now_ms=self.clock,
        )
        self.sync = Sync(
            mesh=self.mesh,
            roster=self.roster,
            network=network,
            program="test/0",
            own_advert=lambda: advert(name) if network == NETWORK else b"",
            behaved=lambda peer, what: self.conduct.append((peer, what)),
        )
        self.mesh.on_peer(self.sync.peer_changed)
        self.mesh.handle(ids.SYNC, self.sync.serve, frame_bytes_max=ids.SYNC_FRAME_BYTES_MAX)

    def knows(self) -> set[bytes]:
        return {raw for kind in ("manifests", "nodes") for _, raw in self.roster.items(kind)}


def advert(name: str, issued_ms: int = NOW_MS) -> bytes:
    return seal(NodeAdvert(region="eu", slots=2), ids.NODE, name, now_ms=issued_ms)


def card(
    version: str = "1.0.0",
    *,
    author: str = "author",
    sequence: int = 1,
    ttl_ms: int = 86_400_000,
    code: bytes = b"a module",
) -> bytes:
    draft = {
        "name": "word-count",
        "version": version,
        "description": "Counts words.",
        "skills": [],
    }
    publisher = ids.did_of(peer_of(author))
    module = BlobRef(digest=ids.digest_of(code), size_bytes=len(code))
    drafted = card_of(
        draft=draft, publisher=publisher, sequence=sequence, ttl_ms=ttl_ms, module=module
    )
    return sign_card(drafted, key_of(author))


def reissued(raw: bytes, sequence: int, status: str, author: str = "author") -> bytes:
    again = reissue_card(raw, sequence=sequence, now_ms=NOW_MS, ttl_ms=86_400_000, status=status)
    return sign_card(again, key_of(author))


@asynccontextmanager
async def air() -> AsyncIterator[Air]:
    async with trio.open_nursery() as nursery:
        yield Air(nursery)
        nursery.cancel_scope.cancel()


async def eventually(done: Any) -> None:
    with trio.fail_after(WAIT_S):
        while not done():
            await trio.testing.wait_all_tasks_blocked()


# -- the machine and the rule for cards say the same -----------------------------------------------

ISSUES = [
    card(sequence=1),
    card(sequence=2),
    card(sequence=2, ttl_ms=90_000_000),
    reissued(card(sequence=1), 2, "deprecated"),
    reissued(card(sequence=1), 2, "revoked"),
    reissued(card(sequence=1), 3, "revoked"),
    reissued(card(sequence=1), 3, "active"),
]


@given(order=st.lists(st.sampled_from(ISSUES), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_the_roster_machine_and_supersedes_agree_on_every_history(order: list[bytes]) -> None:
    entry: machine.Entry = machine.Absent()
    stands = None
    for raw in order:
        new = open_card(raw, now_ms=NOW_MS)
        fact = machine.CardHeard(new.sequence, new.key, new.expires_ms, new.status == "revoked")
        done = machine.step(entry, fact)
        takes = stands is None or supersedes(stands, new)
        assert (machine.Keep() in done.effects) == takes
        entry = done.state
        stands = new if takes else stands
        assert isinstance(entry, machine.Revoked) == (
            stands is not None and stands.status == "revoked"
        )


# -- the roster ------------------------------------------------------------------------------------


async def test_a_node_that_restarts_knows_what_it_knew(tmp_path: Path) -> None:
    old = card()
    gone = reissued(card("2.0.0"), 2, "revoked")
    async with air() as shared, SqliteJournal(tmp_path / "journal.sqlite") as journal:
        bob = Neighbour(shared, "bob", journal=journal)
        assert bob.roster.hear_manifest(old)
        assert bob.roster.hear_manifest(gone)
        assert bob.roster.hear_advert(advert("carol"))
        await bob.roster.flush()
        again = Neighbour(shared, "bob", journal=journal)
        await again.roster.recall()
        assert again.knows() == bob.knows()
        assert again.roster.revoked == bob.roster.revoked != frozenset()


async def test_what_expired_is_swept_and_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "MANIFESTS_PER_PUBLISHER_MAX", 2)
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        assert bob.roster.hear_manifest(card("1.0.0", ttl_ms=1_000))
        assert bob.roster.hear_manifest(card("2.0.0", ttl_ms=1_000))
        assert not bob.roster.hear_manifest(card("3.0.0"))
        bob.clock.now_ms += 1_001
        await bob.roster._sweep()
        assert bob.roster.manifests == {}
        assert bob.roster._by_publisher == {}
        assert bob.roster.hear_manifest(card("3.0.0"))


async def test_a_revoked_agent_does_not_come_back(tmp_path: Path) -> None:
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        first = card()
        assert bob.roster.hear_manifest(first)
        assert bob.roster.hear_manifest(reissued(first, 2, "revoked"))
        assert not bob.roster.hear_manifest(reissued(first, 9, "active"))
        assert bob.roster.find("word-count").status == "revoked"
        assert len(bob.roster.revoked) == 1


async def test_a_version_never_changes_what_it_runs() -> None:
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        assert bob.roster.hear_manifest(card())
        assert not bob.roster.hear_manifest(card(sequence=9, code=b"other code"))
        assert bob.roster.find("word-count").module.size_bytes == len(b"a module")


async def test_a_name_that_two_publishers_use_is_ambiguous_and_an_unknown_one_is_not_found() -> (
    None
):
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        bob.roster.hear_manifest(card())
        bob.roster.hear_manifest(card(author="carol"))
        with pytest.raises(Refused):
            bob.roster.find("word-count")
        with pytest.raises(NotFound):
            bob.roster.find("nothing")


async def test_an_older_advert_does_not_replace_a_newer_one() -> None:
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        assert bob.roster.hear_advert(advert("carol", NOW_MS + 5))
        assert not bob.roster.hear_advert(advert("carol", NOW_MS))
        assert not bob.roster.hear_advert(advert("carol", NOW_MS + 5))
        with pytest.raises(WireError):
            bob.roster.hear_advert(advert("carol", NOW_MS - 10_000_000))


# -- sync ------------------------------------------------------------------------------------------


async def test_a_late_joiner_pulls_everything() -> None:
    async with air() as shared:
        alice, late = Neighbour(shared, "alice"), Neighbour(shared, "bob")
        for number in range(60):
            assert alice.roster.hear_manifest(card(f"1.0.{number}"))
        for name in ("carol", "dave", "erin"):
            assert alice.roster.hear_advert(advert(name))
        await late.sync.pull(alice.peer)
        assert late.knows() == alice.knows() | {advert("alice")}
        assert late.roster.manifests == alice.roster.manifests
        assert await late.sync.pull(alice.peer) == 0


async def test_neighbours_that_meet_pull_from_each_other_without_being_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with air() as shared:
        alice, bob = Neighbour(shared, "alice"), Neighbour(shared, "bob")
        alice.roster.hear_manifest(card("1.0.0"))
        bob.roster.hear_manifest(card("2.0.0"))
        await shared.nursery.start(alice.sync.run)
        await shared.nursery.start(bob.sync.run)
        alice.mesh.meet(bob.peer)
        bob.mesh.meet(alice.peer)
        with trio.fail_after(5):
            while not (len(alice.roster.manifests) == len(bob.roster.manifests) == 2):  # noqa: ASYNC110
                await trio.sleep(0.05)  # of a clock that jumps


POOL = [card(f"1.{n}.0", author=author) for n in range(8) for author in ("author", "carol")] + [
    reissued(card(f"1.{n}.0"), 2, "revoked") for n in range(0, 8, 3)
]


@given(ours=st.sets(st.sampled_from(POOL)), theirs=st.sets(st.sampled_from(POOL)))
@settings(max_examples=25, deadline=None)
def test_two_neighbours_end_with_the_same_whatever_they_began_with(
    ours: Iterable[bytes], theirs: Iterable[bytes]
) -> None:
    async def meet() -> None:
        async with air() as shared:
            alice, bob = Neighbour(shared, "alice"), Neighbour(shared, "bob")
            for node, known in ((alice, ours), (bob, theirs)):
                for raw in known:
                    node.roster.hear_manifest(raw)
            await alice.sync.pull(bob.peer)
            await bob.sync.pull(alice.peer)
            assert alice.roster.sums("manifests") == bob.roster.sums("manifests")
            assert dict(alice.roster.items("manifests")) == dict(bob.roster.items("manifests"))
            assert alice.roster.revoked == bob.roster.revoked

    trio.run(meet)


async def test_hostile_items_are_dropped_and_cost_conduct_and_good_ones_beside_them_stay() -> None:
    good = card()
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        mallory = FakeMesh(shared, peer_of("mallory"))

        async def serve(link: Any) -> None:
            await link.receive()
            every = tuple(bytes([i]) * 8 for i in range(256))
            hello = SyncHello(network=NETWORK, program="evil/0", manifests=every)
            await link.send(codec.encode(hello))
            await link.receive()
            forged = good.replace(b"Counts words.", b"Steals words.")
            items = (b"", b"{}", forged, good[:-9], good)
            await link.send(codec.encode(SyncItems(kind="manifests", items=items)))

        mallory.handle(ids.SYNC, serve, frame_bytes_max=ids.SYNC_FRAME_BYTES_MAX)
        assert await bob.sync.pull(mallory.peer) == 1
        assert bob.knows() == {good}
        assert bob.conduct == [(mallory.peer, "malformed")] * 4


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage",
        codec.encode(SyncItems(kind="nodes", items=())),
        codec.encode(SyncHello(network=NETWORK, program="x", manifests=(b"12345678",))),
    ],
)
async def test_a_neighbour_that_breaks_the_rules_costs_one_session_and_conduct(
    answer: bytes,
) -> None:
    async with air() as shared:
        bob = Neighbour(shared, "bob")
        mallory = FakeMesh(shared, peer_of("mallory"))

        async def serve(link: Any) -> None:
            await link.receive()
            await link.send(answer)

        mallory.handle(ids.SYNC, serve, frame_bytes_max=ids.SYNC_FRAME_BYTES_MAX)
        await bob.sync._session(mallory.peer)
        assert bob.conduct == [(mallory.peer, "malformed")]


@pytest.mark.parametrize("frames", [(b"garbage",), (codec.encode(Bye(code="idle")),)])
async def test_one_who_asks_wrongly_is_not_answered(frames: tuple[bytes, ...]) -> None:
    async with air() as shared:
        alice, bob = Neighbour(shared, "alice"), FakeMesh(shared, peer_of("bob"))
        link = await bob.open(alice.peer, ids.SYNC, frame_bytes_max=1)
        for frame in frames:
            await link.send(frame)
        await eventually(lambda: bool(alice.conduct))
        assert alice.conduct == [(bob.peer, "malformed")]


async def test_what_is_given_is_what_was_asked_for_and_not_held_already() -> None:
    async with air() as shared:
        alice, bob = Neighbour(shared, "alice"), FakeMesh(shared, peer_of("bob"))
        for number in range(20):
            alice.roster.hear_manifest(card(f"1.0.{number}"))
        link = await bob.open(alice.peer, ids.SYNC, frame_bytes_max=1)
        await link.send(codec.encode(SyncHello(network=NETWORK, program="x")))
        await link.receive()
        items = alice.roster.items("manifests")
        have, rest = items[:7], {raw for _, raw in items[7:]}
        want = SyncWant(
            kind="manifests", buckets=tuple(range(256)), have=tuple(key for key, _ in have)
        )
        await link.send(codec.encode(want))
        got = codec.decode(await link.receive(), SyncMessage, bytes_max=1 << 20)
        assert set(got.items) == rest


async def test_a_peer_of_another_network_is_named_and_dropped_on_both_sides(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with air() as shared:
        alice, bob = Neighbour(shared, "alice"), Neighbour(shared, "bob", network="main")
        alice.roster.hear_manifest(card())
        assert await bob.sync.pull(alice.peer) == 0
        await trio.sleep(1)
        assert "'test'" in bob.sync.wrong_networks[alice.peer]
        assert "'main'" in alice.sync.wrong_networks[bob.peer]
        assert alice.peer in bob.mesh.banned
        assert bob.peer in alice.mesh.banned
        assert bob.knows() == set()
