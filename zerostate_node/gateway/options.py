"""What an operator may set of the gateway, with the reason for each default."""

from __future__ import annotations

import dataclasses

from zerostate_node.units import KIB, MIB


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GatewaySettings:
    """
    Limits and addresses of the HTTP gateway.

    Every time is in seconds, every size in bytes. `port` 0 takes a free one. `allowed_hosts` are
    further names that a `Host` header may carry; while bound to loopback only loopback names and
    these are served, which is what stops a web page from reaching the node by DNS rebinding.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    allowed_hosts: tuple[str, ...] = ()
    metrics_enabled: bool = True

    body_bytes_max: int = 1 * MIB  # a JSON body; larger inputs go through /api/v1/blobs
    upload_bytes_max: int = 50 * MIB  # a raw blob, streamed and never held in memory
    bodies_bytes_max: int = 64 * MIB  # all JSON bodies in memory at one time
    header_bytes_max: int = 16 * KIB

    requests_max: int = 256  # at work at one time; more are answered 503 with Retry-After
    streams_max: int = 128  # event streams open at one time
    connections_max: int = 1024  # sockets; more are closed as they come

    keep_alive_timeout_s: float = 15.0  # an idle socket, and a request head that does not end
    body_idle_timeout_s: float = 10.0  # between two pieces of a body
    body_grace_s: float = 15.0  # a body may take this long, and longer only at the rate below
    body_rate_min: int = 16 * KIB  # bytes a second, on average, after the grace
    handler_timeout_s: float = 30.0  # the node's own work for one answer
    send_timeout_s: float = 20.0  # a client that takes no byte for this long is gone
    ping_interval_s: float = 15.0  # comment lines that keep an event stream alive
    stop_grace_s: float = 2.0  # requests at work when the gateway stops may take this long

    restart_backoff_s: float = 0.2  # after the server failed; doubles up to the next
    restart_backoff_max_s: float = 10.0
