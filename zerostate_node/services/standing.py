"""How every peer stands here: runs the conduct machine, tells the mesh whom to refuse."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable

import structlog
import trio

from zerostate_node.machines import conduct as machine
from zerostate_node.units import PeerId

log = structlog.get_logger()

PEERS_MAX = 10_000  # beyond it the peers nearest to zero are forgotten


class Standing:
    """Scores of peers."""

    def __init__(self, now_ms: Callable[[], int], *, me: PeerId) -> None:
        self._now_ms = now_ms
        self._me = me
        self._of: dict[str, machine.Conduct] = {}
        self._bans_send, self._bans = trio.open_memory_channel[tuple[PeerId, int]](256)
        self.counts: dict[str, int] = {}

    def behaved(self, peer: str, what: str) -> None:
        """A peer did something; `what` is a key of `machines.conduct.WEIGHTS`."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if peer == self._me:
            return
        fact = machine.Behaved(machine.WEIGHTS[what], self._now_ms())
        done = machine.step(self._of.get(peer, machine.Conduct()), fact)
        self._of[peer] = done.state
        if len(self._of) > PEERS_MAX:
            self._forget_some(besides=peer)
        for ban in done.effects:
            log.warning("peer banned", peer=peer, for_s=ban.for_ms // 1000, after=what)
            try:
                self._bans_send.send_nowait((PeerId(peer), ban.for_ms))
            except trio.WouldBlock:
                # Full: hundreds of bans wait already; this peer earns another soon enough.
                log.warning("ban not passed on", peer=peer)

    def _forget_some(self, *, besides: str) -> None:
        """Make room: many at once, so that a crowd of strangers does not cost a search each."""
        now_ms = self._now_ms()

        def weight(peer: str) -> tuple[bool, int]:
            state = self._of[peer]
            return state.banned_until_ms > now_ms, abs(machine.score_at(state, now_ms))

        others = (peer for peer in self._of if peer != besides)
        for peer in heapq.nsmallest(1 + PEERS_MAX // 100, others, key=weight):
            del self._of[peer]

    def score(self, peer: str) -> int:
        """The peer's score now; a stranger has 0."""
        known = self._of.get(peer)
        return machine.score_at(known, self._now_ms()) if known else 0

    async def run(
        self,
        drop: Callable[[PeerId, float], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry bans out; `drop(peer, seconds)` is awaited."""
        task_status.started()
        async for peer, for_ms in self._bans:
            await drop(peer, for_ms / 1000)
