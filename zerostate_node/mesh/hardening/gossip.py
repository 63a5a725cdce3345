"""GossipSub that neither drops in silence nor dies of what a peer sends."""

from __future__ import annotations

import collections
import contextvars
import functools
import time
from collections.abc import Callable
from typing import Any

import libp2p.pubsub.pubsub as pubsub_module
import libp2p.pubsub.rpc_queue as rpc_queue
import structlog
from libp2p.custom_types import TProtocol
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub

QUEUE_RPCS_MAX = (
    1024  # full means: further messages to that peer, or that subscription, are dropped
)
SEEN_IDS_MAX = 65_536  # 11 minutes of a hundred messages a second, some 10 MB
SEEN_TTL_S = 120.0
CONTROL_ITEMS_MAX = 256  # of each kind in one RPC; topics are few
CONTROL_IDS_MAX = 2_000  # message ids in one IHAVE, IWANT or IDONTWANT; go takes 5,000 a heartbeat
TASKS_PER_PEER_MAX = 256  # messages of one forwarder in validation at once

PROTOCOL = TProtocol("/meshsub/1.1.0")

SIGNATURES = {
    "libp2p.pubsub.rpc_queue:RpcQueue.__init__": "self,max_size,max_message_size",
    "libp2p.pubsub.pubsub:SUBSCRIPTION_CHANNEL_SIZE": "32",
    "libp2p.pubsub.pubsub:signature_validator": "msg",
    "libp2p.pubsub.pubsub:Pubsub.push_msg": "self,msg_forwarder,msg",
    "libp2p.pubsub.pubsub:Pubsub.continuously_read_stream": "self,stream",
    "libp2p.pubsub.pubsub:Pubsub.set_topic_validator": "self,topic,validator,is_async_validator",
    "libp2p.pubsub.gossipsub:GossipSub.handle_rpc": "self,rpc,sender_peer_id",
    "libp2p.pubsub.gossipsub:GossipSub.publish": "self,msg_forwarder,pubsub_msg",
    "libp2p.pubsub.gossipsub:GossipSub.remove_peer": "self,peer_id",
}

OnFault = Callable[[str, str, BaseException], None]
OnForged = Callable[[str], None]

log = structlog.get_logger()

_forged: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar(
    "forged", default=None
)


def make_gossip(*, degree: int = 6, degree_low: int = 4, degree_high: int = 12) -> GossipSub:
    """
    Give a GossipSub router with the parameters this mesh needs.

    One protocol version that js speaks too; a heartbeat of 1 s (the default is 120 s); no spam
    limit (it drops ours and all a neighbour relays above 10 messages/s; limits are ours to set);
    nothing "adaptive" (it stretches the heartbeat to 60 s in small networks); no peer exchange.
    """
    return GossipSub(
        protocols=[PROTOCOL],
        degree=degree,
        degree_low=degree_low,
        degree_high=degree_high,
        heartbeat_interval=1,
        gossip_window=3,
        gossip_history=5,
        do_px=False,
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
    )


def fix_pubsub(
    pubsub: Any, *, on_forged: OnForged | None = None, on_fault: OnFault | None = None
) -> None:
    """
    Make one Pubsub safe to run; call it after construction and before its services start.

    `on_forged(forwarder)` hears of each message with a bad signature; `on_fault(peer, protocol,
    error)` of malformed RPCs and of whatever else a peer made raise.
    """
    faults = functools.partial(_fault, on_fault)
    # It starts at the time in seconds and grows by one a message: after a restart the ids of the
    # last minutes come again, and peers drop them as seen.
    pubsub.counter = time.time_ns()
    pubsub.seen_messages.stop()  # a thread each, and a dict without a bound
    pubsub.seen_messages = SeenIds()
    _wrap_validators(pubsub)
    _wrap_reading(pubsub, faults)
    _wrap_pushing(pubsub, faults, on_forged)
    _wrap_router(pubsub, faults)


class SeenIds:
    """The message ids of the last two minutes, at most `SEEN_IDS_MAX`, oldest forgotten first."""

    def __init__(self, *, ids_max: int = SEEN_IDS_MAX, ttl_s: float = SEEN_TTL_S) -> None:
        self._seen: collections.OrderedDict[bytes, float] = collections.OrderedDict()
        self._ids_max = ids_max
        self._ttl_s = ttl_s

    def add(self, key: bytes) -> bool:
        """Remember an id; True when it is new."""
        new = not self.has(key)
        self._seen[key] = time.monotonic()
        self._seen.move_to_end(key)
        while len(self._seen) > self._ids_max:
            self._seen.popitem(last=False)
        return new

    def has(self, key: bytes) -> bool:
        """Say whether an id was seen, and forget those whose time is over."""
        oldest_s = time.monotonic() - self._ttl_s
        while self._seen and next(iter(self._seen.values())) < oldest_s:
            self._seen.popitem(last=False)
        return key in self._seen

    def length(self) -> int:
        """Count the ids held."""
        return len(self._seen)

    def stop(self) -> None:
        """Nothing runs; libp2p's own cache has a thread."""


def lengthen_queues() -> None:
    """Queue 1024 messages per peer and per subscription: 32 lost most of a burst, in silence."""
    _, bytes_max = rpc_queue.RpcQueue.__init__.__defaults__
    rpc_queue.RpcQueue.__init__.__defaults__ = (QUEUE_RPCS_MAX, bytes_max)
    pubsub_module.SUBSCRIPTION_CHANNEL_SIZE = QUEUE_RPCS_MAX


def tell_forgeries() -> None:
    """
    Tell who forwarded a bad signature, and let a garbled key be one.

    libp2p drops a forged message without a word about its forwarder; a key that does not parse
    raised out of the task instead, which ends Pubsub and with it the host.
    """
    original = pubsub_module.signature_validator

    def validate(msg: Any) -> bool:
        try:
            good = bool(original(msg))
        except Exception:  # a bulkhead: key parsers raise whatever they like on hostile bytes
            good = False
        if not good and (tell := _forged.get()) is not None:
            tell()
        return good

    pubsub_module.signature_validator = validate


def _wrap_validators(pubsub: Any) -> None:
    """Reject what a validator chokes on: a sync one that raised ended Pubsub."""
    original = pubsub.set_topic_validator

    def set_validator(topic: str, validator: Any, is_async_validator: bool) -> None:
        if is_async_validator:

            async def safe_async(peer_id: ID, msg: Any) -> bool:
                try:
                    return bool(await validator(peer_id, msg))
                except Exception as error:  # a bulkhead: validators see hostile bytes
                    log.warning("a gossip validator raised", topic=topic, error=repr(error)[:200])
                    return False

            original(topic, safe_async, True)
        else:

            def safe(peer_id: ID, msg: Any) -> bool:
                try:
                    return bool(validator(peer_id, msg))
                except Exception as error:  # a bulkhead: validators see hostile bytes
                    log.warning("a gossip validator raised", topic=topic, error=repr(error)[:200])
                    return False

            original(topic, safe, False)

    pubsub.set_topic_validator = set_validator
    for topic, (validator, is_async) in list(pubsub.topic_validators.items()):
        set_validator(topic, validator, is_async)


def _wrap_reading(pubsub: Any, faults: Callable[[ID, BaseException], None]) -> None:
    """End the stream on a malformed RPC, as on every other read error: it ended the host."""
    original = pubsub.continuously_read_stream

    async def read_stream(stream: Any) -> None:
        try:
            await original(stream)
        except ParseError as error:
            faults(stream.muxed_conn.peer_id, error)
            raise
        except (IOException, RawConnError):
            raise
        except Exception as error:  # a bulkhead: protobuf, and handlers of what was in it
            faults(stream.muxed_conn.peer_id, error)
            raise ParseError("malformed pubsub RPC") from error

    pubsub.continuously_read_stream = read_stream


def _wrap_pushing(
    pubsub: Any, faults: Callable[[ID, BaseException], None], on_forged: OnForged | None
) -> None:
    """Let no message end Pubsub, name the forwarder of forged ones, bound those in progress."""
    original = pubsub.push_msg
    busy: collections.Counter[ID] = collections.Counter()

    async def push_msg(msg_forwarder: ID, msg: Any) -> None:
        if msg_forwarder == pubsub.my_id:  # our own publish: its caller hears of errors
            await original(msg_forwarder, msg)
            return
        if busy[msg_forwarder] >= TASKS_PER_PEER_MAX:
            return
        if len(msg.topicIDs) != 1:  # each further topic grows the router's tables, for good
            faults(msg_forwarder, ParseError("a gossip message on several topics"))
            return
        busy[msg_forwarder] += 1
        token = _forged.set(functools.partial(_tell, on_forged, str(msg_forwarder)))
        try:
            await original(msg_forwarder, msg)
        except Exception as error:  # a bulkhead: this is a task of Pubsub's own nursery
            faults(msg_forwarder, error)
        finally:
            _forged.reset(token)
            busy[msg_forwarder] -= 1
            if not busy[msg_forwarder]:
                del busy[msg_forwarder]

    pubsub.push_msg = push_msg


def _wrap_router(pubsub: Any, faults: Callable[[ID, BaseException], None]) -> None:
    """Trim control messages: they grow tables by any topic, and PRUNE can make us dial anyone."""
    router = pubsub.router
    handle_rpc, publish, remove_peer = router.handle_rpc, router.publish, router.remove_peer

    async def handle_trimmed(rpc: Any, sender_peer_id: ID) -> None:
        trim_control(rpc.control, pubsub.topic_ids)
        try:
            await handle_rpc(rpc, sender_peer_id)
        except Exception as error:  # a bulkhead: the reader of this peer's stream goes on
            faults(sender_peer_id, error)

    async def publish_and_forget(msg_forwarder: ID, pubsub_msg: Any) -> None:
        await publish(msg_forwarder, pubsub_msg)
        # One float a message for an "adaptive" mode that is off, and never forgotten.
        router.recent_message_deliveries.clear()

    def remove_and_forget(peer_id: ID) -> None:
        remove_peer(peer_id)
        now_s = time.time()
        for topic, until in router.back_off.items():  # else an entry for each peer there ever was
            router.back_off[topic] = {peer: at for peer, at in until.items() if at > now_s}

    router.publish = publish_and_forget
    router.remove_peer = remove_and_forget
    router.handle_rpc = handle_trimmed


def trim_control(control: Any, topics: Any) -> None:
    """Keep of a control message what concerns our topics, within bounds, and no peer exchange."""
    for field in ("ihave", "graft", "prune"):
        kept = [item for item in getattr(control, field) if item.topicID in topics]
        _replace(control, field, kept[:CONTROL_ITEMS_MAX])
    for field in ("iwant", "idontwant"):
        _replace(control, field, list(getattr(control, field))[:CONTROL_ITEMS_MAX])
    for field in ("ihave", "iwant", "idontwant"):
        left = CONTROL_IDS_MAX
        for item in getattr(control, field):
            del item.messageIDs[left:]
            left -= len(item.messageIDs)
    for prune in control.prune:
        # libp2p dials whoever is named here: addresses of the sender's choosing.
        prune.ClearField("peers")


def _replace(message: Any, field: str, items: list[Any]) -> None:
    repeated = getattr(message, field)
    if len(repeated) != len(items):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        del repeated[:]
        repeated.extend(copies)


def _fault(on_fault: OnFault | None, peer_id: ID, error: BaseException) -> None:
    if on_fault is None:
        return
    try:
        on_fault(str(peer_id), str(PROTOCOL), error)
    except Exception as broken:  # a bulkhead: callers run where an exception ends the host
        log.error("the fault callback failed", error=repr(broken)[:200])


def _tell(on_forged: OnForged | None, forwarder: str) -> None:
    if on_forged is None:
        return
    try:
        on_forged(forwarder)
    except Exception as broken:  # a bulkhead: it runs inside Pubsub's own task
        log.error("the forgery callback failed", error=repr(broken)[:200])


PATCHES = (lengthen_queues, tell_forgeries)
