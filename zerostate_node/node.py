"""
The composition root: settings, then adapters, then services, then one nursery. Top to bottom it is
the story of a node's life: hold the data directory, open what is durable, join the mesh, own and
run tasks, serve HTTP, and at a signal leave in good order.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from zerostate_node import __version__
from zerostate_node.blobs.exchange import fetch_blob, serve_blobs
from zerostate_node.blobs.folder import FolderBlobs
from zerostate_node.errors import Exit, ZeroStateError
from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.server import Gateway
from zerostate_node.home import Running, announce_running, retract_running
from zerostate_node.ledger.datadir import DataDir
from zerostate_node.ledger.journal import SqliteJournal
from zerostate_node.ledger.sqlite import SqliteLedger
from zerostate_node.machines.admission import Policy
from zerostate_node.mesh.book_sqlite import SqliteBook
from zerostate_node.mesh.mesh import Libp2pMesh
from zerostate_node.mesh.settings import MeshSettings
from zerostate_node.ports.mesh import Link
from zerostate_node.sandbox.limits import SandboxSettings
from zerostate_node.sandbox.pool import PooledSandbox
from zerostate_node.services.catalogue import Catalogue
from zerostate_node.services.courier import Courier
from zerostate_node.services.desk import FrontDesk
from zerostate_node.services.doctor import Doctor, NodeFacts
from zerostate_node.services.driver import Driver
from zerostate_node.services.herald import Herald
from zerostate_node.services.hub import Hub
from zerostate_node.services.larder import Larder
from zerostate_node.services.metrics import NodeCollector
from zerostate_node.services.owned import DriverSettings
from zerostate_node.services.owner import Owner, OwnerIdentity
from zerostate_node.services.roster import Roster
from zerostate_node.services.runner import Runner, Signer
from zerostate_node.services.scout import Scout
from zerostate_node.services.standing import Standing
from zerostate_node.services.steady import steady_clock
from zerostate_node.services.sync import Sync
from zerostate_node.services.taskdesk import TaskDesk
from zerostate_node.services.witness import Witness
from zerostate_node.services.worker import Worker, WorkerIdentity
from zerostate_node.settings import Settings
from zerostate_node.units import MIB, PeerId
from zerostate_node.wire import ids
from zerostate_node.wire.messages import BlobRef, Limits, NodeAdvert

log = structlog.get_logger()

PROGRAM = f"zerostate-node/{__version__}"
LIMITED_BLOB_BYTES_MAX = 8 * MIB  # what goes through a relay that counts bytes
DRAIN_S_MAX = 20.0

OnReady = Callable[[dict[str, Any]], None]


def run(settings: Settings, *, migrate_only: bool = False, on_ready: OnReady | None = None) -> Exit:
    """
    Live as one node until SIGTERM or SIGINT.

    Args:
        migrate_only: bring the databases up to date and return.
        on_ready: told once everything serves: `Desk.info()` and `http_url`.

    Raises:
        ConfigError, Busy: what keeps this node from starting, in words for its operator.
    """
    os.umask(0o077)  # nothing that a node writes is for other users of the machine
    data = DataDir(settings.node.data_dir)
    with data:
        try:
            return trio.run(
                partial(_main, settings, data, migrate_only, on_ready or (lambda _: None))
            )
        except BaseExceptionGroup as group:
            raise _leaf(group) from group
        finally:
            retract_running(settings.node.data_dir)


def _calm_collector() -> None:
    """
    Let the garbage collector look at new things, seldom, and no more at what a node is made of.

    Python's defaults walk the modules and tables of all libraries over and over, which was a tenth
    of the time that a busy owner spent on a task.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of a nursery that died: ours before any other, then the first."""
    leaves: list[BaseException] = []

    def walk(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                walk(inner)
        else:
            leaves.append(error)

    walk(group)
    return next((e for e in leaves if isinstance(e, ZeroStateError)), leaves[0])


def now_ms() -> int:
    """Wall clock, ms."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A fresh ULID."""
    return ids.ulid(now_ms(), secrets.token_bytes(10))


async def _main(settings: Settings, data: DataDir, migrate_only: bool, on_ready: OnReady) -> Exit:
    async with contextlib.AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(
            SqliteLedger(_ledger_path(settings, data), now_ms=now_ms)
        )
        journal = await stack.enter_async_context(SqliteJournal(data.journal))
        if migrate_only:
            log.info("databases are up to date", ledger=str(_ledger_path(settings, data)))
            return Exit.DONE
        blobs = await stack.enter_async_context(
            FolderBlobs(data.blobs, bytes_max=settings.blobs.bytes_max)
        )
        node = Node(settings, data, ledger, journal, blobs)
        stack.callback(node.book.close)
        return await node.live(on_ready)


def _ledger_path(settings: Settings, data: DataDir) -> Path:
    url = settings.ledger.url
    return settings.node.data_dir / url.removeprefix("sqlite:///") if url else data.ledger


class Node:
    """Everything that one node is made of, wired together."""

    def __init__(
        self,
        settings: Settings,
        data: DataDir,
        ledger: SqliteLedger,
        journal: SqliteJournal,
        blobs: FolderBlobs,
    ) -> None:
        self.settings = settings
        self.data = data
        seed = data.identity_seed()
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.peer = ids.peer_id_of(self.key.public_key().public_bytes_raw())
        network = settings.network
        self.started_ms = now_ms()
        works, owns = settings.worker.enabled, settings.owner.enabled

        # -- adapters ------------------------------------------------------------------------------
        self.ledger, self.journal, self.blobs = ledger, journal, Larder(blobs, ledger)
        self.sandbox = PooledSandbox(_sandbox_settings(settings, data, seed))
        self.book = SqliteBook(settings.node.data_dir / "peers.sqlite", now_ms=now_ms())
        self.mesh = Libp2pMesh(seed, _mesh_settings(settings), book=self.book, now_ms=now_ms)

        # -- what is known, and how peers behave ---------------------------------------------------
        self.hub = Hub(now_ms)
        self.standing = Standing(now_ms, me=self.peer)
        behaved = self.standing.behaved
        self.roster = Roster(
            network=network.name,
            journal=journal,
            hub=self.hub,
            now_ms=now_ms,
            me=ids.did_of(self.peer),
        )
        self.courier = Courier(
            me=self.peer,
            blobs=self.blobs,
            fetch=self._fetch,
            more_peers=self._peers_with_blobs,
            behaved=behaved,
        )
        self.runner = Runner(
            signer=Signer(
                peer=self.peer, key=self.key, network=network.name, new_id=new_id, now_ms=now_ms
            ),
            sandbox=self.sandbox,
            blobs=self.blobs,
            courier=self.courier,
        )

        # -- owning tasks --------------------------------------------------------------------------
        steady_ms = steady_clock()  # leases and deadlines outlive a step of the wall clock
        lease_ttl_ms = int(settings.owner.lease_ttl_s * 1000)
        self.driver: Driver | None = None
        self.owner: Owner | None = None
        if owns:
            self.driver = Driver(
                ledger=ledger,
                hub=self.hub,
                settings=DriverSettings(
                    lease_ttl_ms=lease_ttl_ms,
                    tasks_open_max=settings.owner.tasks_open_max,
                    region=settings.node.region,
                ),
                now_ms=steady_ms,
                behaved=behaved,
            )
            self.owner = Owner(
                me=OwnerIdentity(
                    peer=self.peer,
                    key=self.key,
                    network=network.name,
                    program=PROGRAM,
                    region=settings.node.region,
                    new_id=new_id,
                ),
                driver=self.driver,
                hub=self.hub,
                fetch_output=self._fetch,
                now_ms=steady_ms,
                lease_ttl_ms=lease_ttl_ms,
                score_of=self.standing.score,
                behaved=behaved,
            )

        # -- running tasks -------------------------------------------------------------------------
        self.worker: Worker | None = None
        self.scout: Scout | None = None
        if works:
            self.worker = Worker(
                me=WorkerIdentity(
                    peer=self.peer,
                    key=self.key,
                    network=network.name,
                    program=PROGRAM,
                    region=settings.node.region,
                    serves=settings.worker.serves,
                ),
                slots=self.sandbox.slots,
                runner=self.runner,
                journal=journal,
                policy=self._policy,
                behaved=behaved,
            )
            self.scout = Scout(
                me=self.peer,
                mesh=self.mesh,
                worker=self.worker,
                owner=self.owner,
                owners_max=settings.worker.owners_max,
                score_of=self.standing.score,
            )

        # -- talking to the mesh -------------------------------------------------------------------
        self.herald = Herald(
            mesh=self.mesh,
            roster=self.roster,
            key=self.key,
            network=network.name,
            shards=network.shards,
            advert=self._advert,
            open_kinds=self.driver.dispatch.kinds if self.driver else dict,
            on_work=self.scout.heard_work if self.scout else lambda _peer, _work: None,
            behaved=behaved,
            new_id=new_id,
            now_ms=now_ms,
        )
        self.sync = Sync(
            mesh=self.mesh,
            roster=self.roster,
            network=network.name,
            program=PROGRAM,
            own_advert=lambda: self.herald.own_advert,
            behaved=behaved,
        )
        self.mesh.on_peer(self._peer_changed)
        self.roster.on_advert(self._heard_advert)
        self.mesh.handle(ids.SYNC, self.sync.serve, frame_bytes_max=ids.SYNC_FRAME_BYTES_MAX)
        self.mesh.handle(ids.BLOB, self._serve_blobs, frame_bytes_max=ids.BLOB_FRAME_BYTES_MAX)
        if self.owner is not None:
            self.mesh.handle(ids.WORK, self.owner.serve, frame_bytes_max=ids.WORK_FRAME_BYTES_MAX)

        # -- talking to clients --------------------------------------------------------------------
        self.doctor = Doctor(
            facts=self._facts(),
            mesh=self.mesh,
            roster=self.roster,
            standing=self.standing,
            sync=self.sync,
            sandbox=self.sandbox,
            driver=self.driver,
            owner=self.owner,
            worker=self.worker,
            scout=self.scout,
            now_ms=now_ms,
        )
        self.catalogue = Catalogue(
            peer=self.peer,
            key=self.key,
            ledger=ledger,
            blobs=self.blobs,
            sandbox=self.sandbox,
            roster=self.roster,
            herald=self.herald,
            module_bytes_max=settings.sandbox.module_bytes_max,
            now_ms=now_ms,
        )
        self.desk = FrontDesk(
            tasks=TaskDesk(
                peer=self.peer,
                driver=self.driver,
                ledger=ledger,
                blobs=self.blobs,
                roster=self.roster,
                hub=self.hub,
                limits_max=_limits_max(settings),
                deadline_default_ms=int(settings.owner.deadline_default_s * 1000),
                new_id=new_id,
                now_ms=steady_ms,
            ),
            catalogue=self.catalogue,
            witness=Witness(runner=self.runner),
            doctor=self.doctor,
            ledger=ledger,
            blobs=self.blobs,
            upload_bytes_max=settings.blobs.upload_bytes_max,
        )
        self.registry = CollectorRegistry()
        self.registry.register(
            NodeCollector(
                mesh=self.mesh,
                roster=self.roster,
                standing=self.standing,
                sandbox=self.sandbox,
                driver=self.driver,
                worker=self.worker,
            )
        )

    # -- life --------------------------------------------------------------------------------------

    async def live(self, on_ready: OnReady) -> Exit:
        """Start everything in order of dependency, serve until a signal, leave in good order."""
        await self.roster.recall()
        await self.catalogue.recall_agents()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.sandbox.serve)
                await nursery.start(self.mesh.run)
                await nursery.start(self.roster.run)
                await nursery.start(partial(self.standing.run, self._drop))
                if self.driver is not None:
                    await nursery.start(self.driver.run)
                if self.worker is not None and self.scout is not None:
                    await nursery.start(self.worker.run)
                    await nursery.start(self.scout.run)
                await nursery.start(self.herald.run)
                await nursery.start(self.sync.run)
                await nursery.start(self.catalogue.renew_cards)
                url = await self._serve_http(nursery)
                announce_running(
                    self.settings.node.data_dir,
                    Running(
                        pid=os.getpid(),
                        http_url=url,
                        peer=self.peer,
                        network=self.settings.network.name,
                        started_ms=self.started_ms,
                    ),
                )
                log.info(
                    "node ready",
                    peer=self.peer,
                    network=self.settings.network.name,
                    http=url,
                    took_ms=now_ms() - self.started_ms,
                )
                _calm_collector()
                on_ready(self.desk.info() | {"http_url": url})
                async for number in signals:
                    log.info("leaving", signal=signal.Signals(number).name)
                    break
                nursery.start_soon(self._leave_now, signals, nursery.cancel_scope)
                await self._leave()
                nursery.cancel_scope.cancel()
        return Exit.DONE

    async def _serve_http(self, nursery: trio.Nursery) -> str:
        http = self.settings.http
        if not http.enabled:
            return ""
        gateway = Gateway(
            self.desk,
            GatewaySettings(
                host=http.host,
                port=http.port,
                allowed_hosts=http.allowed_hosts,
                body_bytes_max=http.body_bytes_max,
                upload_bytes_max=self.settings.blobs.upload_bytes_max,
                metrics_enabled=self.settings.metrics.enabled,
            ),
            operator_key=self.data.operator_key(),
            version=__version__,
            registry=self.registry,
        )
        url: str = await nursery.start(gateway.run)
        return url

    async def _leave(self) -> None:
        """Stop taking work, let runs end, tell the mesh."""
        if self.owner is not None:
            self.owner.draining = True
        with trio.move_on_after(DRAIN_S_MAX):
            if self.worker is not None:
                await self.worker.drain(DRAIN_S_MAX - 2)
            with trio.move_on_after(1):
                await self.herald.say_leaving()
            await self.roster.flush()
        log.info("left")

    async def _leave_now(self, signals: Any, scope: trio.CancelScope) -> None:
        """A second signal ends the wait."""
        async for _ in signals:
            log.warning("leaving at once")
            scope.cancel()

    # -- glue --------------------------------------------------------------------------------------

    def _facts(self) -> NodeFacts:
        settings = self.settings
        return NodeFacts(
            peer=self.peer,
            network=settings.network.name,
            role=settings.node.role,
            roles=self._roles(),
            region=settings.node.region,
            version=__version__,
            data_dir=settings.node.data_dir,
            started_ms=self.started_ms,
            bootstrap=(*settings.network.peers, *settings.mesh.bootstrap),
            listens=bool(settings.mesh.listen),
            relay_serve=settings.mesh.relay_serve,
        )

    def _roles(self) -> tuple[str, ...]:
        settings = self.settings
        does = {
            "owner": settings.owner.enabled,
            "worker": settings.worker.enabled,
            "relay": settings.mesh.relay_serve,
            "gateway": settings.http.enabled and settings.node.role == "gateway",
            "bootstrap": settings.node.role == "bootstrap",
        }
        return tuple(name for name, is_so in does.items() if is_so)

    def _advert(self) -> NodeAdvert:
        settings = self.settings
        return NodeAdvert(
            addrs=self.mesh.status().announce_addrs[:16],
            roles=self._roles(),
            region=settings.node.region,
            program=PROGRAM,
            owns=settings.owner.enabled,
            works=settings.worker.enabled,
            relays=settings.mesh.relay_serve,
            slots=self.worker.slots if self.worker else 0,
        )

    def _policy(self) -> Policy:
        settings = self.settings
        return Policy(
            limits_max=_limits_max(settings),
            module_bytes_max=settings.sandbox.module_bytes_max,
            publishers=frozenset(settings.worker.publishers),
            price_floor_ucr=settings.worker.price_floor_ucr,
            revoked=self.roster.revoked,
        )

    def _peer_changed(self, peer: PeerId, connected: bool) -> None:
        self.sync.peer_changed(peer, connected)
        self.hub.tell("peer.connected" if connected else "peer.gone", peer=peer)

    def _heard_advert(self, peer: PeerId, advert: NodeAdvert) -> None:
        if peer == self.peer:
            return
        if self.scout is not None:
            self.scout.heard_advert(peer, advert)
        elif advert.addrs:
            self.mesh.learn(peer, advert.addrs, source="advert")

    async def _drop(self, peer: PeerId, seconds: float) -> None:
        await self.mesh.drop(peer, ban_s=seconds, why="conduct")

    async def _serve_blobs(self, link: Link) -> None:
        await serve_blobs(link, self.blobs, limited_bytes_max=LIMITED_BLOB_BYTES_MAX)

    async def _fetch(self, peer: PeerId, ref: BlobRef) -> None:
        """Bring one blob from one peer into the store."""
        open_link: Callable[[], Awaitable[Link]] = partial(
            self.mesh.open, peer, ids.BLOB, frame_bytes_max=ids.BLOB_FRAME_BYTES_MAX
        )
        bytes_max = max(
            self.settings.sandbox.module_bytes_max, self.settings.sandbox.stdout_bytes_max
        )
        if peer != self.peer:
            await fetch_blob(open_link, ref, self.blobs, bytes_max=bytes_max)

    def _peers_with_blobs(self) -> Sequence[PeerId]:
        return [p.peer for p in self.mesh.peers() if p.connected]


# -- from the operator's settings to each part's own --


def _limits_max(settings: Settings) -> Limits:
    most = settings.sandbox
    return Limits(
        fuel_max=most.fuel_max,
        wall_ms_max=most.wall_ms_max,
        memory_bytes_max=most.memory_bytes_max,
        table_elements_max=most.table_elements_max,
        stdin_bytes_max=most.stdin_bytes_max,
        stdout_bytes_max=most.stdout_bytes_max,
        stderr_bytes_max=most.stderr_bytes_max,
    )


def _sandbox_settings(settings: Settings, data: DataDir, seed: bytes) -> SandboxSettings:
    most = settings.sandbox
    return SandboxSettings(
        slots=settings.worker.slots,
        module_bytes_max=most.module_bytes_max,
        compile_cpu_s_max=most.compile_cpu_s_max,
        compile_memory_bytes_max=most.compile_memory_bytes_max,
        compile_wall_s_max=most.compile_wall_s_max,
        cache_bytes_max=most.cache_bytes_max,
        recycle_runs_max=most.recycle_runs_max,
        cache_dir=data.cache,
        cache_key=hashlib.sha256(b"zerostate/cache/1" + seed).digest(),
    )


def _mesh_settings(settings: Settings) -> MeshSettings:
    mesh, network = settings.mesh, settings.network
    return MeshSettings(
        listen=mesh.listen,
        announce=mesh.announce,
        bootstrap=(*network.peers, *mesh.bootstrap),
        relays=(*network.relays, *mesh.relays),
        relay_serve=mesh.relay_serve,
        relay_use=mesh.relay_use,  # type: ignore[arg-type]  # checked when settings load
        dial_private=mesh.dial_private,
        connections_max=mesh.connections_max,
        gossip_per_s=mesh.gossip_per_s,
        network=network.name,
    )
