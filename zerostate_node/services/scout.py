"""
Chooses whom to work for: owners heard of in adverts and announcements, a few at a time.

Each owner served has one loop: dial, serve until the stream ends, pause, again. An owner that
announces open work is worth more than one that merely exists; one that cannot be reached is dropped
until it is heard of again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog
import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ports.mesh import Mesh
from zerostate_node.services.loopback import loop
from zerostate_node.services.owner import Owner
from zerostate_node.services.worker import Worker
from zerostate_node.units import PeerId
from zerostate_node.wire import ids
from zerostate_node.wire.messages import Announcement, NodeAdvert

log = structlog.get_logger()

PAUSE_S_MIN, PAUSE_S_MAX = 0.2, 15.0
FAILURES_MAX = 12  # in a row, then the owner is let go until it is heard of again
IDLE_S = 20.0  # an owner that gave no lease for so long makes room for one that announces work
STABLE_S = 5.0  # a stream that lived this long resets the pause


class Scout:
    """Keeps work streams to owners."""

    def __init__(
        self,
        *,
        me: PeerId,
        mesh: Mesh,
        worker: Worker,
        owner: Owner | None,
        owners_max: int,
        score_of: Callable[[str], int],
    ) -> None:
        self._me = me
        self._mesh = mesh
        self._worker = worker
        self._owner = owner
        self._owners_max = owners_max
        self._score_of = score_of
        self.serving: dict[PeerId, str] = {}  # owner -> how that stands, for doctor
        self._scopes: dict[PeerId, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve owners until cancelled; our own first."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._owner is not None:
                nursery.start_soon(self._serve_self, self._owner)
            task_status.started()
            await trio.sleep_forever()

    def heard_advert(self, peer: PeerId, advert: NodeAdvert) -> None:
        """Somebody said who they are."""
        if advert.addrs:
            self._mesh.learn(peer, advert.addrs, source="advert")
        if advert.leaving or not advert.owns:
            return
        self._consider(peer)

    def heard_work(self, peer: PeerId, announcement: Announcement) -> None:
        """Somebody owns open work."""
        if announcement.addrs:
            self._mesh.learn(peer, announcement.addrs, source="announcement")
        self._consider(peer, urgent=True)

    def _consider(self, peer: PeerId, *, urgent: bool = False) -> None:
        if (
            self._nursery is None
            or peer == self._me
            or peer in self.serving
            or self._worker.draining
            or self._score_of(peer) < 0
        ):
            return
        if len(self.serving) >= self._owners_max:
            if not urgent:
                return
            least = self._least_use()
            if least is None:
                return
            self._scopes.pop(least).cancel()
        self.serving[peer] = "dialling"
        self._nursery.start_soon(self._serve_owner, peer)

    def _least_use(self) -> PeerId | None:
        """
        Whose place another may have: one that is not connected, else the longest without a lease.

        Else a few that only hold the line would lock out everyone who has work.
        """
        away = [p for p in self._scopes if self.serving.get(p) != "connected"]
        if away:
            return random.choice(away)
        streams = self._worker.streams
        since_s = {p: streams[p].leased_s for p in self._scopes if p in streams}
        idlest = min(since_s, key=lambda p: since_s[p], default=None)
        if idlest is None or trio.current_time() - since_s[idlest] < IDLE_S:
            return None
        return idlest

    async def _serve_owner(self, peer: PeerId) -> None:
        pause_s, failures = PAUSE_S_MIN, 0
        with trio.CancelScope() as scope:
            self._scopes[peer] = scope
            while failures < FAILURES_MAX and not self._worker.draining:
                started = trio.current_time()
                try:
                    link = await self._mesh.open(
                        peer, ids.WORK, frame_bytes_max=ids.WORK_FRAME_BYTES_MAX
                    )
                    self.serving[peer] = "connected"
                    code = await self._worker.serve_owner(link)
                except Unavailable as error:
                    code = error.code
                self.serving[peer] = f"not connected: {code}"
                if code in ("wrong_network", "banned"):
                    break
                if trio.current_time() - started >= STABLE_S:
                    pause_s, failures = PAUSE_S_MIN, 0
                failures += 1
                log.debug("owner not served", owner=peer, code=code, failures=failures)
                await trio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(PAUSE_S_MAX, pause_s * 1.7)
        self.serving.pop(peer, None)
        if self._scopes.get(peer) is scope:
            del self._scopes[peer]

    async def _serve_self(self, owner: Owner) -> None:
        while True:
            ours, theirs = loop(self._me)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(owner.serve, theirs)
                code = await self._worker.serve_owner(ours)
            log.info("own work stream ended", code=code)
            if self._worker.draining:
                return
            await trio.sleep(PAUSE_S_MIN)
