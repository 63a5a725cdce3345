"""Owner and worker over one stream: whole jobs, liars, broken streams, full disks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fake_sandbox import GuestFailed
from ledger_samples import ref
from machines_owning import T0, TTL, WAIT_S, Clock
from machines_workshop import (
    MODULE,
    NETWORK,
    OWNER,
    Stranger,
    done,
    joined,
    link_of,
    owning,
    stranger,
    working,
)
from wire_samples import key_of, peer_of

from zerostate_node.errors import Unavailable
from zerostate_node.machines import task as machine
from zerostate_node.services import outbox as outbox_module
from zerostate_node.wire import codec, envelope
from zerostate_node.wire.messages import (
    Ack,
    BlobRef,
    Bye,
    Cancel,
    Claim,
    Done,
    Hello,
    Lease,
    LeaseBatch,
    Leases,
    Log,
    Outcome,
    Price,
    Release,
    Renew,
    Renewed,
    RetryPolicy,
)

MODULE_DIGEST = ref(MODULE).digest


# -- whole jobs ------------------------------------------------------------------------------------


async def test_a_task_is_run_by_a_worker_and_settled_with_its_signed_receipt(
    tmp_path: Path,
) -> None:
    async with owning(tmp_path) as office, working(tmp_path) as bob, joined(office, bob):
        task_id = await office.submit(b"hello", price=Price(per_call_ucr=7), budget_ucr=100)
        (event,) = await office.here.told("task.settled")
        assert (event.task_id, event.body["outcome"]) == (task_id, "completed")
        ledger = office.here.ledger.inner
        assert await ledger.output_inline(task_id) == b"HELLO"
        row = await ledger.task(task_id)
        assert row is not None
        assert (row.worker, row.price_ucr) == (bob.peer, 7)
        sealed = await ledger.receipt(task_id)
        assert sealed is not None
        assert (await office.here.told("task.log"))[0].body["text"] == "shouting\n"
        await nothing_owed(bob)


async def test_two_slots_run_two_tasks_at_once(tmp_path: Path) -> None:
    both = trio.Event()
    async with owning(tmp_path) as office, working(tmp_path, slots=2) as bob:

        async def meet(stdin: bytes, on_log: Any) -> bytes:
            if bob.sandbox.running == 2:
                both.set()
            await both.wait()
            return stdin

        bob.sandbox.guests[MODULE_DIGEST] = meet
        async with joined(office, bob):
            await office.submit(b"one")
            await office.submit(b"two")
            await office.here.told("task.settled", 2)
        assert bob.sandbox.running_most == 2


async def test_a_hundred_tasks_are_shared_by_two_workers(tmp_path: Path) -> None:
    async with owning(tmp_path) as office:
        async with working(tmp_path, "bob") as bob, working(tmp_path, "carol") as carol:
            async with joined(office, bob), joined(office, carol):
                async with trio.open_nursery() as nursery:
                    for _ in range(100):
                        nursery.start_soon(office.submit)
                await office.here.told("task.settled", 100)
        assert office.here.driver.chronicle.settled == {"completed": 100}
        assert bob.worker.runs + carol.worker.runs == 100
        assert min(bob.worker.runs, carol.worker.runs) > 10


async def test_a_large_output_is_fetched_before_the_task_settles(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, working(tmp_path) as bob:

        async def much(stdin: bytes, on_log: Any) -> bytes:
            return b"x" * 200_000

        bob.sandbox.guests[MODULE_DIGEST] = much
        office.outputs[bob.peer] = bob.blobs
        async with joined(office, bob):
            task_id = await office.submit()
            await office.here.told("task.settled")
        assert office.fetched == [ref(b"x" * 200_000).digest]
        row = await office.here.ledger.inner.task(task_id)
        assert row is not None
        assert row.output == ref(b"x" * 200_000)


async def test_a_lease_does_not_lapse_while_its_large_output_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, fetching, go = Clock(), trio.Event(), trio.Event()
    async with owning(tmp_path, clock) as office, stranger(office) as mallory:

        async def slowly(peer: Any, blob: BlobRef) -> None:
            fetching.set()
            await go.wait()

        monkeypatch.setattr(office.owner, "_fetch_output", slowly)
        monkeypatch.setattr(office.owner, "_lease_ttl_ms", 60)
        await mallory.greet()
        task_id = await office.submit()
        big = done(await mallory.lease(), stdout=b"x" * 30_000)
        await mallory.say(Done(receipt=big.receipt, output=None))
        await fetching.wait()
        for _ in range(3):
            clock.now_ms += 50
            await mallory.hear_one(Renewed)
        state = office.here.driver.tasks[task_id].state
        assert isinstance(state, machine.Leased)
        assert state.until_ms > T0 + 60
        go.set()
        assert (await mallory.hear_one(Ack)).verdict == "settled"


async def test_a_guests_failure_is_the_tasks_outcome(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, working(tmp_path) as bob:

        async def trap(stdin: bytes, on_log: Any) -> bytes:
            raise GuestFailed(Outcome.TRAPPED, "unreachable")

        bob.sandbox.guests[MODULE_DIGEST] = trap
        async with joined(office, bob):
            await office.submit()
            (event,) = await office.here.told("task.settled")
        assert event.body["outcome"] == "trapped"
        assert office.here.conduct == [(bob.peer, "guest_failed")]


async def test_a_cancelled_run_is_killed_and_the_task_says_cancelled(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, working(tmp_path) as bob:

        async def forever(stdin: bytes, on_log: Any) -> bytes:
            on_log("running")
            await trio.sleep_forever()
            return b""

        bob.sandbox.guests[MODULE_DIGEST] = forever
        async with joined(office, bob):
            task_id = await office.submit()
            await office.here.told("task.log")
            fact = machine.CancelAsked("enough", office.here.clock())
            office.here.driver.post(task_id, fact)
            (event,) = await office.here.told("task.settled")
            assert event.body["outcome"] == "cancelled"
            await nothing_owed(bob)
        assert bob.sandbox.running == 0


async def test_a_worker_whose_disk_is_full_gives_the_task_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(tmp_path) as office:
        async with working(tmp_path, "bob") as bob, working(tmp_path, "carol") as carol:
            async with joined(office, bob):

                async def much(stdin: bytes, on_log: Any) -> bytes:
                    return b"x" * 40_000

                async def full(data: bytes) -> BlobRef:
                    raise Unavailable("no space left on device", code="disk_full")

                monkeypatch.setattr(bob.blobs, "put", full)
                bob.sandbox.guests[MODULE_DIGEST] = much
                await office.submit()
                await office.here.told("task.retry", worker=bob.peer)
                async with joined(office, carol):
                    (event,) = await office.here.told("task.settled")
        assert (event.body["worker"], event.body["outcome"]) == (carol.peer, "completed")


async def nothing_owed(hand: Any) -> None:
    with trio.fail_after(WAIT_S):
        while await hand.journal.owed() or hand.worker.held:
            await trio.testing.wait_all_tasks_blocked()


# -- hello -----------------------------------------------------------------------------------------


async def test_a_worker_of_another_network_is_told_so(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, working(tmp_path, network="main") as bob:
        ours, theirs = link_of(bob.peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.owner.serve, theirs)
            assert await bob.worker.serve_owner(ours) == "wrong_network"
        assert office.owner.streams == {}
        assert bob.conduct == []


async def test_an_owner_that_leaves_takes_no_new_workers(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        office.owner.draining = True
        answer = await mallory.greet()
        assert isinstance(answer, Bye)
        assert answer.code == "draining"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"\xc1 not msgpack", "malformed"),
        (codec.encode(()), "wrong_shape"),
        (codec.encode((Claim(credits=1),)), "no_hello"),
        (b"", "malformed"),
    ],
)
async def test_a_first_frame_that_is_no_hello_ends_the_stream_and_costs_conduct(
    tmp_path: Path, first: bytes, code: str
) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.link.send(first)
        assert await mallory.ended() == code
        assert office.conduct == [(peer_of("mallory"), "malformed")]


# -- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b"garbage",
        codec.encode((Ack(task_id="01K73ZBZ00ABCDEFGHJKMNPQRS", fence=1, verdict="settled"),)),
        codec.encode((Done(receipt=b"not an envelope"),)),
        codec.encode((Hello(network=NETWORK, program="again/0"),)),
        b"\x91\x81\xa4type\xa4evil",
    ],
)
async def test_a_frame_that_breaks_the_rules_ends_the_stream_and_costs_conduct(
    tmp_path: Path, frame: bytes
) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        await mallory.link.send(frame)
        assert await mallory.ended() != ""
        assert office.conduct == [(peer_of("mallory"), "malformed")]
        with trio.fail_after(WAIT_S):
            while office.owner.streams:
                await trio.testing.wait_all_tasks_blocked()


async def test_an_owner_that_breaks_the_rules_loses_its_worker(tmp_path: Path) -> None:
    for frame in (b"garbage", codec.encode((Claim(credits=1),))):
        async with working(tmp_path) as bob, trio.open_nursery() as nursery:
            ours, theirs = link_of(bob.peer)
            owner = Stranger(theirs)
            nursery.start_soon(bob.worker.serve_owner, ours)
            await owner.hear_one(Hello)
            await owner.say(Hello(network=NETWORK, program="evil/0"))
            await owner.hear_one(Claim)
            await theirs.send(frame)
            assert await owner.ended() != ""
            assert bob.conduct == [(OWNER, "malformed")]


# -- liars -----------------------------------------------------------------------------------------

OTHER = ref(b"something else")
LIES: dict[str, dict[str, Any]] = {
    "the digest of other output": {"output": BlobRef(digest=OTHER.digest, size_bytes=5)},
    "another length": {"output": BlobRef(digest=ref(b"HELLO").digest, size_bytes=6)},
    "another module": {"module": OTHER},
    "another input": {"input": OTHER},
    "another version": {"agent_version": "9.9.9"},
    "other args": {"args": ("--faster",)},
    "a script": {"script": OTHER},
    "another owner": {"owner": peer_of("carol")},
    "another attempt": {"attempt": 7},
    "too much fuel": {"fuel_used": 10**15},
    "a higher price": {"price_ucr": 1},
    "more output than allowed": {"output": BlobRef(digest=OTHER.digest, size_bytes=1 << 40)},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_receipt_with_a_lie_is_rejected_and_the_task_is_run_by_another(
    tmp_path: Path, lie: str
) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        task_id = await office.submit()
        lease = await mallory.lease()
        await mallory.say(done(lease, **LIES[lie]))
        ack = await mallory.hear_one(Ack)
        assert (ack.task_id, ack.verdict) == (task_id, "rejected")
        assert office.conduct == [(peer_of("mallory"), "lied")]
        async with working(tmp_path) as bob, joined(office, bob):
            (event,) = await office.here.told("task.settled")
            assert (event.body["worker"], event.body["outcome"]) == (bob.peer, "completed")
        row = await office.here.ledger.inner.task(task_id)
        assert row is not None
        assert row.fence == 2


async def test_an_empty_output_under_the_digest_of_other_bytes_is_a_lie(tmp_path: Path) -> None:
    """Such a receipt would settle the task on bytes that nobody has."""
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        await office.submit()
        message = done(await mallory.lease(), output=BlobRef(digest=OTHER.digest, size_bytes=0))
        await mallory.say(Done(receipt=message.receipt, output=None))
        assert (await mallory.hear_one(Ack)).verdict == "rejected"


async def test_a_receipt_signed_by_another_worker_ends_the_stream(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        await office.submit()
        lease = await mallory.lease()
        await mallory.say(done(lease, by="carol"))
        assert await mallory.ended() == "not_allowed"
        assert office.conduct == [(peer_of("mallory"), "malformed")]
        assert office.here.driver.chronicle.settled == {}


async def test_a_forged_signature_ends_the_stream(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        await office.submit()
        good = done(await mallory.lease())
        forged = good.receipt[:-1] + bytes([good.receipt[-1] ^ 1])  # one byte in 16 is 0 already
        await mallory.say(Done(receipt=forged, output=good.output))
        assert await mallory.ended() == "bad_signature"
        assert office.conduct == [(peer_of("mallory"), "bad_signature")]


async def test_an_output_that_is_not_to_be_had_costs_the_worker_the_task(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        await office.submit()
        big = done(await mallory.lease(), stdout=b"x" * 30_000)
        await mallory.say(Done(receipt=big.receipt, output=None))
        await office.here.told("task.retry", worker=peer_of("mallory"))
        assert office.here.conduct == [(peer_of("mallory"), "lost")]


async def test_a_worker_cannot_speak_for_the_lease_of_another(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office, "bob") as bob:
        await bob.greet()
        task_id = await office.submit()
        lease = await bob.lease()
        async with stranger(office) as mallory:
            await mallory.greet(credits=0)
            await mallory.say(
                Renew(task_id=task_id, fence=1, progress=99),
                Log(task_id=task_id, fence=1, seq=0, text="owned"),
                Release(task_id=task_id, fence=1),
                done(lease),
            )
            renewed = await mallory.hear_one(Renewed)
            assert renewed.ttl_ms == 0
        await bob.say(done(lease, by="bob"))
        assert (await bob.hear_one(Ack)).verdict == "settled"
        events = office.here.hub.since(0)
        assert not [e for e in events if e.kind in ("task.log", "task.progress", "task.retry")]


# -- again and again -------------------------------------------------------------------------------


async def test_a_receipt_sent_twice_settles_once_and_is_answered_twice(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet()
        await office.submit()
        message = done(await mallory.lease())
        await mallory.say(message)
        assert (await mallory.hear_one(Ack)).verdict == "settled"
        await mallory.say(message)
        assert (await mallory.hear_one(Ack)).verdict == "settled"
        assert office.here.driver.chronicle.settled == {"completed": 1}


async def test_a_worker_that_comes_back_keeps_its_run_and_delivers_it(tmp_path: Path) -> None:
    """The stream breaks while a guest runs; its lease lasts beyond the grace for a lost stream."""
    clock, go = Clock(), trio.Event()
    async with owning(tmp_path, clock) as office, working(tmp_path) as bob:

        async def wait(stdin: bytes, on_log: Any) -> bytes:
            on_log("running")
            await go.wait()
            return b"done"

        bob.sandbox.guests[MODULE_DIGEST] = wait
        async with joined(office, bob) as link:
            task_id = await office.submit()
            await office.here.told("task.log")
            await link.aclose()
            with trio.fail_after(WAIT_S):
                while office.owner.streams or bob.worker.streams:
                    await trio.testing.wait_all_tasks_blocked()
        async with joined(office, bob):
            state = office.here.driver.tasks[task_id].state
            with trio.fail_after(WAIT_S):
                while getattr(state, "until_ms", 0) < clock.now_ms + TTL:
                    await trio.testing.wait_all_tasks_blocked()
                    state = office.here.driver.tasks[task_id].state
            clock.now_ms += machine.STREAM_LOST_GRACE_MS + 1
            await office.here.turned()
            go.set()
            (event,) = await office.here.told("task.settled")
        assert (event.body["worker"], event.body["fence"]) == (bob.peer, 1)


async def test_a_worker_that_comes_back_says_at_once_that_it_still_runs(tmp_path: Path) -> None:
    """Before it claims: a lost stream has less time than a lease has until its next renewal."""
    async with owning(tmp_path) as office, stranger(office, "bob") as witness:
        await witness.greet()
        await office.submit()
        lease = await witness.lease()
    started = trio.Event()
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:

        async def forever(stdin: bytes, on_log: Any) -> bytes:
            started.set()
            await trio.sleep_forever()
            return b""

        bob.sandbox.guests[MODULE_DIGEST] = forever
        ours, theirs = link_of(bob.peer)
        owner = Stranger(theirs)
        nursery.start_soon(bob.worker.serve_owner, ours)
        await owner.hear_one(Hello)
        await owner.say(Hello(network=NETWORK, program="test/0"))
        await owner.say(sealed((lease,), by="owner"))
        await started.wait()
        await theirs.aclose()
        ours, theirs = link_of(bob.peer)
        owner = Stranger(theirs)
        nursery.start_soon(bob.worker.serve_owner, ours)
        await owner.hear_one(Hello)
        await owner.say(Hello(network=NETWORK, program="test/0"))
        kinds: list[type[Any]] = []
        while Claim not in kinds:
            kinds += [type(message) for message in await owner.hear()]
        assert kinds[0] is Renew
        nursery.cancel_scope.cancel()


async def test_receipts_wait_in_the_journal_for_the_owner_to_come_back(tmp_path: Path) -> None:
    clock, go = Clock(), trio.Event()
    async with working(tmp_path) as bob:

        async def wait(stdin: bytes, on_log: Any) -> bytes:
            on_log("running")
            await go.wait()
            return b"done"

        bob.sandbox.guests[MODULE_DIGEST] = wait
        async with owning(tmp_path, clock) as office, joined(office, bob):
            task_id = await office.submit()
            await office.here.told("task.log")
        go.set()
        with trio.fail_after(WAIT_S):
            while not await bob.journal.owed():
                await trio.testing.wait_all_tasks_blocked()
    async with working(tmp_path) as bob, owning(tmp_path, clock) as office, joined(office, bob):
        (event,) = await office.here.told("task.settled")
        assert (event.task_id, event.body["outcome"]) == (task_id, "completed")
        await nothing_owed(bob)
        assert bob.worker.runs == 0


async def test_a_draining_worker_hands_back_what_has_not_started(tmp_path: Path) -> None:
    go = trio.Event()
    async with owning(tmp_path) as office, working(tmp_path, slots=1) as bob:

        async def wait(stdin: bytes, on_log: Any) -> bytes:
            on_log("running")
            await go.wait()
            return b"done"

        bob.sandbox.guests[MODULE_DIGEST] = wait
        async with joined(office, bob):
            first = await office.submit(b"one")
            await office.here.told("task.log")
            second = await office.submit(b"two")
            await office.here.told("task.leased", 2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bob.worker.drain, WAIT_S)
                (event,) = await office.here.told("task.retry")
                assert event.task_id == second
                go.set()
            (settled,) = await office.here.told("task.settled")
        assert settled.task_id == first
        assert ("lost" in [what for _, what in office.here.conduct]) is False
        assert office.here.driver.waiting_for(second) == "no worker is connected to this node"


async def test_a_second_stream_of_a_worker_ends_the_first(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office) as old:
        await old.greet()
        async with stranger(office) as new:
            await new.greet()
            await old.ended()
            task_id = await office.submit()
            assert (await new.lease()).spec.task_id == task_id


async def test_a_worker_that_does_not_read_loses_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MESSAGES_MAX", 8)
    monkeypatch.setattr(outbox_module, "FRAME_MESSAGES_MAX", 1)
    async with owning(tmp_path) as office, stranger(office) as mallory:
        await mallory.greet(credits=0)
        asked = Renew(task_id="01K73ZBZ00ABCDEFGHJKMNPQRS", fence=1)
        with trio.fail_after(WAIT_S):
            while peer_of("mallory") in office.owner.streams:
                try:
                    await mallory.say(*[asked] * 16)
                except Unavailable:
                    break
                await trio.testing.wait_all_tasks_blocked()
            while office.owner.streams:
                await trio.testing.wait_all_tasks_blocked()
        assert office.here.driver.dispatch.claimers == {}


# -- hostile owners --------------------------------------------------------------------------------


def sealed(leases: tuple[Lease, ...], by: str) -> Leases:
    return Leases(
        envelope=envelope.seal(
            LeaseBatch(leases=leases),
            type="lease/1",
            network=NETWORK,
            key=key_of(by),
            sender=peer_of(by),
            id="01K73ZBZ00ABCDEFGHJKMNPQRS",
            now_ms=T0,
            ttl_ms=1_000,
        )
    )


async def test_an_owner_cannot_stop_or_acknowledge_the_work_of_another(tmp_path: Path) -> None:
    go = trio.Event()
    async with owning(tmp_path) as office, working(tmp_path) as bob:

        async def wait(stdin: bytes, on_log: Any) -> bytes:
            on_log("running")
            await go.wait()
            return b"done"

        bob.sandbox.guests[MODULE_DIGEST] = wait
        async with joined(office, bob), trio.open_nursery() as nursery:
            task_id = await office.submit()
            await office.here.told("task.log")
            ours, theirs = link_of(bob.peer, peer_of("mallory"))
            mallory = Stranger(theirs)
            nursery.start_soon(bob.worker.serve_owner, ours)
            await mallory.hear_one(Hello)
            await mallory.say(Hello(network=NETWORK, program="evil/0"))
            await mallory.hear_one(Claim)
            await mallory.say(
                Cancel(task_id=task_id, fence=1),
                Renewed(task_id=task_id, fence=1, ttl_ms=0),
                Ack(task_id=task_id, fence=1, verdict="rejected"),
            )
            await mallory.say(Bye(code="idle"))
            await mallory.ended()
            go.set()
            (event,) = await office.here.told("task.settled")
            nursery.cancel_scope.cancel()
        assert event.body["outcome"] == "completed"


async def test_leases_signed_by_another_peer_end_the_stream(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office, "bob") as witness:
        await witness.greet()
        await office.submit()
        lease = await witness.lease()
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:
        ours, theirs = link_of(bob.peer)
        owner = Stranger(theirs)
        nursery.start_soon(bob.worker.serve_owner, ours)
        await owner.hear_one(Hello)
        await owner.say(Hello(network=NETWORK, program="evil/0"))
        await owner.say(sealed((lease,), by="mallory"))
        assert await owner.ended() == "not_allowed"
        assert bob.worker.held == {}


async def test_a_lease_for_nonsense_is_refused_and_the_worker_lives(tmp_path: Path) -> None:
    async with owning(tmp_path) as office, stranger(office, "bob") as witness:
        await witness.greet()
        await office.submit(agent_id="no such thing", retry=RetryPolicy(attempts_max=1))
        lease = await witness.lease()
    async with working(tmp_path) as bob, trio.open_nursery() as nursery:
        ours, theirs = link_of(bob.peer)
        owner = Stranger(theirs)
        nursery.start_soon(bob.worker.serve_owner, ours)
        await owner.hear_one(Hello)
        await owner.say(Hello(network=NETWORK, program="evil/0"))
        await owner.say(sealed((lease, lease), by="owner"))
        message = await owner.hear_one(Done)
        assert b"bad_agent_id" in message.receipt
        assert b"refused" in message.receipt
        assert len(bob.worker.held) == 1
        nursery.cancel_scope.cancel()
