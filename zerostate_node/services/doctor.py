"""
How the node is, and why there is no work: what `/ready`, `doctor` and the peers page say.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerostate_node.ports.desk import Check, PeerView
from zerostate_node.ports.mesh import Mesh
from zerostate_node.ports.sandbox import Sandbox
from zerostate_node.services.driver import Driver
from zerostate_node.services.owner import Owner
from zerostate_node.services.roster import Roster
from zerostate_node.services.scout import Scout
from zerostate_node.services.standing import Standing
from zerostate_node.services.sync import Sync
from zerostate_node.services.worker import Worker
from zerostate_node.units import GIB, MIB, PeerId
from zerostate_node.wire.ids import did_of
from zerostate_node.wire.messages import NodeAdvert

DISK_FREE_MIN_BYTES = 1 * GIB
DISK_USED_MAX = 0.95
CLOCK_SKEW_WARN_MS = 30_000


def _free(free_bytes: int) -> str:
    if free_bytes >= GIB:
        return f"{free_bytes / GIB:.1f} GiB"
    return f"{free_bytes // MIB} MiB"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What does not change while the node runs."""

    peer: PeerId
    network: str
    role: str
    roles: tuple[str, ...]
    region: str
    version: str
    data_dir: Path
    started_ms: int
    bootstrap: tuple[str, ...]
    listens: bool
    relay_serve: bool


class Doctor:
    """Looks at the services; changes nothing."""

    def __init__(
        self,
        *,
        facts: NodeFacts,
        mesh: Mesh,
        roster: Roster,
        standing: Standing,
        sync: Sync,
        sandbox: Sandbox | None,
        driver: Driver | None,
        owner: Owner | None,
        worker: Worker | None,
        scout: Scout | None,
        now_ms: Callable[[], int],
    ) -> None:
        self._facts = facts
        self._mesh = mesh
        self._roster = roster
        self._standing = standing
        self._sync = sync
        self._sandbox = sandbox
        self._driver = driver
        self._owner = owner
        self._worker = worker
        self._scout = scout
        self._now_ms = now_ms

    def info(self) -> dict[str, Any]:
        """Who this node is."""
        facts, status = self._facts, self._mesh.status()
        return {
            "peer": facts.peer,
            "did": did_of(facts.peer),
            "network": facts.network,
            "role": facts.role,
            "roles": list(facts.roles),
            "region": facts.region,
            "version": facts.version,
            "data_dir": str(facts.data_dir),
            "listen_addrs": list(status.listen_addrs),
            "announce_addrs": list(status.announce_addrs),
            "relays": list(status.relays),
            "peers_connected": status.peers_connected,
            "mesh_restarts": status.restarts,
            "slots": self._worker.slots if self._worker else 0,
            "running": self._worker.running if self._worker else 0,
            "runs": self._worker.runs if self._worker else 0,
            "tasks_open": len(self._driver.tasks) if self._driver else 0,
            "workers_connected": len(self._owner.streams) if self._owner else 0,
            "draining": bool(self._worker and self._worker.draining),
            "started_ms": facts.started_ms,
            "uptime_s": max(0, self._now_ms() - facts.started_ms) // 1000,
        }

    def peers(self) -> list[PeerView]:
        """Everyone known, connected first."""
        connected = {p.peer: p for p in self._mesh.peers()}
        running: dict[str, int] = {}
        if self._driver:
            for entry in self._driver.tasks.values():
                worker = getattr(entry.state, "worker", "")
                running[worker] = running.get(worker, 0) + 1
        views = []
        for peer in {*connected, *self._roster.adverts} - {self._facts.peer}:
            seen, opened = connected.get(peer), self._roster.adverts.get(peer)
            advert: NodeAdvert = opened.value if opened else NodeAdvert()
            as_worker = bool(self._owner and peer in self._owner.streams)
            as_owner = bool(self._worker and peer in self._worker.streams)
            how = {
                (True, True): "both",
                (True, False): "as worker",
                (False, True): "as owner",
                (False, False): "",
            }[as_worker, as_owner]
            views.append(
                PeerView(
                    peer=peer,
                    did=did_of(peer),
                    connected=bool(seen and seen.connected),
                    via=seen.via if seen else "",
                    addrs=(seen.addrs if seen and seen.addrs else advert.addrs),
                    roles=advert.roles,
                    region=advert.region,
                    program=advert.program,
                    owns=advert.owns,
                    works=advert.works,
                    relays=advert.relays,
                    slots=advert.slots,
                    score=self._standing.score(peer),
                    heard_ms=opened.issued_ms if opened else 0,
                    work_stream=how,
                    running=running.get(peer, 0),
                )
            )
        return sorted(views, key=lambda v: (not v.connected, v.peer))

    def ready(self) -> list[Check]:
        """What must be so before this node takes requests."""
        status = self._mesh.status()
        checks = [
            Check(
                name="mesh",
                ok=status.up,
                detail="up" if status.up else f"down: {status.last_error or 'starting'}",
                hint="" if status.up else "it restarts by itself; the log says why it died",
            )
        ]
        if self._sandbox is not None:
            alive = int(self._sandbox.stats().get("workers", 0))
            checks.append(
                Check(
                    name="sandbox",
                    ok=alive > 0,
                    detail=f"{alive} worker processes for {self._sandbox.slots} slots",
                    hint="" if alive else "worker processes do not start; the log says why",
                )
            )
        disk = shutil.disk_usage(self._facts.data_dir)
        fits = disk.free >= DISK_FREE_MIN_BYTES and disk.used / disk.total < DISK_USED_MAX
        checks.append(
            Check(
                name="disk",
                ok=fits or disk.free >= 20 * GIB,
                detail=f"{_free(disk.free)} free under {self._facts.data_dir}",
                hint="" if fits else "make room: tasks and blobs cannot be stored on a full disk",
            )
        )
        return checks

    def checkup(self) -> list[Check]:
        """What an operator asks first: am I reachable, is there work, and why not."""
        return [self._reachable(), *self._neighbours(), self._clock(), *self._work()]

    def _reachable(self) -> Check:
        facts, status = self._facts, self._mesh.status()
        circuit = [a for a in status.announce_addrs if "/p2p-circuit" in a]
        if facts.listens and status.listen_addrs:
            return Check(
                name="reachability",
                ok=True,
                detail=f"listens on {', '.join(status.listen_addrs[:3])}",
                hint="whether others get through depends on your router; "
                "relays are used when they do not",
            )
        if circuit:
            return Check(
                name="reachability",
                ok=True,
                detail=f"reached through relays: {len(status.relays)}",
            )
        return Check(
            name="reachability",
            ok=not facts.bootstrap,
            detail="does not listen and has no relay",
            hint="name a relay or bootstrap peer: --set mesh.bootstrap=/dns4/…/tcp/4001/p2p/…",
        )

    def _neighbours(self) -> list[Check]:
        facts, status = self._facts, self._mesh.status()
        if not facts.bootstrap and not status.peers_connected:
            neighbours = Check(
                name="peers",
                ok=True,
                detail="alone: no bootstrap peer is configured, nobody dialled in",
                hint="to join others: --set mesh.bootstrap=ADDRESS, or give them yours",
            )
        else:
            neighbours = Check(
                name="peers",
                ok=status.peers_connected > 0,
                detail=f"{status.peers_connected} connected, {len(self._roster.adverts)} known, "
                f"{status.anchors_connected} of {len(facts.bootstrap)} bootstrap peers",
                hint=""
                if status.peers_connected
                else "no bootstrap peer answers: check their address, and this machine's firewall",
            )
        wrong = [
            Check(
                name="network",
                ok=False,
                detail=reason,
                hint="start both with the same --network",
            )
            for reason in list(self._sync.wrong_networks.values())[:3]
        ]
        return [neighbours, *wrong]

    def _clock(self) -> Check:
        now_ms = self._now_ms()
        ahead = [
            opened.issued_ms - now_ms
            for opened in self._roster.adverts.values()
            if opened.sender != self._facts.peer
        ]
        skew = max(ahead, default=0)
        if not ahead and (connected := self._mesh.status().peers_connected):
            # A clock that is minutes off has every message refused, in both directions.
            return Check(
                name="clock",
                ok=False,
                detail=f"{connected} connected, but nothing that they say could be used yet",
                hint="compare `date -u` on both, set clocks by NTP; the networks may differ too",
            )
        return Check(
            name="clock",
            ok=skew < CLOCK_SKEW_WARN_MS,
            detail=f"{skew} ms behind the newest advert heard"
            if skew > 0
            else "no peer's clock is ahead of this one",
            hint="" if skew < CLOCK_SKEW_WARN_MS else "set the clock (NTP): messages look expired",
        )

    def _work(self) -> list[Check]:
        checks = []
        if self._driver is not None and self._owner is not None:
            streams, waiting = len(self._owner.streams), len(self._driver.dispatch)
            stuck = waiting > 0 and streams == 0
            checks.append(
                Check(
                    name="own tasks",
                    ok=not stuck,
                    detail=f"{len(self._driver.tasks)} unfinished, {waiting} waiting for a worker, "
                    f"{streams} worker{'' if streams == 1 else 's'} connected",
                    hint="no worker serves this node: is worker.enabled set anywhere in the mesh?"
                    if stuck
                    else "",
                )
            )
        if self._worker is not None and self._scout is not None:
            others = dict(self._scout.serving)
            connected = [p for p, how in others.items() if how == "connected"]
            detail = f"{self._worker.running} of {self._worker.slots} slots busy, "
            detail += f"serving {len(connected)} other owner{'' if len(connected) == 1 else 's'}"
            away = "; ".join(f"{p[-8:]} {how}" for p, how in others.items() if how != "connected")
            owners = [p for p, o in self._roster.adverts.items() if o.value.owns]
            hint = ""
            if not connected and not self._driver:
                hint = (
                    f"{len(owners)} owners are known: {away or 'none could be reached'}"
                    if owners
                    else "no node that owns tasks is known yet"
                )
            checks.append(
                Check(
                    name="work",
                    ok=not hint,
                    detail=detail + (f" ({away})" if away else ""),
                    hint=hint,
                )
            )
        return checks
