"""Which addresses of this machine stand behind a wildcard."""

from __future__ import annotations

import socket

from zerostate_node.mesh.addrs import parse_addr


def as_dialled(text: str) -> list[str]:
    """A bound address as others can dial it: a wildcard becomes this machine's addresses."""
    addr = parse_addr(text)
    if addr.host == "0.0.0.0":
        return [addr.with_host(ip) for ip in _own_ips(socket.AF_INET, "192.0.2.1", "127.0.0.1")]
    if addr.host == "::":
        return [addr.with_host(ip) for ip in _own_ips(socket.AF_INET6, "2001:db8::1", "::1")]
    return [text]


def _own_ips(family: socket.AddressFamily, towards: str, loopback: str) -> list[str]:
    # Connecting a datagram socket sends nothing: it only asks which source address would be used.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))
            return [str(probe.getsockname()[0]), loopback]
    except OSError:
        return [loopback]
