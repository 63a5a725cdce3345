"""What dies, and what must not be lost: kill -9 of worker, owner and relay; SIGTERM."""

from __future__ import annotations

import signal
import time

from e2e_nodes import Lab, NodeProcess, eventually, spin_input, spin_module

LEASE_S = 6.0
SLOW = 2_000  # millions of turns: some seconds of guest time on this machine


def two_workers(lab: Lab, *, lease_ttl_s: float) -> tuple[NodeProcess, dict[str, NodeProcess]]:
    """An owner with the spin agent published, and two workers, by peer id."""
    seed = lab.seed()
    alice = lab.owner("alice", seed, owner__lease_ttl_s=lease_ttl_s)
    workers = [lab.worker(name, seed).start() for name in ("bob", "carol")]
    alice.has_workers(2)
    alice.publish("spin", spin_module())
    for task_id in [alice.submit("spin", spin_input(1)) for _ in range(4)]:
        alice.settled(task_id, within_s=30)
    return alice, {worker.peer: worker for worker in workers}


def test_a_killed_workers_task_completes_on_another_within_the_lease(lab: Lab) -> None:
    alice, workers = two_workers(lab, lease_ttl_s=LEASE_S)
    task_id = alice.submit("spin", spin_input(SLOW))
    first = workers.pop(alice.leased_to(task_id, within_s=10))
    (second,) = workers.values()

    first.kill()
    died = time.monotonic()
    eventually(
        lambda: alice.task(task_id)["worker"] == second.peer,
        within_s=LEASE_S + 5,
        what="the other worker has the lease",
    )
    print("moved on after", round(time.monotonic() - died, 2), "s")

    task = alice.settled(task_id, within_s=60)
    assert ("completed", second.peer, 2) == (task["outcome"], task["worker"], task["fence"])
    assert [a["outcome"] for a in task["attempts"]] == ["lost", "completed"]


def test_a_zombies_late_receipt_is_refused(lab: Lab) -> None:
    """One worker is frozen past its lease; the other does the task; the first then delivers."""
    alice, workers = two_workers(lab, lease_ttl_s=3)
    task_id = alice.submit("spin", spin_input(SLOW))
    zombie = workers.pop(alice.leased_to(task_id, within_s=10))
    (second,) = workers.values()

    assert zombie.process is not None
    zombie.process.send_signal(signal.SIGSTOP)
    try:
        task = alice.settled(task_id, within_s=60)
    finally:
        zombie.process.send_signal(signal.SIGCONT)
    assert ("completed", second.peer) == (task["outcome"], task["worker"])

    eventually(
        lambda: [x for x in alice.logged("late receipt answered") if x["task"] == task_id],
        within_s=40,
        what="the late receipt answered",
    )
    assert [x["verdict"] for x in alice.logged("late receipt answered")] == ["stale"]
    after = alice.task(task_id)
    assert (second.peer, 2) == (after["worker"], after["fence"])


def test_a_killed_owner_comes_back_with_every_acknowledged_task(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed, owner__lease_ttl_s=LEASE_S)
    bob = lab.worker("bob", seed).start()
    alice.has_workers(1)
    alice.publish("spin", spin_module())
    alice.settled(alice.submit("spin", spin_input(1)), within_s=30)
    task_ids = [alice.submit("spin", spin_input(SLOW // 4)) for _ in range(4)]
    alice.leased_to(task_ids[0], within_s=10)
    peer = alice.peer

    alice.keep_port()
    alice.kill()
    alice.start()

    assert alice.peer == peer
    for task_id in task_ids:
        task = alice.settled(task_id, within_s=60)
        assert ("completed", bob.peer) == (task["outcome"], task["worker"]), task
    settled = [line["task"] for line in alice.logged("task settled")]
    assert sorted(t for t in settled if t in task_ids) == sorted(task_ids)
    assert {a["name"] for a in alice.get("/api/v1/agents")["agents"]} == {"spin"}


def test_nodes_behind_a_relay_go_on_when_it_is_killed_and_comes_back(lab: Lab) -> None:
    """Neither alice nor bob listens: all they have is the relay."""
    seed = lab.seed()
    alice = lab.owner("alice", seed, mesh__listen=[])
    lab.worker("bob", seed).start()
    alice.has_workers(1, within_s=40)
    alice.publish("spin", spin_module())
    first = alice.settled(alice.submit("spin", spin_input(1)), within_s=40)
    assert first["outcome"] == "completed"

    seed.keep_port()
    seed.kill()
    task_id = alice.submit("spin", spin_input(1))
    seed.start()

    assert alice.settled(task_id, within_s=60)["outcome"] == "completed"
    eventually(lambda: alice.info()["relays"], within_s=30, what="a reservation again")


def test_sigterm_drains_what_runs_and_hands_back_what_does_not(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    bob = lab.worker("bob", seed).start()
    alice.has_workers(1)
    alice.publish("spin", spin_module())
    alice.settled(alice.submit("spin", spin_input(1)), within_s=30)
    task_ids = [alice.submit("spin", spin_input(SLOW // 2)) for _ in range(3)]
    alice.leased_to(task_ids[0], within_s=10)

    assert bob.terminate() == 0
    running = alice.settled(task_ids[0], within_s=5)
    assert ("completed", bob.peer, 1) == (running["outcome"], running["worker"], running["attempt"])

    carol = lab.worker("carol", seed).start()
    for task_id in task_ids[1:]:
        assert alice.settled(task_id, within_s=60)["worker"] == carol.peer
    assert alice.terminate() == 0


def test_a_cancelled_task_ends_cancelled_and_frees_its_worker(lab: Lab) -> None:
    alice = lab.node("alice").start()
    alice.has_workers(1)
    alice.publish("spin", spin_module())
    alice.settled(alice.submit("spin", spin_input(1)), within_s=30)
    task_id = alice.submit("spin", spin_input(20 * SLOW))
    alice.leased_to(task_id, within_s=10)

    answer = alice.http.post(f"/api/v1/tasks/{task_id}/cancel", json={"reason": "enough"})

    assert answer.status_code == 200, answer.text
    task = alice.settled(task_id, within_s=8)
    assert (task["outcome"], task["detail"]) == ("cancelled", "enough")
    assert alice.settled(alice.submit("spin", spin_input(1)), within_s=20)["outcome"] == "completed"
