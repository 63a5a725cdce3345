"""Real nodes, and a stranger with a key of its own who lies to all of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e_nodes import Lab, NodeProcess, eventually, spin_input, spin_module
from hostile_peer import Hostile, Worker, hostile, wall_ms
from mesh_nodes import until
from wire_samples import card_of

from zerostate_node.errors import Unavailable
from zerostate_node.ports.mesh import Link
from zerostate_node.units import MIB
from zerostate_node.wire import codec, ids
from zerostate_node.wire.cards import sign_card
from zerostate_node.wire.messages import (
    BlobRef,
    Hello,
    Lease,
    Log,
    Renew,
    SyncHello,
    SyncItems,
    TaskSpec,
)

LEASE_S = 3.0


class Arena:
    """A relay, an owner and one worker with one slot, shared by the tests of this module."""

    def __init__(self, lab: Lab) -> None:
        self.seed = lab.seed()
        self.alice = lab.owner("alice", self.seed, owner__lease_ttl_s=LEASE_S)
        self.bob = lab.worker("bob", self.seed).start()
        self.alice.has_workers(1)
        self.agent = self.alice.publish("spin", spin_module())
        self.runs()

    @property
    def nodes(self) -> tuple[NodeProcess, ...]:
        return self.seed, self.alice, self.bob

    def runs(self, within_s: float = 30) -> str:
        """An honest task still goes through; its id."""
        task_id = self.alice.submit("spin", spin_input(1))
        task = self.alice.settled(task_id, within_s=within_s)
        assert (task["outcome"], task["worker"]) == ("completed", self.bob.peer)
        return task_id

    def unharmed(self) -> None:
        """Everybody lives, nobody honest was refused, and nothing broke inside."""
        honest = {node.peer for node in self.nodes}
        for node in self.nodes:
            assert node.process is not None
            assert node.process.poll() is None, node.log_text()[-3000:]
            banned = {line["peer"] for line in node.logged("peer banned")}
            assert not banned & honest, f"{node.name} banned {banned & honest}"
            assert "Traceback" not in node.log_text()
            assert not node.logged("mesh restarts")
            assert not node.logged("a link handler failed")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    lab = Lab(tmp_path_factory.mktemp("arena"))
    try:
        yield Arena(lab)
    finally:
        lab.end()


@pytest.fixture
async def mallory(arena: Arena) -> AsyncIterator[Hostile]:
    async with hostile(await off(arena.alice.addr)) as liar:
        yield liar


async def off(call: Any, *args: Any, **more: Any) -> Any:
    """A blocking call beside our loop: the liar goes on lying."""
    return await trio.to_thread.run_sync(partial(call, *args, **more))


def rss_bytes(node: NodeProcess) -> int:
    assert node.process is not None
    pages = Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def files_open(node: NodeProcess) -> int:
    assert node.process is not None
    return len(os.listdir(f"/proc/{node.process.pid}/fd"))


# -- a worker that lies ----------------------------------------------------------------------------


async def test_a_hoarder_gets_a_few_leases_and_every_task_still_completes(
    arena: Arena, mallory: Hostile
) -> None:
    alice = arena.alice
    hoarder = await mallory.work_for(alice.peer, slots=1 << 31, credits=4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hoarder.listen)
        tasks = [await off(alice.submit, "spin", spin_input(1)) for _ in range(80)]
        for task_id in tasks:
            task = await off(alice.settled, task_id, within_s=60)
            assert (task["outcome"], task["worker"]) == ("completed", arena.bob.peer)
        assert 0 < len(hoarder.leases) <= 64
        nursery.cancel_scope.cancel()
    arena.unharmed()


async def test_receipts_renewals_and_logs_without_a_lease_change_nothing(
    arena: Arena, mallory: Hostile
) -> None:
    alice = arena.alice
    over = await off(arena.runs)
    worker = await mallory.work_for(alice.peer, credits=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.listen)
        slow = await off(alice.submit, "spin", spin_input(3_000))
        await off(alice.leased_to, slow, within_s=10)
        lease = worker.leases[0] if worker.leases else None
        spec = TaskSpec(
            task_id=slow,
            agent_id=arena.agent["agent_id"],
            agent_version="1.0.0",
            module=BlobRef(digest=ids.digest_of(spin_module()), size_bytes=1),
            input=BlobRef(digest=ids.digest_of(b""), size_bytes=0),
            created_ms=1,
            deadline_ms=2,
        )
        stolen = lease or Lease(attempt=1, fence=1, ttl_ms=1_000, spec=spec)
        with trio.move_on_after(4):
            while True:
                await worker.say(
                    mallory.done(stolen, alice.peer, task_id=over),
                    *[Renew(task_id=over, fence=1, progress=50)] * 100,
                    *[Log(task_id=over, fence=1, seq=0, text="x" * 8_000)] * 20,
                )
        before_s = time.monotonic()
        await off(alice.info)
        assert time.monotonic() - before_s < 5
        nursery.cancel_scope.cancel()
    task = await off(alice.settled, slow, within_s=60)
    assert (task["outcome"], task["worker"]) == ("completed", arena.bob.peer)
    task = await off(alice.task, over)
    assert (task["outcome"], task["worker"], task["attempt"]) == ("completed", arena.bob.peer, 1)
    arena.unharmed()


async def test_a_hundred_work_streams_that_nobody_reads_cost_little(
    arena: Arena, mallory: Hostile
) -> None:
    before = await off(rss_bytes, arena.alice)
    for _ in range(100):
        with trio.move_on_after(5):
            try:
                await mallory.work_for(arena.alice.peer, credits=4096)
            except (Unavailable, AssertionError):
                break  # refused, or banned for it: as good
    await off(arena.runs, within_s=60)
    assert await off(rss_bytes, arena.alice) - before < 64 * MIB
    arena.unharmed()


# -- an owner that lies ----------------------------------------------------------------------------


class Owner:
    """The liar as an owner: gives the same leases on every stream, fetches nothing for anyone."""

    def __init__(self, mallory: Hostile, give: list[Lease]) -> None:
        self.mallory = mallory
        self.give = give
        self.codes: list[str] = []
        self.streams = 0
        mallory.mesh.handle(ids.WORK, self.work, frame_bytes_max=ids.WORK_FRAME_BYTES_MAX)
        mallory.mesh.handle(ids.BLOB, self.stall, frame_bytes_max=MIB)

    async def work(self, link: Link) -> None:
        self.streams += 1
        stream = Worker(self.mallory, link)
        await link.receive()
        await stream.say(Hello(network="dev", program="evil/0"))

        async def push() -> None:
            try:
                for start in range(0, len(self.give), 64):
                    await stream.say(self.mallory.leases(*self.give[start : start + 64]))
            except Unavailable:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            self.codes.append(await stream.listen())
            nursery.cancel_scope.cancel()

    async def stall(self, link: Link) -> None:
        await link.receive()
        await trio.sleep_forever()

    async def is_served(self, owner: Arena) -> None:
        """Wait until the worker works for us."""
        with trio.fail_after(30):
            while not self.streams:
                await self.mallory.advertise()
                await self.mallory.announce(owner.agent["agent_id"])
                await trio.sleep(0.5)


def leases(mallory: Hostile, count: int, module: BlobRef) -> list[Lease]:
    return [
        Lease(
            attempt=1,
            fence=1,
            ttl_ms=3_600_000,
            spec=TaskSpec(
                task_id=ids.ulid(1_760_000_000_000 + n, os.urandom(10)),
                agent_id=f"{mallory.did}/bait",
                agent_version="1.0.0",
                module=module,
                input=BlobRef(digest=ids.digest_of(b""), size_bytes=0),
                created_ms=1,
                deadline_ms=2,
            ),
        )
        for n in range(count)
    ]


async def test_leases_of_modules_that_never_come_hold_up_no_honest_task(
    arena: Arena, mallory: Hostile
) -> None:
    nowhere = BlobRef(digest=ids.digest_of(b"nowhere"), size_bytes=100_000)
    owner = Owner(mallory, leases(mallory, 8, nowhere))
    await owner.is_served(arena)
    await trio.sleep(1)
    for _ in range(3):
        await off(arena.runs, within_s=20)
    arena.unharmed()


async def test_ten_thousand_leases_that_nobody_claimed_end_the_stream(
    arena: Arena, mallory: Hostile
) -> None:
    before = await off(rss_bytes, arena.bob)
    nowhere = BlobRef(digest=ids.digest_of(b"nowhere either"), size_bytes=100_000)
    owner = Owner(mallory, leases(mallory, 10_000, nowhere))
    await owner.is_served(arena)
    await until(lambda: owner.codes, "the stream ended", within_s=30)
    assert owner.codes[0] == "not_allowed"
    await off(arena.runs, within_s=60)
    assert await off(rss_bytes, arena.bob) - before < 96 * MIB
    arena.unharmed()


async def test_a_lease_with_a_made_up_size_turns_the_worker_against_nobody(
    arena: Arena, mallory: Hostile
) -> None:
    """The bait is a module that honest peers have, under a size that is not its own."""
    other = spin_module() + b"\x00\x03\x01a!"  # a custom section: another digest, as valid
    blob = await off(arena.alice.http.post, "/api/v1/blobs", content=other)
    assert blob.status_code == 201, blob.text
    bait = BlobRef(digest=blob.json()["digest"], size_bytes=len(other) - 1)
    owner = Owner(mallory, leases(mallory, 4, bait))
    mallory.mesh.handle(ids.BLOB, lambda link: link.aclose(), frame_bytes_max=MIB)
    await owner.is_served(arena)
    await trio.sleep(2)
    await off(arena.runs)
    arena.unharmed()


# -- a neighbour that lies -------------------------------------------------------------------------


async def test_gossip_that_is_nonsense_turns_no_node_against_who_passed_it_on(
    arena: Arena, mallory: Hostile
) -> None:
    for number in range(40):
        for kind in ("work", "nodes", "manifests"):
            await mallory.gossip(kind, b"nonsense %d" % number)
        far = mallory.seal({"addrs": []}, "node/1", issued_ms=4_000_000_000_000)
        await mallory.gossip("nodes", far)
    await off(
        eventually,
        lambda: any(n.logged("gossip dropped") for n in arena.nodes),
        within_s=10,
        what="the nonsense heard",
    )
    await trio.sleep(1)
    await off(arena.runs)
    arena.unharmed()


async def test_cards_without_end_are_taken_to_a_bound_and_an_honest_one_still_comes_through(
    arena: Arena,
) -> None:
    served = 0

    def flood(liar: Hostile) -> None:
        def card(number: int) -> bytes:
            drafted = card_of(
                draft={
                    "name": "flood",
                    "version": f"1.0.{number}",
                    "description": "x" * 2_000,
                    "skills": [],
                },
                publisher=liar.did,
                now_ms=wall_ms(),
                module=BlobRef(digest=ids.digest_of(b"m"), size_bytes=1),
            )
            return sign_card(drafted, liar.key)

        cards = [card(number) for number in range(1_200)]

        async def serve(link: Link) -> None:
            nonlocal served
            every = tuple(os.urandom(8) for _ in range(256))
            try:
                await link.receive()
                hello = SyncHello(network="dev", program="evil/0", manifests=every)
                await link.send(codec.encode(hello))
                await link.receive()
                for _ in range(100):  # the same again and again: no news
                    for start in range(0, len(cards), 50):
                        some = tuple(cards[start : start + 50])
                        items = SyncItems(kind="manifests", items=some, more=True)
                        await link.send(codec.encode(items))
                        served += len(some)
            except Unavailable:
                return

        liar.mesh.handle(ids.SYNC, serve, frame_bytes_max=ids.SYNC_FRAME_BYTES_MAX)

    before = await off(rss_bytes, arena.alice)
    async with hostile(await off(arena.alice.addr), flood):
        await until(lambda: served >= 2_400, "the flood was pulled", within_s=40)
        published = await off(arena.alice.publish, "honest-after-flood", spin_module())
        path = f"/api/v1/agents/{published['agent_id']}"
        await off(
            eventually,
            lambda: arena.bob.http.get(path).status_code == 200,
            within_s=20,
            what="the honest card at bob",
        )
        await off(arena.runs)
    assert await off(rss_bytes, arena.alice) - before < 64 * MIB
    heard = [line for line in arena.alice.logged("agent heard of") if "/flood" in line["agent"]]
    assert 0 < len(heard) <= 1_000
    arena.unharmed()


# -- a client that lies ----------------------------------------------------------------------------


def test_odd_ids_numbers_and_digests_are_refused_by_name(arena: Arena) -> None:
    http = arena.alice.http
    for path in (
        "/api/v1/tasks/..%2f..%2fetc%2fpasswd",
        "/api/v1/tasks/%00",
        "/api/v1/tasks/" + "0" * 4_000,
        "/api/v1/agents/..%2f..%2f..",
        "/api/v1/agents/did:key:z6Mk/../../x",
        "/api/v1/blobs/sha256:..%2f..%2fidentity.key",
        "/api/v1/blobs/sha256:" + "A" * 64,
        "/api/v1/blobs/sha256:" + "a" * 65,
        "/api/v1/tasks?limit=1000000",
        "/api/v1/tasks?limit=-1",
        "/api/v1/tasks?cursor=%27%3B--",
    ):
        answer = http.get(path)
        assert 400 <= answer.status_code < 500, (path, answer.status_code, answer.text)
        assert answer.headers["content-type"].startswith("application/problem+json"), path
    for body in (
        {"deadline_ms": -1},
        {"timeout_ms": 0},
        {"timeout_ms": -5},
        {"budget_ucr": -1},
        {"limits": {"fuel_max": -1}},
        {"limits": {"wall_ms_max": 1e18}},
        {"limits": {"__class__": 1}},
        {"retry": {"attempts_max": 10**6}},
        {"args": ["x"] * 1_000},
        {"deadline_ms": 10**30},
    ):
        answer = http.post("/api/v1/tasks", json={"agent": "spin", **body})
        assert 400 <= answer.status_code < 500, (body, answer.status_code, answer.text)
    arena.unharmed()


def test_one_key_in_thirty_two_requests_at_once_opens_one_task(arena: Arena) -> None:
    alice = arena.alice
    with ThreadPoolExecutor(16) as pool:
        ids_got = set(
            pool.map(lambda _: alice.submit("spin", spin_input(1), key="the-one"), range(32))
        )
    assert len(ids_got) == 1
    assert alice.settled(ids_got.pop(), within_s=30)["outcome"] == "completed"
    other = alice.http.post(
        "/api/v1/tasks",
        json={"agent": "spin", "input": spin_input(2)},
        headers={"Idempotency-Key": "the-one"},
    )
    assert 400 <= other.status_code < 500
    arena.unharmed()


def test_a_storm_of_cancels_ends_each_task_once(arena: Arena) -> None:
    alice = arena.alice
    tasks = [alice.submit("spin", spin_input(5_000)) for _ in range(4)]

    def cancel(number: int) -> int:
        return alice.http.post(f"/api/v1/tasks/{tasks[number % 4]}/cancel").status_code

    with ThreadPoolExecutor(16) as pool:
        codes = set(pool.map(cancel, range(64)))
    assert codes <= {200, 409, 429, 503}, codes
    for task_id in tasks:
        assert alice.settled(task_id, within_s=30)["outcome"] == "cancelled"
    arena.runs()
    arena.unharmed()


def test_two_hundred_watchers_at_once_are_served_or_refused_and_leave_nothing(
    arena: Arena,
) -> None:
    alice = arena.alice
    before = files_open(alice)
    key = alice.http.headers["authorization"]

    async def watch() -> list[int]:
        limits = httpx.Limits(max_connections=250, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=alice.http.base_url, headers={"authorization": key}, limits=limits, timeout=20
        ) as client:

            async def one() -> int:
                try:
                    async with client.stream("GET", "/api/v1/events") as answer:
                        if answer.status_code == 200:
                            async for _ in answer.aiter_bytes():
                                await asyncio.sleep(1)
                                break
                        return answer.status_code
                except httpx.TransportError:
                    return 0

            return list(await asyncio.gather(*[one() for _ in range(200)]))

    codes = asyncio.run(watch())
    assert set(codes) <= {0, 200, 429, 503}, set(codes)
    assert codes.count(200) > 0
    arena.runs()
    eventually(
        lambda: files_open(alice) <= before + 20, within_s=20, what="the watchers' files closed"
    )
    arena.unharmed()


# -- what is left behind ---------------------------------------------------------------------------


async def test_a_thousand_tasks_and_thirty_reconnects_leave_nothing_behind(arena: Arena) -> None:
    alice, bob = arena.alice, arena.bob

    def many(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            tasks = list(pool.map(lambda _: alice.submit("spin", spin_input(0)), range(count)))
        for task_id in tasks:
            alice.settled(task_id, within_s=60)

    await off(many, 300)
    before = {node.name: (rss_bytes(node), files_open(node)) for node in (alice, bob)}
    for _ in range(3):
        async with hostile(await off(alice.addr)) as liar:
            for _ in range(10):
                worker = await liar.work_for(alice.peer, credits=0)
                await worker.link.aclose()
    await off(many, 700)
    for node in (alice, bob):
        rss, files = before[node.name]
        assert rss_bytes(node) - rss < 24 * MIB, node.name
        assert files_open(node) - files < 24, node.name
    arena.unharmed()
