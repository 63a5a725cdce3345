"""Nothing that a peer sends may leave a stream handler as an exception: it would end the host."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.stream_muxer.exceptions import MuxedStreamError

from zerostate_node.errors import ConductError

OnFault = Callable[[str, str, BaseException], None]
StreamHandler = Callable[[Any], Awaitable[None]]

STREAMS_PER_PEER_MAX = 64

# A peer that goes away in mid-sentence is no fault of its conduct. StreamError is an IOException.
_GONE = (IOException, RawConnError, MuxedStreamError, trio.BrokenResourceError)

log = structlog.get_logger()


def guard(handler: StreamHandler, on_fault: OnFault, *, protocol: str = "") -> StreamHandler:
    """
    Wrap a stream handler so that no exception leaves it; the stream is reset instead.

    `on_fault(peer, protocol, error)` hears of every exception but a peer that went away.
    """
    if getattr(handler, "_zerostate_guarded", False):
        return handler

    @functools.wraps(handler)
    async def guarded(stream: Any) -> None:
        try:
            await handler(stream)
        except BaseException as error:
            await close_stream(stream)
            mixed = BaseExceptionGroup("stream handler", [error])
            fault, rest = mixed.split(
                lambda leaf: isinstance(leaf, Exception) and not _is_group(leaf)
            )
            if fault is not None:
                _report(on_fault, stream, protocol, _leaf(fault))
            if rest is not None:
                raise _unwrapped(rest) from None

    guarded._zerostate_guarded = True  # type: ignore[attr-defined]
    return guarded


def guard_all(
    host: Any, on_fault: OnFault, *, streams_per_peer_max: int = STREAMS_PER_PEER_MAX
) -> None:
    """
    Guard every handler of a host: those it has, those it will get, and the negotiation before.

    Call it before the host listens. Also counts the streams a peer has open to us, in negotiation
    or in a handler, and resets those above `streams_per_peer_max` with a `ConductError` fault.
    """
    mux = host.get_mux()
    network = host.get_network()
    add_handler = mux.add_handler

    def add_guarded(protocol: Any, handler: StreamHandler | None) -> None:
        if handler is not None:
            handler = guard(handler, on_fault, protocol=str(protocol))
        add_handler(protocol, handler)

    for protocol, handler in list(mux.handlers.items()):
        add_guarded(protocol, handler)
    mux.add_handler = add_guarded

    serve = guard(network.common_stream_handler, on_fault)
    counts: dict[str, int] = {}

    async def serve_counted(stream: Any) -> None:
        peer = _peer_of(stream)
        if counts.get(peer, 0) >= streams_per_peer_max:
            await close_stream(stream)
            error = ConductError(
                f"more than {streams_per_peer_max} streams at once", code="too_many_streams"
            )
            _report(on_fault, stream, "", error)
            return
        counts[peer] = counts.get(peer, 0) + 1
        try:
            await serve(stream)
        finally:
            counts[peer] -= 1
            if not counts[peer]:
                del counts[peer]

    network.set_stream_handler(serve_counted)


async def close_stream(stream: Any) -> None:
    """Reset a stream, from a cancelled scope too; whatever that raises is of no use to anyone."""
    with trio.move_on_after(2.0) as scope:
        scope.shield = True
        try:
            await stream.reset()
        except Exception as error:  # a bulkhead: the stream is dead either way
            log.debug("a stream could not be reset", error=repr(error)[:200])


def _report(on_fault: OnFault, stream: Any, protocol: str, error: BaseException) -> None:
    if isinstance(error, _GONE):
        return
    try:
        on_fault(_peer_of(stream), protocol or str(stream.get_protocol() or ""), error)
    except Exception as broken:  # a bulkhead: the callback runs where an exception ends the host
        log.error("the fault callback failed", error=repr(broken)[:200])


def _peer_of(stream: Any) -> str:
    return str(stream.muxed_conn.peer_id)


def _is_group(error: BaseException) -> bool:
    return isinstance(error, BaseExceptionGroup)


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in a group that is not a group itself."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _unwrapped(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the only member of groups of one: trio wants its Cancelled bare."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
