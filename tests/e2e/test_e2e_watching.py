"""What a submitter sees while a task runs: log lines, progress, and one trace id all the way."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import wasmtime
from e2e_nodes import Lab, NodeProcess, eventually, spin_input, spin_module

# Says a line, reports progress, spins a while, says another, writes its result.
TALK_WAT = """
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "halfway there\\n::progress 50\\n")
  (data (i32.const 200) "almost\\n")
  (data (i32.const 300) "result")
  (func $say (param $fd i32) (param $at i32) (param $n i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $n))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16))))
  (func $spin (local $left i64)
    (local.set $left (i64.const 1200000000))
    (block $end (loop $again
      (br_if $end (i64.eqz (local.get $left)))
      (local.set $left (i64.sub (local.get $left) (i64.const 1)))
      (br $again))))
  (func (export "_start")
    (call $say (i32.const 2) (i32.const 100) (i32.const 28))
    (call $spin)
    (call $say (i32.const 2) (i32.const 200) (i32.const 7))
    (call $say (i32.const 1) (i32.const 300) (i32.const 6))))
"""


class Watcher(threading.Thread):
    """Follows a node's event stream until a task settles."""

    def __init__(self, node: NodeProcess) -> None:
        super().__init__(daemon=True)
        self.events: list[dict[str, Any]] = []
        self._node = node

    def run(self) -> None:
        client = httpx.Client(base_url=self._node.http.base_url, headers=self._node.http.headers)
        with client.stream("GET", "/api/v1/events", timeout=60) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    self.events.append(json.loads(line[5:]))
                    if self.events[-1]["kind"] == "task.settled":
                        return

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def test_log_lines_and_progress_reach_the_submitter_while_the_guest_runs(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    lab.worker("bob", seed).start()
    alice.has_workers(1)
    alice.publish("talk", bytes(wasmtime.wat2wasm(TALK_WAT)))
    alice.publish("spin", spin_module())
    alice.settled(alice.submit("talk"), within_s=60)  # compiled now

    watcher = Watcher(alice)
    watcher.start()
    eventually(watcher.kinds, within_s=20, what="a snapshot")
    task_id = alice.submit("talk")

    eventually(lambda: "task.progress" in watcher.kinds(), within_s=20, what="progress heard")
    assert "task.settled" not in watcher.kinds(), "progress came only after the end"
    assert alice.task(task_id)["progress"] == 50
    watcher.join(60)
    said = "".join(e["body"]["text"] for e in watcher.events if e["kind"] == "task.log")
    assert said == "halfway there\nalmost\n"
    assert watcher.events[0]["kind"] == "snapshot"
    numbers = [event["seq"] for event in watcher.events]
    assert numbers == sorted(numbers)


def test_one_trace_id_runs_from_the_request_into_the_worker(lab: Lab) -> None:
    seed = lab.seed()
    alice = lab.owner("alice", seed)
    bob = lab.worker("bob", seed).start()
    alice.has_workers(1)
    alice.publish("spin", spin_module())
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = alice.http.post(
        "/api/v1/tasks",
        json={"agent": "spin", "input": spin_input(1)},
        headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
    )
    task = alice.settled(answer.json()["task_id"], within_s=30)

    assert trace_id in task["trace"]
    for node, event in ((alice, "task accepted"), (bob, "run finished"), (alice, "task settled")):
        lines = [line for line in node.logged(event) if line["task"] == task["task_id"]]
        assert len(lines) == 1, event
        assert trace_id in lines[0]["trace"]


def test_what_the_node_counts_agrees_with_what_it_did(lab: Lab) -> None:
    alice = lab.node("alice").start()
    alice.has_workers(1)
    alice.publish("spin", spin_module())
    for task_id in [alice.submit("spin", spin_input(1)) for _ in range(5)]:
        alice.settled(task_id, within_s=60)

    counted = {}
    for line in alice.http.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            counted[name] = float(value)
    assert counted["zerostate_tasks_submitted_total"] == 5
    assert counted['zerostate_tasks_settled_total{outcome="completed"}'] == 5
    assert counted["zerostate_tasks_unfinished"] == 0
    assert counted["zerostate_runs_total"] == 5
    assert counted["zerostate_mesh_up"] == 1
    ready = alice.get("/ready")
    assert ready["ready"] is True
    assert {"ledger", "mesh", "sandbox", "disk"} <= {check["name"] for check in ready["checks"]}
