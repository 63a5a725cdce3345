"""The main job across real processes: a worker without an address runs what a gateway accepted."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from e2e_nodes import Lab, eventually, spin_input, spin_module

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_worker_that_does_not_listen_runs_what_a_gateway_accepted(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    bob = lab.worker("bob", seed).start()
    alice.has_workers(1)
    alice.publish("markdown", (EXAMPLES / "markdown" / "markdown.wasm").read_bytes())

    task = alice.settled(alice.submit("markdown", {"text": "# Hi *you*"}), within_s=30)

    assert ("completed", bob.peer) == (task["outcome"], task["worker"])
    assert bob.info()["listen_addrs"] == []
    result = alice.http.get(f"/api/v1/tasks/{task['task_id']}/result")
    assert result.content == b"<h1>Hi <em>you</em></h1>\n"
    receipt = alice.http.get(f"/api/v1/tasks/{task['task_id']}/receipt").content
    verified = seed.http.post("/api/v1/receipts/verify", content=receipt).json()
    assert verified["signature"] is True
    assert verified["worker"] == bob.peer
    assert verified["receipt"]["fuel_used"] == task["fuel_used"] > 0

    # Another node, that never saw the task, runs it again and gets the same bits.
    replayed = seed.http.post("/api/v1/receipts/verify?replay=1", content=receipt)
    assert replayed.status_code == 200, replayed.text
    again = replayed.json()
    assert (
        again["output_matches"],
        again["fuel_matches"],
        again["outcome_matches"],
    ) == (True, True, True)
    assert again["got"] == again["expected"]

    forged = bytearray(receipt)
    forged[len(forged) // 2] ^= 1
    refused = seed.http.post("/api/v1/receipts/verify", content=bytes(forged))
    assert refused.status_code == 400


def test_large_inputs_and_outputs_travel_by_digest(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    lab.worker("bob", seed).start()
    alice.has_workers(1)
    alice.publish(
        "markdown",
        (EXAMPLES / "markdown" / "markdown.wasm").read_bytes(),
        limits={"fuel_max": 50_000_000_000, "memory_bytes_max": 268_435_456},
    )
    text = "".join(f"# {i}\n\n{os.urandom(40).hex()}\n\n" for i in range(4000))
    blob = alice.http.post("/api/v1/blobs", content=text.encode()).json()

    task = alice.settled(alice.submit("markdown", {"digest": blob["digest"]}), within_s=60)

    assert task["outcome"] == "completed", task["detail"]
    output = alice.http.get(f"/api/v1/tasks/{task['task_id']}/result").content
    assert len(output) == task["output_bytes"] > 300_000
    assert output.count(b"<h1>") == 4000


def test_tasks_spread_over_workers_and_each_settles_once(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    workers = [lab.worker(name, seed) for name in ("bob", "carol", "dave")]
    for worker in workers:
        worker.start(wait=False)
    for worker in workers:
        worker.wait_ready()
    alice.has_workers(3)
    alice.publish("spin", spin_module())
    warm = [alice.submit("spin", spin_input(1)) for _ in range(6)]
    for task_id in warm:
        alice.settled(task_id, within_s=60)

    task_ids = [alice.submit("spin", spin_input(5), key=f"task-{i}") for i in range(200)]

    tasks = [alice.settled(task_id, within_s=90) for task_id in task_ids]
    assert len(set(task_ids)) == 200
    assert Counter(t["outcome"] for t in tasks) == {"completed": 200}
    spread = Counter(t["worker"] for t in tasks)
    print("spread", dict(spread))
    counts = [spread[worker.peer] for worker in workers]
    for one in counts:
        for other in counts:
            assert one <= 0.6 * (one + other), spread
    settled = Counter(line["task"] for line in alice.logged("task settled"))
    assert all(settled[task_id] == 1 for task_id in task_ids)
    # A repeated key opens nothing new.
    assert alice.submit("spin", spin_input(5), key="task-7") == task_ids[7]


def test_a_late_joiner_knows_every_agent_within_ten_seconds(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    for i in range(12):
        alice.publish(f"agent-{i}", spin_module())
    bob = lab.worker("bob", seed).start()
    eventually(
        lambda: len(bob.get("/api/v1/agents")["agents"]) == 12,
        within_s=10,
        what="12 agents at the late joiner",
    )


def test_a_node_that_restarts_within_three_seconds_of_publishing_is_heard(lab: Lab) -> None:
    seed = lab.seed()
    bob = lab.worker("bob", seed).start()
    alice = lab.owner("alice", seed)
    alice.publish("first", spin_module())
    alice.keep_port()
    alice.kill()
    alice.start()
    alice.publish("second", spin_module())
    eventually(
        lambda: {"first", "second"} <= {a["name"] for a in bob.get("/api/v1/agents")["agents"]},
        within_s=10,
        what="both agents at bob",
    )


def test_one_node_alone_does_the_whole_job(lab: Lab) -> None:
    alice = lab.node("alice").start()
    alice.has_workers(1)
    alice.publish(
        "markdown",
        (EXAMPLES / "markdown" / "markdown.wasm").read_bytes(),
        skills=[
            {"id": "md", "name": "md", "description": "to HTML", "tags": ["markdown"]},
        ],
    )
    answer = alice.http.post(
        "/api/v1/tasks", json={"capability": "markdown", "input": {"text": "hi"}}
    )
    assert answer.status_code == 202, answer.text
    task = alice.settled(answer.json()["task_id"], within_s=30)
    assert ("completed", alice.peer) == (task["outcome"], task["worker"])
    assert all(check["ok"] for check in alice.get("/api/v1/doctor")["checks"])
