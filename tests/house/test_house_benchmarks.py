"""The benchmark measures what it says: its clients, its sums, what it installs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report, thin
from benchmarks.errors import BenchError
from benchmarks.ours import Ours
from benchmarks.processes import Group
from benchmarks.rounds import Measured, percentile

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "benchmarks" / "requirements.lock"


def test_the_lock_pins_each_package_to_hashes_and_names_no_place() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.read_text().strip())
    assert len(entries) > 10
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert not re.search(r"https?:|index-url|find-links", LOCK.read_text())


def test_a_percentile_is_one_of_the_times() -> None:
    times = [float(n) for n in range(1, 101)]
    assert [percentile(times, part) for part in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == 7.0


def test_a_ratio_below_one_is_a_loss() -> None:
    ours = {
        "tasks_per_s": 200.0,
        "single_p50_ms": 8.0,
        "single_p99_ms": 20.0,
        "cpu_ms_per_task_all": 2.0,
    }
    theirs = {
        "tasks_per_s": 100.0,
        "single_p50_ms": 4.0,
        "single_p99_ms": 40.0,
        "cpu_ms_per_task_all": 2.0,
    }
    found = report.ratios(ours, theirs)
    assert found == {"tasks_per_s": 2.0, "single_p50": 0.5, "single_p99": 2.0, "cpu": 1.0}


def test_figures_are_the_median_round_and_cpu_of_all_tasks() -> None:
    measured = Measured(
        rates=[100.0, 300.0, 200.0],
        accepted=[1.0],
        singles_s=[0.001, 0.002],
        cpu_s={"owner": 3.0},
        tasks=3000,
    )
    figures = measured.summary()
    assert figures["tasks_per_s"] == 200.0
    assert figures["cpu_ms_per_task"] == {"owner": 1.0}


EVENTS = b"".join(
    b'id: %d\nevent: task.settled\ndata: {"kind":"task.settled","task_id":"%d"}\n\n' % (n, n)
    for n in range(5)
)


@given(chunks=st.lists(st.integers(1, 60), max_size=12), reads=st.lists(st.integers(1, 40)))
def test_events_are_read_wherever_chunks_and_reads_are_cut(
    chunks: list[int], reads: list[int]
) -> None:
    wire, at = b"", 0
    for size in [*chunks, len(EVENTS)]:
        if piece := EVENTS[at : at + size]:
            wire += b"%x\r\n%s\r\n" % (len(piece), piece)
        at += size
    events = thin.Events.__new__(thin.Events)
    events.link = thin.Connection.__new__(thin.Connection)
    events.link.buffer, events.text = b"", b""
    seen, at = [], 0
    for size in [*reads, len(wire)]:
        events.link.buffer += wire[at : at + size]
        at += size
        seen += [event["task_id"] for event in events.arrived()]
    assert seen == ["0", "1", "2", "3", "4"]


def test_a_client_that_dies_is_an_error_with_its_words(tmp_path: Path) -> None:
    with Group() as group:
        client = group.start(
            "client",
            [sys.executable, "-c", "raise SystemExit('no such node')"],
            log=tmp_path / "client.log",
            piped=True,
        )
        with pytest.raises(BenchError, match="no such node"):
            client.order(do="batch", tasks=1, submitters=1)


def test_our_side_settles_all_that_it_is_given(tmp_path: Path) -> None:
    with Group() as group:
        ours = Ours(tmp_path, group)
        ours.start()
        answer = ours.client.order(do="batch", tasks=40, submitters=4)
        assert answer["took_s"] >= answer["accepted_s"] > 0
        assert len(ours.client.order(do="single", tasks=3)["times_s"]) == 3
        assert ours.counts() == {"open": 0, "leased": 0}
        pids = [process.pid for process in group.all.values()]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
