"""What the node counts, in Prometheus' words; read from the services when scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zerostate_node.ports.mesh import Mesh
from zerostate_node.ports.sandbox import Sandbox
from zerostate_node.services.driver import Driver
from zerostate_node.services.roster import Roster
from zerostate_node.services.standing import Standing
from zerostate_node.services.worker import Worker


class NodeCollector(Collector):
    """Reads the counters of the services; holds none of its own."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        roster: Roster,
        standing: Standing,
        sandbox: Sandbox | None,
        driver: Driver | None,
        worker: Worker | None,
    ) -> None:
        self._mesh = mesh
        self._roster = roster
        self._standing = standing
        self._sandbox = sandbox
        self._driver = driver
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        status = self._mesh.status()
        yield _gauge("mesh_up", "1 while libp2p runs", int(status.up))
        yield _gauge("peers_connected", "Peers connected now", status.peers_connected)
        yield _gauge("anchors_connected", "Bootstrap peers connected", status.anchors_connected)
        yield _gauge("relay_reservations", "Relays that hold a place for us", len(status.relays))
        yield _counter("mesh_restarts", "Times libp2p was restarted", status.restarts)
        yield _counter("gossip_sent", "Messages gossiped", status.gossip_sent)
        yield _counter("gossip_heard", "Messages heard", status.gossip_heard)
        yield _counter("gossip_dropped", "Messages dropped, over budget", status.gossip_dropped)
        yield _gauge("nodes_known", "Nodes in the roster", len(self._roster.adverts))
        yield _gauge("agents_known", "Agent versions in the roster", len(self._roster.manifests))
        behaved = CounterMetricFamily(
            "zerostate_conduct", "What peers did, as counted in conduct", labels=["what"]
        )
        for what, count in sorted(self._standing.counts.items()):
            behaved.add_metric([what], count)
        yield behaved
        if self._driver is not None:
            yield from self._tasks(self._driver)
        if self._worker is not None:
            yield _gauge("slots", "Runs at once", self._worker.slots)
            yield _gauge("slots_busy", "Runs now", self._worker.running)
            yield _gauge("leases_held", "Leases held", len(self._worker.held))
            yield _counter("runs", "Runs made for any owner", self._worker.runs)
            yield _gauge("owners_served", "Work streams to owners", len(self._worker.streams))
        if self._sandbox is not None:
            stats = self._sandbox.stats()
            yield _gauge("sandbox_workers", "Worker processes alive", int(stats.get("workers", 0)))
            yield _counter(
                "sandbox_workers_died",
                "Worker processes that died",
                int(stats.get("workers_died", 0)),
            )

    def _tasks(self, driver: Driver) -> Iterator[Metric]:
        yield _counter("tasks_submitted", "Tasks accepted since the start", driver.submitted)
        yield _gauge("tasks_unfinished", "Tasks not settled", len(driver.tasks))
        yield _gauge("tasks_waiting", "Tasks that wait for a worker", len(driver.dispatch))
        yield _gauge("workers_claiming", "Workers connected", len(driver.dispatch.claimers))
        yield _counter("driver_turns", "Turns of the driver", driver.turns)
        yield _counter("ledger_writes", "Writes committed", driver.writes)
        settled = CounterMetricFamily(
            "zerostate_tasks_settled", "Tasks settled since the start", labels=["outcome"]
        )
        for outcome, count in sorted(driver.chronicle.settled.items()):
            settled.add_metric([outcome], count)
        yield settled


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"zerostate_{name}", help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"zerostate_{name}", help, value=value)
