"""
GossipSub with limits of our own.

The library forgets a cap in every place that a neighbour can press on: each message is a task,
a bad signature costs the forwarder nothing, subscriber queues drop in silence. `Gossip` keeps
what survives a restart of libp2p (subscribers, budgets, counters); `BoundedPubsub` is one life.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import signature_validator

from zerostate_node.mesh.budget import Bucket
from zerostate_node.ports.mesh import Heard
from zerostate_node.units import KIB, PeerId

log = structlog.get_logger()

PAYLOAD_BYTES_MAX = 64 * KIB
RPC_BYTES_MAX = 256 * KIB
SUBSCRIBER_MESSAGES_MAX = 512
FORWARDERS_MAX = 4096
FORGED_MAX = 20  # forged signatures from one forwarder before it is dropped
OVER_MAX = 2000  # messages past its rate before a forwarder is dropped
OFFENDER_BAN_S = 600.0


class GossipSubscription(AsyncIterator[Heard]):
    """Messages of one topic from the moment it was made; `close` ends it."""

    def __init__(self, topic: str, on_close: Callable[[GossipSubscription], None]) -> None:
        # Full means that the service behind is too slow; the newest message is dropped and
        # counted, since gossip is a hint and sync repairs what it loses.
        self._send, self._receive = trio.open_memory_channel[Heard](SUBSCRIBER_MESSAGES_MAX)
        self.topic = topic
        self._on_close = on_close

    def offer(self, heard: Heard) -> bool:
        """Queue a message; False when there is no room."""
        try:
            self._send.send_nowait(heard)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:
            self.close()
        return True

    def __aiter__(self) -> GossipSubscription:
        return self

    async def __anext__(self) -> Heard:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Stop listening; the iteration ends."""
        self._send.close()
        self._on_close(self)

    async def aclose(self) -> None:
        """Stop listening; the iteration ends."""
        self.close()
        await trio.lowlevel.checkpoint()


@dataclasses.dataclass(slots=True)
class _Forwarder:
    bucket: Bucket
    over: int = 0
    forged: int = 0


class Gossip:
    """What the mesh keeps of gossip across restarts of libp2p."""

    def __init__(
        self,
        *,
        publish_per_s: float,
        forwarder_per_s: float,
        on_offence: Callable[[PeerId, str], None],
    ) -> None:
        self.sent = 0
        self.heard = 0
        self.dropped = 0
        self._publish_per_s = publish_per_s
        self._forwarder_per_s = forwarder_per_s
        self._on_offence = on_offence
        self._budget: Bucket | None = None
        self._subscribers: dict[str, list[GossipSubscription]] = {}
        self._forwarders: dict[PeerId, _Forwarder] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that somebody here listens to."""
        return tuple(self._subscribers)

    def subscribe(self, topic: str) -> GossipSubscription:
        """A new listener; it outlives restarts of libp2p."""
        subscription = GossipSubscription(topic, self._unsubscribe)
        self._subscribers.setdefault(topic, []).append(subscription)
        return subscription

    def _unsubscribe(self, subscription: GossipSubscription) -> None:
        # The topic itself stays joined: leaving and joining again would churn the gossip mesh.
        with contextlib.suppress(ValueError, KeyError):
            self._subscribers[subscription.topic].remove(subscription)

    def may_publish(self, now_s: float) -> bool:
        """Spend one message of our own budget; False when it is spent."""
        if self._budget is None:
            burst = max(4.0, 2 * self._publish_per_s)
            self._budget = Bucket(self._publish_per_s, burst, now_s)
        return self._budget.take(now_s)

    def _forwarder(self, peer: PeerId, now_s: float) -> _Forwarder:
        entry = self._forwarders.get(peer)
        if entry is None:
            if len(self._forwarders) >= FORWARDERS_MAX:
                del self._forwarders[next(iter(self._forwarders))]
            burst = 2 * self._forwarder_per_s
            entry = _Forwarder(Bucket(self._forwarder_per_s, burst, now_s))
            self._forwarders[peer] = entry
        return entry

    def admit(self, peer: PeerId, now_s: float) -> bool:
        """Whether one more message of this forwarder is looked at; drops the peer when far over."""
        entry = self._forwarder(peer, now_s)
        if entry.bucket.take(now_s):
            return True
        self.dropped += 1
        entry.over += 1
        if entry.over >= OVER_MAX:
            entry.over = 0
            self._on_offence(peer, "gossip far over its rate")
        return False

    def forged(self, peer: PeerId, now_s: float) -> None:
        """Count a message whose signature is wrong against who forwarded it."""
        self.dropped += 1
        entry = self._forwarder(peer, now_s)
        entry.forged += 1
        if entry.forged >= FORGED_MAX:
            entry.forged = 0
            self._on_offence(peer, "forged gossip signatures")

    def deliver(
        self, topic: str, forwarder: PeerId, data: bytes, author: PeerId | None = None
    ) -> None:
        """Hand a message to who listens."""
        self.heard += 1
        heard = Heard(topic=topic, forwarder=forwarder, data=data, author=author)
        for subscription in tuple(self._subscribers.get(topic, ())):
            if not subscription.offer(heard):
                self.dropped += 1
                log.debug("gossip dropped, the listener is slow", topic=topic)


class BoundedPubsub(Pubsub):  # type: ignore[misc]
    """The library's Pubsub with its intake replaced: bounded, counted, and it never raises."""

    def __init__(self, host: Any, router: Any, gossip: Gossip) -> None:
        super().__init__(host, router, strict_signing=True, max_inbound_rpc_size=RPC_BYTES_MAX)
        self._gossip = gossip

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """
        Take in one message: bounds, seen, rate, signature, then listeners and neighbours.

        No await between `seen` and marking it, or two copies that arrive together would both be
        delivered.
        """
        try:
            own = msg_forwarder == self.my_id
            if len(msg.topicIDs) != 1 or len(msg.data) > PAYLOAD_BYTES_MAX:
                self._gossip.dropped += 1
                return
            if self._is_msg_seen(msg):
                return
            if not own:
                forwarder = PeerId(msg_forwarder.to_base58())
                now_s = trio.current_time()
                if not self._gossip.admit(forwarder, now_s):
                    return
                if not _signed(msg):
                    self._gossip.forged(forwarder, now_s)
                    return
            self._mark_msg_seen(msg)
            if not own:
                author = ID(msg.from_id)
                if author == self.my_id:
                    return
                self._gossip.deliver(
                    msg.topicIDs[0], forwarder, bytes(msg.data), PeerId(author.to_base58())
                )
            await self.router.publish(msg_forwarder, msg)
        except Exception as error:
            # Bulkhead: what leaves here ends Pubsub and with it the host, and a neighbour chose
            # these bytes.
            self._gossip.dropped += 1
            log.warning("gossip message dropped", error=repr(error))

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """
        Forget a stream, but not what the peer subscribed to while it is connected still.

        It said so once, on a stream of its own that lives; forgotten, it would get no gossip more.
        """
        kept = [topic for topic, peers in self.peer_topics.items() if peer_id in peers]
        super()._handle_dead_peer(peer_id)
        if kept and self._peer_is_connected(peer_id):
            for topic in kept:
                self.peer_topics.setdefault(topic, set()).add(peer_id)
            self._peer_subscription_count[peer_id] = len(kept)

    def repair(self, peer_id: ID, *, missing_too: bool) -> None:
        """
        Open a new stream to a connected peer whose old one went with another connection.

        A peer that restarts at once connects before its old connection is missed; the library then
        keeps the dead stream, and the peer stays deaf and mute.
        """
        stream = self.peers.get(peer_id)
        if stream is None:
            if missing_too:
                self._schedule_peer_stream_retry(peer_id)
        elif stream.is_closed or stream.swarm_conn.is_closed:
            self._handle_dead_peer(peer_id)

    def notify_subscriptions(self, publish_message: Any) -> None:
        """The library's own queues (32 deep, silent) are not used."""


def _signed(msg: Any) -> bool:
    try:
        return bool(signature_validator(msg))
    except Exception:
        # Bulkhead: key and signature are bytes that a stranger chose.
        return False
